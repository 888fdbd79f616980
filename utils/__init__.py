"""Shared code without networks: boxes, NMS, metrics, data sets, checkpoint files, configuration."""

import os

# Spinning OpenMP threads slow down two busy processes on a small machine many times over. This must be set
# before torch loads its OpenMP runtime.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
