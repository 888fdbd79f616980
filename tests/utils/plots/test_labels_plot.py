from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tiny import label_index

from utils.datasets.reading.images import read_image
from utils.plots.curves import plot_confusion
from utils.plots.labels import plot_labels


@pytest.mark.parametrize(("num_classes", "num_boxes"), [(3, 50), (80, 500), (1, 0)])
def test_the_picture_shows_something_for_any_number_of_boxes(
    tmp_path: Path, num_classes: int, num_boxes: int
) -> None:
    rng = np.random.default_rng(0)
    boxes = rng.uniform(0.1, 0.9, (num_boxes, 5)).astype(np.float32)
    boxes[:, 0] = rng.integers(0, num_classes, num_boxes)
    names = [f"class{number}" for number in range(num_classes)]
    index = label_index([boxes], shapes_hw=[(10, 10)], names=names)
    plot_labels(index, tmp_path / "labels.jpg")
    image = read_image(tmp_path / "labels.jpg")
    assert min(image.shape[:2]) > 500
    assert image.std() > 5


def test_class_names_with_dollar_signs_are_no_formulas(tmp_path: Path) -> None:
    names = ("$5_$x^", "US$")
    plot_confusion(np.eye(2), tmp_path / "confusion.png", names=names)
    plot_labels(
        label_index([np.ones((1, 5), np.float32)], shapes_hw=[(10, 10)], names=names), tmp_path / "labels.jpg"
    )
    assert (tmp_path / "confusion.png").exists()
    assert (tmp_path / "labels.jpg").exists()
