"""Data sets on disk, what is wrong with them, augmentation, and the loader that feeds a network."""
