"""Classifiers: export, runtimes and verification of networks that return logits."""
