"""Measure a detector: COCO numbers, curves, confusion matrix, sample images, speed. Or a classifier: accuracy."""

from __future__ import annotations

from commands.val_config import ValConfig
from utils.config.cli import run_script

if __name__ == "__main__":
    run_script("commands.val:val", ValConfig)
