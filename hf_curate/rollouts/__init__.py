"""Rollouts: responses sampled from a policy, and the contracts by which they are verified."""
