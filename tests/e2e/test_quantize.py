"""quantize.py from a checkpoint to a measured artefact, for detectors and classifiers, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mask_oracle import lively
from refusal import NAMES, Place, make_place, refusal, run
from tiny import TINY_CFG

from commands.train import run_training
from commands.train_config import TrainConfig
from deploy.formats import load_classifier
from models.detector import Detector, build_model
from models.spec import ModelSpec
from quantization.storage.text import load_float_yaml
from utils.datasets.classes.pictures import PictureSet, read_picture_file, write_picture_file
from utils.storage.checkpoint import Checkpoint, load_checkpoint, save_checkpoint

CLASSIFIER_ARTEFACT = "best_w8a8_integer_model"


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return make_place(tmp_path)


@pytest.fixture(scope="module")
def digits(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a LeNet5 that read 3000 real digits, and them as digits.npz."""
    folder = tmp_path_factory.mktemp("digits")
    whole = read_picture_file(shared / "data/classification/mnist.npz")

    def arrays(pictures: PictureSet) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        return pictures.images[:, 0].numpy(), pictures.labels.numpy()

    x_train, y_train = arrays(whole.train.first(3000))
    x_test, y_test = arrays(whole.test.first(500))
    content = {"x_train": x_train, "y_train": y_train, "x_test": x_test, "y_test": y_test}
    write_picture_file(folder / "digits.npz", content)
    config = TrainConfig(
        cfg="lenet5",
        data=str(folder / "digits.npz"),
        epochs=2,
        batch_size=64,
        nominal_batch=64,
        device="cpu",
        noplots=True,
        project=str(folder / "training"),
    )
    result = run_training(config)
    assert result is not None
    result.best.rename(folder / "best.pt")
    return folder


def arguments(place: Place, *more: str) -> list[str]:
    common = ["--weights", str(place.weights), "--data", str(place.data), "--img", "64", "--calib-images", "2"]
    return [*common, "--workers", "0", "--project", str(place.project), *more]


def of_digits(digits: Path, output: Path, *more: str) -> list[str]:
    common = ["--weights", str(digits / "best.pt"), "--data", str(digits / "digits.npz"), "--output", str(output)]
    return [*common, "--project", str(output / "runs"), *more]


