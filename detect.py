"""Detect objects in images, folders, videos, cameras and streams."""

from __future__ import annotations

from commands.detect_config import DetectConfig
from utils.config.cli import run_script

if __name__ == "__main__":
    run_script("commands.detect:detect", DetectConfig)
