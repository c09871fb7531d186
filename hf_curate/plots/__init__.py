"""Plots of a selection, drawn from its manifest alone. matplotlib is imported when a plot is wanted, never pyplot."""
