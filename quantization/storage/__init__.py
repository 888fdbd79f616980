"""Quantised networks as files, dense or sparse, and a reader that runs them. Needs numpy and PyYAML, no torch."""
