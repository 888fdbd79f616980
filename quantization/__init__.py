"""Arbitrary-bit quantisation: observers, a quantised network in three modes, integer-only inference, storage."""
