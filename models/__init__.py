"""The detectors and classifiers: specifications, blocks, builders and architecture YAMLs."""