def report(project: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((project / "exp/result.json").read_text())
    return content


def lively_network() -> Detector:
    """The tiny network with statistics as after training, so that its answers differ from place to place."""
    torch.manual_seed(0)
    return lively(build_model(ModelSpec.from_yaml(TINY_CFG, num_classes=3))).float()


def lively_checkpoint(place: Place) -> None:
    """A network whose answers differ from place to place, and pictures labelled with its own boxes."""
    model = lively_network()
    save_checkpoint(Checkpoint(spec=model.spec.to_dict(), names=NAMES, weights=model.state_dict()), place.weights)
    found = ["--source", str(place.root / "images/val"), "--save-txt", "--conf", "0", "--max-det", "5", "--nosave"]
    run("detect", [*place.arguments("detect"), *found, "--name", "own"])
    labels = (place.project / "own/labels/c.txt").read_text()
    (place.root / "labels/val/c.txt").write_text(labels)


def test_val_measures_the_written_detector_as_quantize_did(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    lively_checkpoint(place)
    run("quantize", arguments(place, "--fake", "--layout", "csr"))
    measured = report(place.project)["measured"]
    assert measured["floats"] > 0.9
    assert measured["integer"] > 0.3
    artefact = place.root / "tiny_w8a8_integer_model"
    run("val", [*place.arguments("val")[:-4], "--weights", str(artefact), "--name", "again", "--batch-size", "1"])
    assert json.loads((place.project / "again/result.json").read_text())["AP"] == measured["integer"]
    assert "npz csr (written)" in caplog.text
    assert "weights in 8 bits, values in 8 to" in caplog.text


def test_detect_takes_the_artefact(place: Place) -> None:
    run("quantize", arguments(place))
    weights = ["--weights", str(place.root / "tiny_w8a8_integer_model"), "--conf", "0", "--name", "seen"]
    run("detect", [*place.arguments("detect"), *weights])
    assert sorted(path.name for path in (place.project / "seen").glob("*.jpg")) == ["a.jpg", "b.jpg"]


def test_classifier_in_integers_tells_real_digits_apart(digits: Path, tmp_path: Path) -> None:
    run("quantize", of_digits(digits, tmp_path, "--yaml", "--float-yaml", "--fake"))
    result = report(tmp_path / "runs")
    measured = result["measured"]
    assert measured["metric"] == "accuracy"
    assert measured["floats"] > 0.8
    assert measured["integer"] == pytest.approx(measured["floats"], abs=0.01)
    assert measured["fake"] == pytest.approx(measured["floats"], abs=0.01)
    sizes = {item["form"]: item for item in result["sizes"]}
    assert sizes["float32"]["num_bytes"] == 4 * 61_706
    assert sizes["npz dense"]["times_smaller"] > 3.5  # 4 but for scales, biases and the header
    written = tmp_path / CLASSIFIER_ARTEFACT
    assert sizes["npz dense"]["num_bytes"] == (written / "network.npz").stat().st_size
    assert {path.name for path in written.iterdir()} == {
        "metadata.json",
        "network.npz",
        "network.yaml",
        "float.yaml",
        "SHA256SUMS",
    }
    floats = load_float_yaml(written / "float.yaml")
    weights = load_checkpoint(digits / "best.pt").best_weights
    assert floats.keys() == weights.keys()
    assert all(np.array_equal(floats[name], weights[name].numpy()) for name in floats)
    assert load_classifier(written).metadata.image_chw == (1, 28, 28)


def test_sensitivity_is_a_table_a_file_and_a_picture(
    digits: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    run("quantize", of_digits(digits, tmp_path, "--sensitivity", "2", "8", "--sensitivity-images", "100"))
    rows = json.loads((tmp_path / "runs/exp/sensitivity.json").read_text())
    assert len(rows) == 10
    assert [row["loss"] for row in rows] == sorted((row["loss"] for row in rows), reverse=True)
    assert rows[0]["bits"] == 2
    assert {row["weight_bytes"] for row in rows if row["bits"] == 8} == {150, 2400, 48_000, 10_080, 840}
    assert (tmp_path / "runs/exp/sensitivity.png").stat().st_size > 1000
    assert "layer" in caplog.text


def test_budget_is_kept_by_the_bits_it_chooses(digits: Path, tmp_path: Path) -> None:
    budget = ["--budget", "35K", "--budget-bits", "4", "8", "--sensitivity-images", "100"]
    run("quantize", of_digits(digits, tmp_path, *budget))
    bits = report(tmp_path / "runs")["weight_bits"]
    sizes = dict(zip(bits, (150, 2400, 48_000, 10_080, 840), strict=True))
    assert sum(sizes[layer] * bits[layer] / 8 for layer in bits) <= 35_000
    assert set(bits.values()) == {4, 8}
    assert (tmp_path / "best_mixed_a8_integer_model/network.npz").stat().st_size < 36_000


def test_budget_out_of_reach_names_the_nearest(
    digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    message = refusal("quantize", of_digits(digits, tmp_path, "--budget", "20K"), capsys)
    assert "the weights take 30.7K in 4 bits, the fewest of --budget-bits; raise the budget to that" in message
    assert list(tmp_path.iterdir()) == []


def test_operator_that_integers_cannot_do_is_named(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    spec = ModelSpec.from_yaml("yolov5s-transformer.yaml", num_classes=3)
    torch.manual_seed(0)
    checkpoint = Checkpoint(spec=spec.to_dict(), names=NAMES, weights=build_model(spec).state_dict())
    save_checkpoint(checkpoint, place.weights)
    message = refusal("quantize", arguments(place), capsys)
    assert "model.9" in message


@pytest.mark.parametrize(
    ("more", "finding"),
    [
        (["--weight-bits", "1"], "weight_bits: got 1, expected a whole number from 2 to 16"),
        (["--activation-bits", "17"], "activation_bits: got 17, expected a whole number from 2 to 16"),
        (["--sensitivity", "8", "1"], "--sensitivity and --budget-bits: got 1, expected"),
        (["--calib-images", "0"], "--calib-images 0: expected at least 1"),
        (["--calib-images", "5"], "lower --calib-images to 2"),
        (["--percentile", "40"], "percentile is 40.0, expected more than 50"),
        (["--layers", "model.99*=8"], "matches none; known: input, model.0"),
        (["--layers", "input=4/"], "'input' matches none with weights; known: model.0"),
        (["--layers", "model.9"], '--layers model.9: expected such as "model.24*=8"'),
        (["--layers", "model.9*=20"], "--layers model.9*=20: bits of weights: got 20"),
        (["--budget", "1K"], "in 4 bits, the fewest of --budget-bits"),
        (["--budget", "lots"], "--budget lots: expected bytes, such as 500K"),
        (["--budget", "9K", "--sensitivity", "4"], "leave --sensitivity out"),
        (["--budget", "9K", "--layers", "model.9*=8"], "--layers takes PATTERN=/ACTIVATIONS"),
        (["--img", "60"], "--img-size 60: expected a multiple of the stride 16"),
        (["--img", "64", "64", "64"], "give one side, or height and width"),
        (["--threads", "0"], "--threads 0: expected at least 1"),
        (["--project", "README.md"], "README.md is not a writable folder; choose another folder"),
        (["--data", "nothing.npz"], "--data nothing.npz is for classification, --weights"),
        (["--weights", "nothing.pt"], "nothing.pt"),
    ],
)
def test_refusal_is_one_line_and_leaves_nothing(
    place: Place, capsys: pytest.CaptureFixture[str], more: list[str], finding: str
) -> None:
    before = place.snapshot()
    assert finding in refusal("quantize", arguments(place, *more), capsys)
    assert place.snapshot() == before


def test_detector_of_other_classes_is_refused(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    place.data.write_text("train: images/train\nval: images/val\nnc: 1\nnames: [cell]\n")
    message = refusal("quantize", arguments(place), capsys)
    wanted = f"{place.weights} has 3 classes but {place.data} has 1: only {place.weights} has 'RBC'"
    assert message.startswith(wanted)


def test_network_with_nan_is_refused_with_the_layer(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    model = lively_network()
    state = model.state_dict()
    state["model.0.conv.weight"] = torch.full_like(state["model.0.conv.weight"], torch.nan)
    save_checkpoint(Checkpoint(spec=model.spec.to_dict(), names=NAMES, weights=state), place.weights)
    assert "model.0" in refusal("quantize", arguments(place), capsys)


def test_classifier_for_other_pictures_is_refused(
    digits: Path, shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photographs = str(shared / "data/classification/cifar10_subset.npz")
    message = refusal("quantize", of_digits(digits, tmp_path, "--data", photographs), capsys)
    assert "has 10 classes and takes images of (1, 28, 28)" in message
    assert "use the data it was trained on" in message


def test_classifier_says_which_settings_change_nothing(
    digits: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    flags = ["--percentile", "99", "--budget-bits", "2", "--sensitivity-part", "weights", "--sensitivity-images", "5"]
    run("quantize", of_digits(digits, tmp_path, "--img-size", "64", *flags))
    assert "classification does not use them; without effect: --img-size" in caplog.text
    assert "without --observer percentile; without effect: --percentile" in caplog.text
    assert "without --sensitivity; without effect: --sensitivity-part" in caplog.text
    assert "without --sensitivity and --budget; without effect: --sensitivity-images" in caplog.text
    assert "without --budget; without effect: --budget-bits" in caplog.text
