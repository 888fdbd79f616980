"""Pruning: find the channels that belong together, decide which are worth keeping, and cut out the rest."""
