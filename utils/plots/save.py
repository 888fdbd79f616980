"""Pictures and figures to files, whole or not at all."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from utils.files import atomic_write

logger = logging.getLogger(__name__)

# Pixels of a side that libjpeg writes.
_LONGEST_JPEG = 65500


def save_figure(figure: Figure, path: str | Path, *, dpi: int = 150) -> None:
    """Write a figure in the format of the path's suffix, through Agg, without a window system."""
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=dpi, format=Path(path).suffix[1:])


def save_image(image: np.ndarray[Any, Any], path: str | Path) -> None:
    """Write an (H, W, 3) uint8 RGB image as JPEG or PNG, by the path's suffix; larger than JPEG allows, smaller."""
    format_name = "PNG" if Path(path).suffix.lower() == ".png" else "JPEG"
    picture = Image.fromarray(image)
    if format_name == "JPEG" and max(picture.size) > _LONGEST_JPEG:
        logger.warning("%s is scaled down: %d x %d pixels are more than a JPEG can have", path, *picture.size)
        picture.thumbnail((_LONGEST_JPEG, _LONGEST_JPEG))
    with atomic_write(path) as temporary:
        picture.save(temporary, format=format_name, quality=90)
