"""Pictures and figures to files, whole or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from utils.files import atomic_write


def save_figure(figure: Figure, path: str | Path, *, dpi: int = 150) -> None:
    """Write a figure in the format of the path's suffix, through Agg, without a window system."""
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=dpi, format=Path(path).suffix[1:])


def save_image(image: np.ndarray[Any, Any], path: str | Path) -> None:
    """Write an (H, W, 3) uint8 RGB picture as JPEG or PNG, by the path's suffix."""
    with atomic_write(path) as temporary:
        format_name = "PNG" if Path(path).suffix.lower() == ".png" else "JPEG"
        Image.fromarray(image).save(temporary, format=format_name, quality=90)
