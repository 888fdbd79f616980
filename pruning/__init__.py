"""The heart: which channels belong together, which are worth keeping, and how the rest is cut out."""
