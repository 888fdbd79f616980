"""Plots of F1, P, R and PR curves, and of the confusion matrix."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from utils.metrics.curves import Curves
from utils.plots.colors import line_color
from utils.plots.save import label_text, save_figure

Array = np.ndarray[Any, Any]

# With more classes than this, only the mean is named, and thin grey lines show the classes.
MAX_NAMED_CLASSES = 14
MAX_MATRIX_NUMBERS = 30


def plot_curves(curves: Curves, folder: str | Path, *, names: Sequence[str]) -> list[Path]:
    """Write F1_curve.png, P_curve.png, R_curve.png and PR_curve.png; return their paths.

    Args:
        curves: Curves of the classes that have true boxes; without any, nothing is written.
        folder: Folder to write to.
        names: Class names by id.
    """
    if not len(curves.classes):
        return []
    folder = Path(folder)
    own_names = [label_text(names[int(class_id)]) for class_id in curves.classes]
    best = curves.best()
    paths = []
    # No line where nothing was found, because neither 1 nor 0 is right. In the mean such a class counts with 0.
    precision = np.where(curves.is_found, curves.precision, np.nan)
    mean_precision = np.where(curves.is_found.any(0), np.nan_to_num(precision).mean(0), np.nan)
    for file, title, values, mean, at_best in (
        ("F1_curve.png", "F1", curves.f1, curves.f1.mean(0), best.f1),
        ("P_curve.png", "Precision", precision, mean_precision, best.precision),
        ("R_curve.png", "Recall", curves.recall, curves.recall.mean(0), best.recall),
    ):
        is_known = not np.isnan(best.confidence)
        mean_label = f"all classes, {at_best:.2f} at {best.confidence:.3f}" if is_known else "all classes"
        figure, axes = _axes(x="Confidence", y=title)
        _lines(axes, curves.confidence, values, mean, labels=own_names, mean_label=mean_label)
        save_figure(figure, folder / file)
        paths.append(folder / file)
    figure, axes = _axes(x="Recall", y="Precision")
    labels = [f"{name} {ap:.3f}" for name, ap in zip(own_names, curves.ap, strict=True)]
    mean_label = f"all classes, {curves.ap.mean():.3f} AP50"
    mean = curves.precision_at_recall.mean(0)
    _lines(axes, curves.recall_grid, curves.precision_at_recall, mean, labels=labels, mean_label=mean_label)
    save_figure(figure, folder / "PR_curve.png")
    return [*paths, folder / "PR_curve.png"]


def plot_confusion(matrix: Array, path: str | Path, *, names: Sequence[str]) -> None:
    """Plot the confusion matrix, each column as shares of its true class.

    Args:
        matrix: Counts (K + 1, K + 1), rows predicted, columns true, background last; (K, K) for a classifier.
        path: PNG to write.
        names: Class names, K of them.
    """
    shares = matrix / np.maximum(matrix.sum(0, keepdims=True), 1)
    labels = [*map(label_text, names), "background"][: len(matrix)]
    size = float(np.clip(0.2 * len(labels) + 4, 6, 24))
    figure = Figure(figsize=(size + 1, size), layout="constrained")
    axes = figure.subplots()
    picture = axes.imshow(np.ma.masked_equal(shares, 0), cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(picture, ax=axes, label="share of the true class")
    font = float(np.clip(32 * size / len(labels), 4, 10))  # points; a label has 72 * size / labels of them
    axes.set_xticks(range(len(labels)), labels, rotation=90, fontsize=font)
    axes.set_yticks(range(len(labels)), labels, fontsize=font)
    axes.set_xlabel("True")
    axes.set_ylabel("Predicted")
    if len(labels) <= MAX_MATRIX_NUMBERS:
        for row, column in np.argwhere(shares >= 0.005):
            share = shares[row, column]
            color = "white" if share > 0.5 else "black"
            axes.text(column, row, f"{share:.2f}", ha="center", va="center", fontsize=font, color=color)
    save_figure(figure, path)


def _axes(*, x: str, y: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(9, 6), layout="constrained")
    axes = figure.subplots()
    axes.set(xlabel=x, ylabel=y, xlim=(0, 1), ylim=(0, 1.02))
    axes.grid(alpha=0.3)
    return figure, axes


def _lines(axes: Axes, x: Array, y: Array, mean: Array, *, labels: Sequence[str], mean_label: str) -> None:
    """Draw y (C, n) over x (n,), one line per class and a thick one for their mean (n,)."""
    is_named = len(labels) <= MAX_NAMED_CLASSES
    for number, (values, label) in enumerate(zip(y, labels, strict=True)):
        if is_named:
            axes.plot(x, values, linewidth=1, color=line_color(number), label=label)
        else:
            axes.plot(x, values, linewidth=0.7, color="0.75")
    axes.plot(x, mean, linewidth=3, color="black", label=mean_label)
    if is_named:
        axes.figure.legend(loc="outside right upper", fontsize=8)
    else:
        axes.legend(loc="best", fontsize=8)
