"""The palette of boxes and lines, so that a class has the same colour in every plot."""

from __future__ import annotations

RGB = tuple[int, int, int]

# Paul Tol's "bright" and "muted" colour-blind-safe schemes, without their greys.
PALETTE: tuple[RGB, ...] = (
    (68, 119, 170),
    (238, 102, 119),
    (34, 136, 51),
    (204, 187, 68),
    (102, 204, 238),
    (170, 51, 119),
    (51, 34, 136),
    (221, 204, 119),
    (136, 34, 85),
    (68, 170, 153),
    (153, 153, 51),
    (204, 102, 119),
    (136, 204, 238),
    (17, 119, 51),
)


def class_color(class_id: int) -> RGB:
    """Return the RGB colour (0 to 255) of a class; colours repeat after the palette's length."""
    return PALETTE[class_id % len(PALETTE)]


def line_color(number: int) -> tuple[float, float, float]:
    """Return the same colours in matplotlib's range, [0, 1]."""
    red, green, blue = class_color(number)
    return red / 255, green / 255, blue / 255


def text_color(background: RGB) -> RGB:
    """Return black or white, whichever is readable on `background`."""
    red, green, blue = background
    # Luma of ITU-R BT.601.
    return (0, 0, 0) if 0.299 * red + 0.587 * green + 0.114 * blue > 140 else (255, 255, 255)
