"""The Python lines of the README in an ncnn folder, run as they stand, give the numbers of our runtime."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from exporting import classifier_job, export_arguments, export_ncnn, network
from PIL import Image

from deploy import load, load_classifier, load_runtime
from deploy.export import export
from deploy.outputs.metadata import folder_metadata
from models.classifiers import LeNet5

pytest.importorskip("ncnn", reason="the ncnn package is not installed")
pytest.importorskip("pnnx", reason="the pnnx package is not installed")

CPU = torch.device("cpu")
HW = (64, 96)
FP16_OPTIONS = ("use_fp16_packed", "use_fp16_storage", "use_fp16_arithmetic")


def python_blocks(folder: Path) -> list[str]:
    """The indented lines below the heading, block by block."""
    page = (folder / "README.md").read_text(encoding="utf-8").split("## Python\n")[1]
    return [textwrap.dedent(block) for block in re.findall(r"(?:^ {4}.*\n)+", page, re.MULTILINE)]


@pytest.fixture
def rgb() -> np.ndarray[Any, Any]:
    return np.random.default_rng(5).integers(0, 256, (*HW, 3), dtype=np.uint8)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_lines_of_a_detector_give_the_numbers_of_our_runtime(
    precision: str, rgb: np.ndarray[Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, folder = network("tiny"), tmp_path / "tiny_ncnn_model"
    images = torch.from_numpy(rgb).permute(2, 0, 1)[None] / 255
    arguments = export_arguments(model, image_hw=HW, precision=precision)
    export_ncnn(model, folder, **arguments, calibration=[images] if precision == "int8" else ())
    monkeypatch.chdir(tmp_path)
    _, alone = python_blocks(folder)
    names: dict[str, Any] = {"rgb": rgb}
    exec(alone, names)
    maps = [torch.from_numpy(head)[None] for head in names["heads"]]
    heads = folder_metadata(folder).raw_heads(maps, where=folder)
    for found, expected in zip(heads, load_runtime(folder, device=CPU)(images), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6 * float(expected.abs().max()))
    assert not any(getattr(names["net"].opt, option) for option in FP16_OPTIONS)


def test_lines_with_this_project_detect(
    rgb: np.ndarray[Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, folder = network("tiny"), tmp_path / "tiny_ncnn_model"
    export_ncnn(model, folder, **export_arguments(model, image_hw=HW))
    monkeypatch.chdir(tmp_path)
    Image.fromarray(rgb).save("picture.jpg")
    project, _ = python_blocks(folder)
    names: dict[str, Any] = {}
    exec(project, names)
    assert names["detections"].to_dict() == load(folder)("picture.jpg").to_dict()


def test_lines_of_a_classifier_give_its_logits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    folder = tmp_path / "lenet_ncnn_model"
    export(classifier_job(LeNet5().eval()), folder)
    monkeypatch.chdir(tmp_path)
    images = torch.rand(1, 1, 28, 28)
    project, alone = python_blocks(folder)
    names: dict[str, Any] = {"images": images, "image": images[0].numpy()}
    exec(project, names)
    expected = names["logits"]
    assert torch.equal(expected, load_classifier(folder)(images))
    exec(alone, names)
    torch.testing.assert_close(torch.from_numpy(names["logits"]).flatten(), expected[0], rtol=0, atol=1e-6)
    assert not any(getattr(names["net"].opt, option) for option in FP16_OPTIONS)


def test_cpp_lines_switch_sixteen_bits_off_before_they_load(tmp_path: Path) -> None:
    model, folder = network("tiny"), tmp_path / "tiny_ncnn_model"
    export_ncnn(model, folder, **export_arguments(model, image_hw=HW))
    page = (folder / "README.md").read_text(encoding="utf-8").split("## C++\n")[1].split("## Python")[0]
    assert page.index(" = ".join(f"net.opt.{option}" for option in FP16_OPTIONS) + " = false;") < page.index("load_")
