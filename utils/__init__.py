"""Shared ground: boxes, NMS, metrics, data sets, checkpoint files, configuration. Knows no network."""

import os

# Spinning OpenMP threads slow two busy processes on a small machine many times over; must be set before
# torch loads its OpenMP runtime.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
