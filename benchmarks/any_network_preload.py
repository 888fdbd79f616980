"""Imports that all measurements of `any_network` share, done once in the process from which they are forked."""

import importlib
from contextlib import suppress

from utils.boxes.torchvision_compat import import_torchvision

import_torchvision()
for package in ("timm", "torch_pruning"):
    with suppress(ImportError):  # the measurement that needs it says so
        importlib.import_module(package)
