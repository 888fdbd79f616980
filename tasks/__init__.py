"""Tasks: what detection and classification do differently, as two values of one protocol."""
