"""Detectors, which return raw heads, and classifiers, which return logits, as two values of one protocol."""
