"""Plots of data, results and training. matplotlib is used without pyplot, so that no global state changes."""
