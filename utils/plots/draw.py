"""Drawing of boxes and captions on an image."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from utils.plots.colors import class_color, text_color

Array = np.ndarray[Any, Any]


def draw_boxes(
    image: Array,
    xyxy: Array,
    *,
    labels: Sequence[str],
    class_ids: Sequence[int] | Array,
    line_width: int | None = None,
) -> Array:
    """Draw boxes with captions, last box first, so that the best boxes, which come first, are on top.

    Args:
        image: Pixels (H, W, 3) uint8 RGB; not changed.
        xyxy: Corners (N, 4) in pixels of `image`.
        labels: Captions, N of them; an empty one draws the box alone.
        class_ids: Class ids, N of them, which decide the colours.
        line_width: Line width in pixels; None scales it with the image, as captions always are.

    Returns:
        A new image (H, W, 3) uint8 RGB.
    """
    if not len(xyxy):
        return image.copy()
    canvas = Image.fromarray(np.ascontiguousarray(image))
    pen = ImageDraw.Draw(canvas)
    width = line_width or max(1, round(sum(canvas.size) / 2 * 0.004))
    font = caption_font(max(10, round(sum(canvas.size) / 2 * 0.02)))
    order = range(len(xyxy) - 1, -1, -1)
    for i in order:
        left, top, right, bottom = (float(value) for value in xyxy[i])
        # Pillow refuses boxes of negative size.
        corners = (left, top, max(left, right), max(top, bottom))
        pen.rectangle(corners, outline=class_color(int(class_ids[i])), width=width)
    for i in order:
        if labels[i]:
            _caption(pen, labels[i], at=(float(xyxy[i][0]), float(xyxy[i][1])), class_id=int(class_ids[i]), font=font)
    return np.asarray(canvas).copy()


@lru_cache(maxsize=16)
def caption_font(size: int) -> ImageFont.FreeTypeFont:
    """Return DejaVu Sans, which comes with matplotlib and supports Latin, Greek, Cyrillic and Arabic.

    Args:
        size: Height in pixels.
    """
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf"), size)


def _caption(
    pen: ImageDraw.ImageDraw,
    text: str,
    *,
    at: tuple[float, float],
    class_id: int,
    font: ImageFont.FreeTypeFont,
) -> None:
    """Draw text on a plate above the corner `at`, moved inside the image where possible."""
    margin = 2
    _, _, width, height = pen.textbbox((0, 0), text, font=font)
    plate_width, plate_height = width + 2 * margin, height + 2 * margin
    canvas_width, canvas_height = pen.im.size
    left = max(0, min(at[0], canvas_width - plate_width))
    top = at[1] - plate_height if at[1] >= plate_height else max(0, min(at[1], canvas_height - plate_height))
    color = class_color(class_id)
    pen.rectangle((left, top, left + plate_width, top + plate_height), fill=color)
    pen.text((left + margin, top + margin), text, fill=text_color(color), font=font)
