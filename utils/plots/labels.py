"""The plot labels.jpg: number of objects per class, their positions, sizes and shapes."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from utils.datasets.indexing.index import LabelIndex
from utils.datasets.reading.labels import Labels
from utils.plots.colors import class_color, line_color
from utils.plots.save import label_text, save_figure

_MAX_OUTLINES = 1000
_OUTLINE_PIXELS = 1000
_MAX_CLASS_NAMES = 30
_BINS = 50
_DPI = 120


def plot_labels(index: LabelIndex, path: str | Path) -> None:
    """Plot class counts, box outlines, centres, and widths and heights in four panels of the image file `path`."""
    labels = np.concatenate([*index.labels, np.zeros((0, 5), np.float32)])
    figure = Figure(figsize=(10, 10), layout="constrained")
    counts, outlines, centres, sizes = figure.subplots(2, 2).ravel()
    _draw_counts(counts, labels, index.names)
    _draw_outlines(outlines, labels)
    _draw_density(centres, labels[:, 1], labels[:, 2], names=("centre x", "centre y"))
    centres.invert_yaxis()  # as in an image
    _draw_density(sizes, labels[:, 3], labels[:, 4], names=("width", "height"))
    save_figure(figure, path, dpi=_DPI)


def _draw_counts(axes: Axes, labels: Labels, names: tuple[str, ...]) -> None:
    counts = np.bincount(labels[:, 0].astype(np.int64), minlength=len(names))
    bars = axes.bar(range(len(names)), counts, color=[line_color(number) for number in range(len(names))])
    axes.set_ylabel("objects")
    axes.set_title(f"{len(labels)} objects")
    if len(names) <= _MAX_CLASS_NAMES:
        axes.set_xticks(range(len(names)), list(map(label_text, names)), rotation=90 if len(names) > 5 else 0)
        axes.bar_label(bars, fontsize=7, rotation=90 if len(names) > 10 else 0)
    else:
        axes.set_xlabel("class id")


def _draw_outlines(axes: Axes, labels: Labels) -> None:
    """Draw all boxes around a common centre, to show their shapes at a glance."""
    canvas = np.full((_OUTLINE_PIXELS, _OUTLINE_PIXELS, 3), 255, np.uint8)
    centre = _OUTLINE_PIXELS / 2
    for class_id, _, _, width, height in labels[:: max(1, len(labels) // _MAX_OUTLINES)].tolist():
        half_w, half_h = width * centre, height * centre
        left_top = round(centre - half_w), round(centre - half_h)
        right_bottom = round(centre + half_w), round(centre + half_h)
        cv2.rectangle(canvas, left_top, right_bottom, class_color(int(class_id)), 1)
    axes.imshow(canvas)
    axes.set_title("shapes")
    axes.axis("off")


def _draw_density(
    axes: Axes,
    x: np.ndarray[tuple[int], np.dtype[np.float32]],
    y: np.ndarray[tuple[int], np.dtype[np.float32]],
    *,
    names: tuple[str, str],
) -> None:
    axes.hist2d(x, y, bins=_BINS, range=((0, 1), (0, 1)), cmap="viridis", cmin=1)
    axes.set_xlabel(f"{names[0]} (share of the image)")
    axes.set_ylabel(f"{names[1]} (share of the image)")
    axes.set_aspect("equal")
