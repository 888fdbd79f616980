"""The YAMLs of examples/lenet_digits: a small LeNet5 in integers and in floating point, which read digits alike."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tiny import ROOT
from torch import Tensor

from quantization.storage.reader import run
from quantization.storage.text import load_float_yaml, load_yaml
from utils.datasets.classes.pictures import read_picture_file

FOLDER = ROOT / "examples/lenet_digits"


def float_logits(images: Tensor) -> Tensor:
    """Answers (B, 10) of the network in floating point to normalised images (B, 1, 28, 28)."""
    weights = {name: torch.from_numpy(values) for name, values in load_float_yaml(FOLDER / "float.yaml").items()}

    def of(layer: str) -> tuple[Tensor, Tensor]:
        return weights[f"{layer}.weight"], weights[f"{layer}.bias"]

    maps = F.max_pool2d(F.conv2d(images, *of("features.0"), padding=2).relu(), 2)
    maps = F.max_pool2d(F.conv2d(maps, *of("features.3")).relu(), 2)
    hidden = F.linear(F.linear(maps.flatten(1), *of("classifier.0")).relu(), *of("classifier.2")).relu()
    return F.linear(hidden, *of("classifier.4"))


def test_files_are_small_and_have_the_same_layers() -> None:
    assert max(path.stat().st_size for path in FOLDER.iterdir()) < 20_000
    shapes = {name: values.shape for name, values in load_float_yaml(FOLDER / "float.yaml").items()}
    fingerprint = json.loads((FOLDER / "metadata.json").read_text())["network_fingerprint"]
    program = load_yaml(FOLDER / "network.yaml", fingerprint=fingerprint)
    found = [step.arrays["weight"].shape for step in program.operations if "weight" in step.arrays]
    assert [tuple(shape) for shape in found] == [shape for name, shape in shapes.items() if name.endswith(".weight")]
    assert all(values.dtype == np.float32 for values in load_float_yaml(FOLDER / "float.yaml").values())


def test_both_read_real_digits(shared: Path) -> None:
    digits = read_picture_file(shared / "data/classification/mnist.npz").test.first(300)
    metadata = json.loads((FOLDER / "metadata.json").read_text())
    images = (digits.images.float() / 255 - metadata["mean"][0]) / metadata["std"][0]
    (integers,) = run(load_yaml(FOLDER / "network.yaml"), images.numpy())
    floats = float_logits(images).numpy()
    assert (floats.argmax(1) == digits.labels.numpy()).mean() > 0.9
    assert (integers.argmax(1) == floats.argmax(1)).mean() > 0.97
    assert np.abs(integers - floats).mean() < 0.1 * np.abs(floats).mean()
