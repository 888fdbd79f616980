"""Networks in integers as artefacts: the integers of the network, the contract of runtimes, damage in one line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from exporting import cut_off, head_error, images_of, network
from torch import nn

from deploy import load, load_runtime
from deploy.artefact.metadata import METADATA_NAME
from deploy.formats import load_classifier, load_detector
from deploy.integer.export import Forms, bits_text, takes_any_size, write_integer
from deploy.integer.runtime import NETWORK_NAME
from deploy.outputs.classifier import ClassifierSource
from deploy.outputs.detector import DetectorSource
from deploy.outputs.metadata import Metadata
from deploy.settings import RuntimeOptions
from models.classifiers import build_classifier
from models.detector import Detector
from quantization.network import QuantizedNetwork, quantize
from quantization.ranges.config import LayerBits, QuantConfig
from quantization.storage.text import load_yaml
from tasks.detection import QuantizedHeads
from utils.errors import CheckpointError, ConfigError

CPU = torch.device("cpu")
HW = (64, 96)
FOLDER = "tiny_w8a8_integer_model"
NAMES = ("a", "b", "c")


def quantised(model: nn.Module, *, chw: tuple[int, int, int] = (3, *HW), **settings: Any) -> QuantizedNetwork:
    images = torch.rand(4, *chw, generator=torch.Generator().manual_seed(0))
    made = quantize(model, [images], config=QuantConfig(**settings), image_shape=chw)
    made.mode = "integer"
    return made


def write(made: QuantizedNetwork, model: Detector, folder: Path, **forms: Any) -> Metadata:
    source = DetectorSource(model=model, names=NAMES, sha256="0" * 64)
    return write_integer(made.to_program(), folder, source=source, forms=Forms(**forms))


@pytest.fixture(scope="module")
def detector() -> Detector:
    return network("pruned tiny")


@pytest.fixture(scope="module")
def in_integers(detector: Detector) -> QuantizedNetwork:
    return quantised(detector)


@pytest.fixture(scope="module")
def artefact(detector: Detector, in_integers: QuantizedNetwork, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("written") / FOLDER
    write(in_integers, detector, folder)
    return folder


@pytest.fixture
def copy(artefact: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(artefact, tmp_path / FOLDER))


def test_loaded_artefact_gives_the_heads_of_the_network_bit_for_bit(
    artefact: Path, detector: Detector, in_integers: QuantizedNetwork
) -> None:
    images = images_of(HW, count=3)
    heads, expected = load_runtime(artefact, device=CPU)(images), QuantizedHeads(in_integers, detector)(images)
    assert all(torch.equal(own, other) for own, other in zip(heads, expected, strict=True))
    assert head_error(heads, detector, images) < 0.2


def test_runtime_tells_what_the_contract_asks(artefact: Path, detector: Detector) -> None:
    runtime = load_runtime(artefact, device=CPU)
    assert (runtime.format, runtime.precision, runtime.input_hw) == ("_integer_model", "integer", None)
    assert (runtime.names, runtime.num_classes, runtime.strides) == (NAMES, 3, (8, 16))
    assert torch.equal(runtime.anchors, detector.anchors)


def test_any_multiple_of_the_stride_goes_through_and_nothing_else(artefact: Path) -> None:
    runtime = load_runtime(artefact, device=CPU)
    assert [tuple(head.shape) for head in runtime(images_of((32, 128)))] == [(1, 3, 4, 16, 8), (1, 3, 2, 8, 8)]
    with pytest.raises(ConfigError, match="expected multiples of the stride 16"):
        runtime(images_of((40, 64)))


@pytest.mark.parametrize("layout", ["coo", "csr", "csc"])
def test_every_layout_holds_the_same_network(
    layout: str, artefact: Path, detector: Detector, in_integers: QuantizedNetwork, tmp_path: Path
) -> None:
    write(in_integers, detector, tmp_path / FOLDER, layout=layout)
    images = images_of(HW)
    heads, expected = (load_runtime(path, device=CPU)(images) for path in (tmp_path / FOLDER, artefact))
    assert all(torch.equal(own, other) for own, other in zip(heads, expected, strict=True))


def test_renamed_folder_still_loads(artefact: Path, tmp_path: Path) -> None:
    renamed = shutil.copytree(artefact, tmp_path / "model_v2")
    images = images_of((64, 64))
    found, expected = (load_runtime(path, device=CPU)(images) for path in (renamed, artefact))
    assert all(map(torch.equal, found, expected))


def test_yaml_beside_it_holds_the_same_integers(
    detector: Detector, in_integers: QuantizedNetwork, tmp_path: Path
) -> None:
    write(in_integers, detector, tmp_path / FOLDER, with_yaml=True)
    program, read = in_integers.to_program(), load_yaml(tmp_path / FOLDER / "network.yaml")
    for own, other in zip(program.operations, read.operations, strict=True):
        assert all(np.array_equal(values, other.arrays[name]) for name, values in own.arrays.items())


def test_metadata_say_how_wide_the_integers_are(artefact: Path, in_integers: QuantizedNetwork) -> None:
    written = json.loads((artefact / METADATA_NAME).read_text())
    assert (written["precision"], written["network_fingerprint"]) == ("integer", in_integers.fingerprint)
    assert written["bits"] == f"weights in 8 bits, values in 8 to {8 + QuantConfig().table_bits}"
    assert written["source_sha256"] == "0" * 64


def test_bits_of_exceptions_are_told(detector: Detector) -> None:
    settings = {"weight_bits": 4, "activation_bits": 6, "table_bits": 0, "input_bits": 6, "head_bits": 4}
    made = quantised(detector, **settings, layers={"model.9*": LayerBits(weights=8)})
    assert bits_text(made.to_program()) == "weights in 4 to 8 bits, values in 6"


def test_predictor_finds_boxes_with_it(artefact: Path) -> None:
    picture = (images_of((64, 64))[0].permute(1, 2, 0).numpy() * 255).astype(np.uint8)
    assert len(load(artefact, device="cpu", img_size=64, conf=0.0)(picture)) > 0


def test_settings_that_change_nothing_are_warned_of(artefact: Path, caplog: pytest.LogCaptureFixture) -> None:
    runtime = load_runtime(artefact, device=torch.device("meta"), options=RuntimeOptions(half=True))
    assert runtime.device == CPU
    assert "run on the CPU, not on meta" in caplog.text
    assert "computes in integers; the option is ignored" in caplog.text


def changed(folder: Path, **values: Any) -> None:
    path = folder / METADATA_NAME
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


DAMAGE: list[tuple[Callable[[Path], object], str]] = [
    (lambda folder: cut_off(folder / NETWORK_NAME), "network.npz: not a complete file of a quantised network"),
    (lambda folder: (folder / NETWORK_NAME).unlink(), "network.npz cannot be read"),
    (lambda folder: (folder / METADATA_NAME).unlink(), "contains no readable metadata.json"),
    (lambda folder: changed(folder, network_fingerprint="ab" * 32), "it is of another network"),
    (lambda folder: changed(folder, network_fingerprint=None), "network_fingerprint: got None, expected a str"),
    (lambda folder: changed(folder, num_classes=2, names=["a", "b"]), r"expected \[\(1, 21, 8, 12\)"),
    (lambda folder: changed(folder, strides=[8, 32]), "quantise the network again"),
]


@pytest.mark.parametrize(("damage", "finding"), DAMAGE)
def test_damaged_artefact_is_one_line(damage: Callable[[Path], object], finding: str, copy: Path) -> None:
    damage(copy)
    with pytest.raises(CheckpointError, match=finding) as caught:
        load_runtime(copy, device=CPU)
    assert "\n" not in str(caught.value)


def test_network_of_another_detector_is_refused(copy: Path) -> None:
    other = network("tiny")
    write(quantised(other), other, copy.parent / "other_integer_model")
    shutil.copyfile(copy.parent / "other_integer_model" / NETWORK_NAME, copy / NETWORK_NAME)
    with pytest.raises(CheckpointError, match="it is of another network"):
        load_runtime(copy, device=CPU)


def test_network_of_another_training_is_refused(copy: Path, detector: Detector) -> None:
    write(quantised(detector, weight_bits=4), detector, copy.parent / "other_integer_model")
    shutil.copyfile(copy.parent / "other_integer_model" / NETWORK_NAME, copy / NETWORK_NAME)
    with pytest.raises(CheckpointError, match="network.npz is truncated, damaged or from another artefact"):
        load_runtime(copy, device=CPU)


def test_folder_of_something_else_is_not_replaced(
    detector: Detector, in_integers: QuantizedNetwork, tmp_path: Path
) -> None:
    folder = tmp_path / FOLDER
    folder.mkdir()
    (folder / "thesis.txt").write_text("mine")
    with pytest.raises(ConfigError, match=r"contains no network\.npz; move it away"):
        write(in_integers, detector, folder)
    assert [path.name for path in folder.iterdir()] == ["thesis.txt"]


def classifier_folder(folder: Path, name: str, chw: tuple[int, int, int]) -> tuple[Path, QuantizedNetwork]:
    torch.manual_seed(0)
    model = build_classifier(name, in_channels=chw[0]).eval()
    made = quantised(model, chw=chw)
    facts: dict[str, Any] = {"names": tuple("0123456789"), "mean": (0.5,) * chw[0], "std": (0.25,) * chw[0]}
    path = folder / f"{name}_integer_model"
    source = ClassifierSource(model=model, image_chw=chw, **facts)
    write_integer(made.to_program(), path, source=source, forms=Forms(layout="csr"))
    return path, made


@pytest.mark.parametrize(("name", "chw"), [("lenet5", (1, 28, 28)), ("resnet20", (3, 32, 32))])
def test_classifier_comes_back_with_its_logits(name: str, chw: tuple[int, int, int], tmp_path: Path) -> None:
    folder, made = classifier_folder(tmp_path, name, chw)
    runtime, images = load_classifier(folder), torch.rand(2, *chw)
    assert torch.equal(runtime(images), made(images))
    assert (runtime.metadata.precision, runtime.metadata.mean[0]) == ("integer", 0.5)
    assert not takes_any_size(made.to_program(), 32)


def test_detector_and_classifier_are_not_taken_for_each_other(artefact: Path, tmp_path: Path) -> None:
    folder, _ = classifier_folder(tmp_path, "lenet5", (1, 28, 28))
    with pytest.raises(CheckpointError, match=r"got a classifier, expected a detector; give weights that fit"):
        load_detector(folder, device=CPU)
    with pytest.raises(CheckpointError, match=r"got a detector, expected a classifier; give weights that fit"):
        load_classifier(artefact)


def test_classifier_of_other_classes_is_refused(tmp_path: Path) -> None:
    folder, _ = classifier_folder(tmp_path, "lenet5", (1, 28, 28))
    changed(folder, num_classes=9, names=list("012345678"))
    with pytest.raises(CheckpointError, match=r"returns \[\(1, 10\)\] for one image, expected \[\(1, 9\)\]"):
        load_classifier(folder)
