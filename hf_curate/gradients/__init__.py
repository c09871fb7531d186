"""Gradient signals of a causal language model, in plain torch. Knows nothing of datasets, the Hub or papers."""
