"""Writing of images and figures to files, completely or not at all."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from utils.storage.files import atomic_write

logger = logging.getLogger(__name__)

# Most pixels per side that libjpeg writes.
_LONGEST_JPEG = 65500


def label_text(name: str) -> str:
    """Return a label that matplotlib draws as it is: between two dollar signs it would read a formula."""
    return name.replace("$", r"\$")


def save_figure(figure: Figure, path: str | Path, *, dpi: int = 150) -> None:
    """Write a figure in the format of the path's suffix, by Agg, without a window system."""
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=dpi, format=Path(path).suffix[1:])


def save_image(image: np.ndarray[Any, Any], path: str | Path) -> None:
    """Write an image (H, W, 3) uint8 RGB as JPEG or PNG, by the path's suffix; shrink one too large for JPEG."""
    format_name = "PNG" if Path(path).suffix.lower() == ".png" else "JPEG"
    picture = Image.fromarray(image)
    if format_name == "JPEG" and max(picture.size) > _LONGEST_JPEG:
        logger.warning("%s is scaled down: %d x %d pixels are more than JPEG supports", path, *picture.size)
        picture.thumbnail((_LONGEST_JPEG, _LONGEST_JPEG))
    with atomic_write(path) as temporary:
        picture.save(temporary, format=format_name, quality=90)
