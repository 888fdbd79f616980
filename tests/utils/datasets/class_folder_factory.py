"""Tiny folders of images sorted by split and class."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np


def write_image(path: Path, *, value: int = 0, hw: tuple[int, int] = (8, 8)) -> Path:
    """Write an image of one grey value, as a file without loss if its suffix is .png."""
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), np.full((*hw, 3), value, np.uint8))
    return path


def write_folder(root: Path, *, second: str = "val", train: int = 3, val: int = 2) -> Path:
    """Write images of cats and dogs; each has a value of its own: cats from 10, dogs from 110, val 50 higher."""
    for split, count, shift in (("train", train, 0), (second, val, 50)):
        for name, start in (("cat", 10), ("dog", 110)):
            for number in range(count):
                write_image(root / split / name / f"{number}.png", value=start + shift + number)
    return root
