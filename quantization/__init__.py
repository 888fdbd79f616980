"""Quantisation to any number of bits: observers, a network in three modes, integer-only inference, storage."""
