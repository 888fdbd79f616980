"""Settings that the trainings of all benchmarks share, by the names of train.py's."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def training_settings(folder: Path, *, data: str, img_size: int, seed: int, **own: Any) -> dict[str, Any]:
    """Return the settings of a training that goes on where it was stopped, with its images in memory.

    Args:
        folder: Run folder; one that exists is used.
        data: Data set YAML.
        img_size: Side of the images in pixels.
        seed: Seed of the training.
        own: Further settings, which win over these.
    """
    return {
        "data": data,
        "img_size": (img_size,),
        "seed": seed,
        "cache_images": True,
        "project": str(folder.parent),
        "name": folder.name,
        "exist_ok": True,
        **own,
    }
