"""Scoring a whole dataset: the rooms that know how a run is carried out."""
