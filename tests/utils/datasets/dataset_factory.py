"""Small data sets, written to a temporary folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from utils.datasets.indexing.config import load_data_config
from utils.datasets.indexing.index import LabelIndex, build_label_index


def write_image(path: Path, hw: tuple[int, int], *, colour: tuple[int, int, int] = (90, 120, 150)) -> Path:
    """A picture of one colour."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((*hw, 3), colour, np.uint8)).save(path)
    return path


def write_set(root: Path, labels: dict[str, str], *, hw: tuple[int, int] = (48, 64), num_classes: int = 2) -> Path:
    """A data set whose train split has one picture per entry of `labels`; the YAML file."""
    for stem, text in labels.items():
        write_image(root / "images" / "train" / f"{stem}.png", hw)
        label_file = root / "labels" / "train" / f"{stem}.txt"
        label_file.parent.mkdir(parents=True, exist_ok=True)
        label_file.write_text(text)
    data_yaml = root / "data.yaml"
    names = [f"class{number}" for number in range(num_classes)]
    data_yaml.write_text(f"train: images/train\nval: images/train\nnc: {num_classes}\nnames: {names}\n")
    return data_yaml


def build_index(root: Path, *, num_images: int = 6, hw: tuple[int, int] = (48, 64)) -> LabelIndex:
    """An index of pictures with one box each, in alternating classes."""
    labels = {f"{number:03d}": f"{number % 2} 0.5 0.5 0.5 0.5\n" for number in range(num_images)}
    return build_label_index(load_data_config(write_set(root, labels, hw=hw)), "train")
