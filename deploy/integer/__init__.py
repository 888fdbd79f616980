"""Quantised networks as artefacts: integers between image and output, run by torch on CPUs."""
