"""Whole experiments with classifiers, each one command: read them as a guide to the Python interface."""
