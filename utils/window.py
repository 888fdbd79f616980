"""Showing pictures on a screen, where there is one."""

from __future__ import annotations

import os
import sys
from typing import Any

import cv2
import numpy as np

from utils.errors import ConfigError

_STOP_KEYS = {ord("q"), 27}


def check_window_system() -> None:
    """Make sure that windows can be opened, before any work is done.

    Raises:
        ConfigError: OpenCV was built without windows, or there is no display.
    """
    gui = next((line for line in cv2.getBuildInformation().splitlines() if line.strip().startswith("GUI:")), "")
    if "NONE" in gui:
        raise ConfigError(
            "--view-img: opencv-python-headless opens no windows; run "
            "pip uninstall -y opencv-python-headless && pip install opencv-python"
        )
    if sys.platform == "linux" and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        raise ConfigError("--view-img: there is no display; leave it out and look at the run folder's pictures")


def show(image: np.ndarray[Any, Any], title: str, *, is_still: bool) -> bool:
    """Show an (H, W, 3) uint8 RGB picture; False when the user pressed q or Escape.

    Args:
        image: The picture.
        title: Of the window; one window per title.
        is_still: Wait for a key, instead of going on after a millisecond.
    """
    cv2.imshow(title, cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    return (cv2.waitKey(0 if is_still else 1) & 0xFF) not in _STOP_KEYS
