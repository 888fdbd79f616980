"""val.py with classifiers: checkpoints, pruned ones and artefacts give accuracy; what does not fit is one line."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from classifier_place import NAMES, SPEC, lenet, pruned_lenet, save, write_pictures
from PIL import Image
from refusal import make_place, refusal, run
from tiny_classes import write_class_folder
from torch import nn

from deploy.export import export
from deploy.job import ExportJob
from deploy.outputs.classifier import ClassifierSource
from engine.evaluation.classification import ClassificationScores, ClassificationSet
from engine.evaluation.evaluator import Evaluator
from models.classifiers import ClassifierSpec, build_classifier
from utils.datasets.classes.pictures import PictureSet, read_picture_file, write_picture_file
from utils.storage.checkpoint import load_checkpoint, save_checkpoint


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with best.pt and pictures.npz."""
    folder = tmp_path_factory.mktemp("classifier")
    write_pictures(folder / "pictures.npz")
    save(lenet(), folder / "best.pt")
    export(ExportJob(source=ClassifierSource(model=lenet(), image_chw=(1, 28, 28))), folder / "fine.torchscript")
    return folder


def arguments(place: Path, project: Path, *more: str) -> list[str]:
    weights = ["--weights", str(place / "best.pt"), "--data", str(place / "pictures.npz")]
    return [*weights, "--device", "cpu", "--project", str(project), *more]


def scores_of(model: nn.Module, pictures: PictureSet, spec: ClassifierSpec = SPEC) -> ClassificationScores:
    data = ClassificationSet(pictures=pictures, mean=spec.mean, std=spec.std)
    found = Evaluator(data=data, device=torch.device("cpu")).evaluate(model)
    assert isinstance(found, ClassificationScores)
    return found


def result_in(project: Path, name: str = "exp") -> dict[str, Any]:
    content: dict[str, Any] = json.loads((project / name / "result.json").read_text())
    return content


