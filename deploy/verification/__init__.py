"""Verification: comparison of exported artefacts with the network they came from."""
