"""Quantised networks as files, dense or sparse, and a reader that runs them; needs numpy and PyYAML, no torch."""
