"""Quantised networks as artefacts: integer arithmetic from image to output, run by torch on CPUs."""