def test_network_of_one_answer_has_the_accuracy_of_that_class(
    place: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    model = lenet()
    last = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
    with torch.no_grad():
        last.weight.zero_()
        last.bias.copy_(torch.tensor([0.0, 1, 9, 2, 3, 4, -1]))
    run("val", arguments(place, tmp_path, "--weights", str(save(model, tmp_path / "always_c.pt")), "--verbose"))
    result = result_in(tmp_path)
    assert (result["accuracy"], result["top5"]) == pytest.approx((1 / 7, 5 / 7))
    assert (result["images"], result["split"]) == (70, "val")
    assert result["per_class"][2] == {"name": "c", "images": 10, "accuracy": 1.0}
    assert [item["accuracy"] for item in result["per_class"]] == [0, 0, 1, 0, 0, 0, 0]
    assert result["confusion"][2] == [10] * 7
    assert set(result["seconds"]) == {"preprocess", "inference", "metrics"}
    assert {path.name for path in (tmp_path / "exp").iterdir()} == {
        *("opt.yaml", "result.json", "confusion_matrix.png")
    }
    assert Image.open(tmp_path / "exp/confusion_matrix.png").width > 300
    assert "accuracy 0.1429, top-5 0.7143, loss " in caplog.text
    assert "       c       10 images, 1.0000 right" in caplog.text
    assert caplog.messages[-1].endswith(f"results in {tmp_path / 'exp'}")


def test_settings_of_a_run_can_be_given_back(place: Path, tmp_path: Path) -> None:
    run("val", arguments(place, tmp_path, "--task", "train"))
    run("val", ["--config", str(tmp_path / "exp/opt.yaml"), "--name", "again"])
    first, again = result_in(tmp_path), result_in(tmp_path, "again")
    assert (first["split"], first["images"]) == ("train", 20)
    assert (again["split"], again["confusion"]) == ("train", first["confusion"])


def test_pruned_checkpoint_and_its_artefact_have_the_accuracy_of_the_network(place: Path, tmp_path: Path) -> None:
    pruned = pruned_lenet()
    expected = scores_of(pruned, read_picture_file(place / "pictures.npz").test).accuracy
    source = ClassifierSource(model=pruned, image_chw=(1, 28, 28), names=NAMES, mean=SPEC.mean, std=SPEC.std)
    export(ExportJob(source=source), tmp_path / "best.torchscript")
    save(pruned, tmp_path / "pruned.pt")
    for name, weights in (("checkpoint", "pruned.pt"), ("artefact", "best.torchscript")):
        run("val", arguments(place, tmp_path, "--weights", str(tmp_path / weights), "--name", name))
        assert result_in(tmp_path, name)["accuracy"] == expected


def test_integer_artefact_has_the_accuracy_that_quantize_measured(place: Path, tmp_path: Path) -> None:
    quantise = ["--output", str(tmp_path), "--calib-images", "8", "--name", "quantised"]
    common = ["--weights", str(place / "best.pt"), "--data", str(place / "pictures.npz"), "--project", str(tmp_path)]
    run("quantize", [*common, *quantise])
    artefact = tmp_path / "best_w8a8_integer_model"
    run("val", arguments(place, tmp_path, "--weights", str(artefact), "--batch-size", "9"))
    assert result_in(tmp_path)["accuracy"] == result_in(tmp_path, "quantised")["measured"]["integer"]


def test_artefact_without_names_and_normalisation_takes_bytes_as_shares(place: Path, tmp_path: Path) -> None:
    run("val", arguments(place, tmp_path, "--weights", str(place / "fine.torchscript")))
    plain = ClassifierSpec(name="lenet5", num_classes=7, image_chw=(1, 28, 28), mean=(0.0,), std=(1.0,))
    scores = scores_of(lenet(), read_picture_file(place / "pictures.npz").test, plain)
    assert result_in(tmp_path)["loss"] == pytest.approx(scores.loss, rel=1e-5)


def test_real_photographs_are_measured(shared: Path, tmp_path: Path) -> None:
    data = shared / "data/classification/cifar10_subset.npz"
    pictures = read_picture_file(data).test
    spec = ClassifierSpec(name="vanilla", num_classes=10, image_chw=(3, 32, 32), mean=(0.5,) * 3, std=(0.25,) * 3)
    torch.manual_seed(0)
    model = build_classifier("vanilla").eval()
    weights = save(model, tmp_path / "vanilla.pt", spec, pictures.names)
    common = ["--data", str(data), "--device", "cpu", "--project", str(tmp_path), "--batch-size", "500"]
    run("val", ["--weights", str(weights), *common])
    result = result_in(tmp_path)
    assert result["images"] == len(pictures)
    assert result["accuracy"] == scores_of(model, pictures, spec).accuracy
    assert result["accuracy"] < result["top5"] <= 1


def test_flags_of_detectors_are_one_warning(place: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run("val", arguments(place, tmp_path, "--img-size", "320", "--conf", "0.1", "--save-txt"))
    warnings = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert warnings == ["classification does not use them; without effect: --img-size, --conf-thres, --save-txt"]


def test_other_names_of_classes_are_a_warning(place: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    weights = save(lenet(), tmp_path / "other.pt", names=tuple("hijklmn"))
    run("val", arguments(place, tmp_path, "--weights", str(weights)))
    assert "have different class names; classes are paired by position" in caplog.text


def test_classes_in_another_order_are_matched_by_name(
    place: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A folder lists its classes by name; the network, and its artefact, know them the other way round."""
    data = write_class_folder(tmp_path / "images", names=("b", "a"), side=28)  # b is bright on the left
    spec = ClassifierSpec(name="", num_classes=2, image_chw=(3, 28, 28), mean=(0.0,) * 3, std=(1.0,) * 3)
    model = nn.Sequential(nn.AdaptiveAvgPool2d((1, 2)), nn.Flatten(), nn.Linear(6, 2, bias=False))
    with torch.no_grad():  # logits are the brightness of the left and of the right half
        model[2].weight.copy_(torch.tensor([[1.0, 0] * 3, [0.0, 1] * 3]))
    for names, accuracy in ((("b", "a"), 1.0), (("a", "b"), 0.0), (("x", "y"), 0.0)):
        source = ClassifierSource(model=model, image_chw=(3, 28, 28), names=names, mean=spec.mean, std=spec.std)
        artefact = tmp_path / f"{names[0]}.torchscript"
        export(ExportJob(source=source), artefact)
        caplog.clear()
        run("val", arguments(place, tmp_path, "--weights", str(artefact), "--data", str(data), "--name", names[0]))
        result = result_in(tmp_path, names[0])
        assert (result["accuracy"], result["images"]) == (accuracy, 12)
        assert ("classes are paired by position" in caplog.text) == (names == ("x", "y"))
    assert [item["name"] for item in result_in(tmp_path, "b")["per_class"]] == ["b", "a"]


def test_checkpoint_with_its_classes_turned_has_the_same_accuracy(place: Path, tmp_path: Path) -> None:
    """Both the names of a checkpoint and its last layer are turned: each image gets the same class."""
    checkpoint = load_checkpoint(place / "best.pt")
    (weight,) = (name for name, value in checkpoint.weights.items() if value.ndim == 2 and len(value) == 7)
    turned = {name: checkpoint.weights[name].flip(0) for name in (weight, weight.replace("weight", "bias"))}
    weights = {**checkpoint.weights, **turned}
    save_checkpoint(replace(checkpoint, names=NAMES[::-1], weights=weights), tmp_path / "turned.pt")
    run("val", arguments(place, tmp_path, "--name", "straight"))
    run("val", arguments(place, tmp_path, "--weights", str(tmp_path / "turned.pt"), "--name", "turned"))
    straight, turned_result = result_in(tmp_path, "straight"), result_in(tmp_path, "turned")
    assert straight["accuracy"] == turned_result["accuracy"] > 0
    assert turned_result["per_class"] == straight["per_class"][::-1]
    assert np.array_equal(np.flip(np.array(turned_result["confusion"])), straight["confusion"])


@pytest.mark.parametrize(
    ("more", "finding"),
    [
        (
            ["--data", "wide.npz"],
            "has 7 classes and takes images of (1, 28, 28), but wide.npz has 7 and images of (1, 28, 30)",
        ),
        (["--data", "colour.npz"], "has 7 and images of (3, 28, 28); use the data it was trained on"),
        (["--data", "few.npz"], "has 6 and images of (1, 28, 28); use the data it was trained on"),
        (["--data", "text.npz"], "text.npz cannot be read"),
        (["--data", "nowhere.npz"], "nowhere.npz do not exist"),
        (["--weights", "nowhere.pt"], "nowhere.pt do not exist"),
        (["--weights", "text.npz"], "text.npz: unsupported format '.npz'; known: .pt, _ncnn_model, .onnx"),
        (["--weights", "none_integer_model"], "none_integer_model do not exist"),
        (["--weights", "empty_integer_model"], "empty_integer_model contains no readable metadata.json"),
        (["--weights", "odd_integer_model"], "metadata of odd_integer_model: mean: got ('a',), expected numbers"),
        (
            ["--weights", "tiny.pt"],
            "tiny.pt: got a detector, expected a classifier; give weights that fit the command",
        ),
        (["--weights", "fine.torchscript", "fine.torchscript"], "--weights: got 2 with --data"),
        (
            ["--data", "data.yaml"],
            "best.pt: got a classifier, expected a detector; give weights that fit the command and the data",
        ),
        (
            ["--data", "data.yaml", "--weights", "fine.torchscript"],
            "fine.torchscript: got a classifier, expected a detector; give weights that fit",
        ),
        (["--task", "study"], "--task study: it is for detectors; expected train, val, test"),
        (["--batch-size", "0"], "--batch-size 0: expected at least 1"),
        (["--threads", "0"], "--threads 0: expected at least 1"),
        (["--threads", "0", "--weights", "odd_integer_model"], "--threads 0: expected at least 1"),
    ],
)
def test_refusal_is_one_line_and_leaves_nothing(
    place: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    more: list[str],
    finding: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    make_place(tmp_path)
    for name, shape, count in (("wide", (28, 30), 7), ("colour", (28, 28, 3), 7), ("few", (28, 28), 6)):
        images, labels = np.zeros((7, *shape), np.uint8), np.arange(7) % count
        arrays = {"x_train": images, "y_train": labels, "x_test": images, "y_test": labels}
        write_picture_file(f"{name}.npz", arrays)
    Path("text.npz").write_text("text")
    shutil.copy(place / "fine.torchscript", "fine.torchscript")
    Path("empty_integer_model").mkdir()
    Path("odd_integer_model").mkdir()
    metadata = {"format": "_integer_model", "precision": "integer", "names": [], "num_classes": 7, "versions": {}}
    metadata |= {"image_chw": [1, 28, 28], "mean": ["a"], "std": [1.0], "fingerprint": ""}
    Path("odd_integer_model/metadata.json").write_text(json.dumps(metadata))
    assert finding in refusal("val", arguments(place, tmp_path / "runs", *more), capsys)
    assert not (tmp_path / "runs").exists()


def test_network_that_gives_no_numbers_is_refused(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = lenet()
    with torch.no_grad():
        next(model.parameters()).fill_(3e38)
    weights = save(model, tmp_path / "huge.pt")
    message = refusal("val", arguments(place, tmp_path, "--weights", str(weights)), capsys)
    assert message == f"{weights} gives outputs that are NaN or infinite; train it again, or give another file"


def test_weights_that_are_no_numbers_are_refused_by_name(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = lenet()
    with torch.no_grad():
        next(model.parameters()).view(-1)[3] = torch.nan
    weights = save(model, tmp_path / "nan.pt")
    message = refusal("val", arguments(place, tmp_path, "--weights", str(weights)), capsys)
    assert message.startswith(f"weights {weights}: 1 of 150 values of features.0.weight are NaN or infinite; use an")
