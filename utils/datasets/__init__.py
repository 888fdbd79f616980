"""Data sets: reading and checking files, augmentation, and the loader that feeds a network."""
