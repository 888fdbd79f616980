"""export.py with classifiers: artefacts of a pruned one are compared with it, and measured on its pictures."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from classifier_place import NAMES, SPEC, pruned_lenet, save, write_pictures
from refusal import refusal, run

from deploy.formats import load_classifier
from deploy.verification.logits import TOLERANCES, Tolerance
from engine.evaluation.classification import ClassificationSet
from engine.evaluation.evaluator import Evaluator
from utils.datasets.classes.pictures import read_picture_file


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with best.pt and pictures.npz."""
    write_pictures(tmp_path / "pictures.npz")
    save(pruned_lenet(), tmp_path / "best.pt")
    return tmp_path


def arguments(place: Path, *more: str) -> list[str]:
    own = ["--weights", str(place / "best.pt"), "--data", str(place / "pictures.npz")]
    return [*own, "--project", str(place / "runs"), "--verify-images", "5", *more]


def result_in(place: Path, name: str = "exp") -> dict[str, Any]:
    content: dict[str, Any] = json.loads((place / "runs" / name / "result.json").read_text())
    return content


def test_formats_are_written_beside_the_weights_and_have_its_accuracy(
    place: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("ncnn", reason="the ncnn package is not installed")
    pytest.importorskip("pnnx", reason="the pnnx package is not installed")
    caplog.set_level("INFO")
    run("export", arguments(place, "--include", "torchscript", "ncnn"))
    test = read_picture_file(place / "pictures.npz").test
    images = ClassificationSet(pictures=test, mean=SPEC.mean, std=SPEC.std)
    accuracy = Evaluator(data=images, device=torch.device("cpu")).evaluate(pruned_lenet()).score
    result = result_in(place)
    assert result["passed"] is True
    assert [item["format"] for item in result["reports"]] == [".torchscript", "_ncnn_model"]
    for item in result["reports"]:
        assert item["accuracy"] == [accuracy, accuracy]
        assert item["logits_error"] < 1e-4
    metadata = load_classifier(place / "best_ncnn_model").metadata
    assert (metadata.names, metadata.mean, metadata.std) == (NAMES, (0.5,), (0.25,))
    page = (place / "best_ncnn_model/README.md").read_text()
    assert "each value divided by 255, minus 0.5, divided by 0.25." in page
    assert "mean[1] = {127.5f}, norm[1] = {0.0156863f};" in page  # (x / 255 - 0.5) / 0.25 on bytes
    assert f"best.torchscript  fp32       {result['reports'][0]['logits_error']:.1e}" in caplog.text


def test_without_data_logits_of_noise_are_compared(place: Path) -> None:
    run("export", arguments(place, "--include", "torchscript", "--data", ""))
    (report,) = result_in(place)["reports"]
    assert report["accuracy"] is None
    assert report["logits_error"] < 1e-4


def test_one_command_writes_every_format_of_this_machine(place: Path, caplog: pytest.LogCaptureFixture) -> None:
    for package in ("ncnn", "pnnx", "onnx", "onnxruntime", "openvino"):
        pytest.importorskip(package, reason=f"the {package} package is not installed")
    caplog.set_level("INFO")
    run("export", arguments(place, "--include", "ncnn", "onnx", "openvino", "torchscript", "--batch-size", "3"))
    result = result_in(place)
    assert result["passed"] is True
    assert [item["format"] for item in result["reports"]] == [
        "_ncnn_model",
        ".onnx",
        "_openvino_model",
        ".torchscript",
    ]
    assert all(
        item["logits_error"] < 1e-4 and item["tolerance"]["logits_error"] == 1e-4 for item in result["reports"]
    )
    assert len({tuple(item["accuracy"]) for item in result["reports"]}) == 1
    assert [len(item["latency"]) for item in result["reports"]] == [2, 2, 2, 2]
    images = torch.randn(4, 1, 28, 28, generator=torch.Generator().manual_seed(3))
    expected = load_classifier(place / "best.pt")(images)
    for name in ("best_ncnn_model", "best.onnx", "best_openvino_model", "best.torchscript"):
        torch.testing.assert_close(load_classifier(place / name)(images), expected, rtol=1e-4, atol=1e-4)
        assert f"{name} " in caplog.text
    assert "accuracy: on the test images, - without --data" in caplog.text


def test_int8_search_of_a_classifier_measures_accuracy(place: Path, caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("ncnn", reason="the ncnn package is not installed")
    pytest.importorskip("pnnx", reason="the pnnx package is not installed")
    caplog.set_level("INFO")
    search = ["--include", "ncnn", "--int8", "--int8-search", "--calib-images", "4"]
    with suppress(SystemExit):  # labels of noise may differ; the search is what is asked about
        run("export", arguments(place, *search))
    assert "int8 with 0 more layers skipped: accuracy" in caplog.text
    assert "kept in floating point: " in caplog.text
    assert load_classifier(place / "best_int8_ncnn_model").precision == "int8"


def test_failed_verification_ends_with_1_and_the_numbers(
    place: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level("INFO")
    strict = Tolerance(logits_error=-1, accuracy_loss=0)
    monkeypatch.setitem(TOLERANCES, "fp32", strict)  # type: ignore[call-overload]
    with pytest.raises(SystemExit) as caught:
        run("export", arguments(place, "--include", "torchscript"))
    assert caught.value.code == 1
    assert "error of logits: " in caplog.text
    assert "at most -1 allowed" in caplog.text
    assert result_in(place)["passed"] is False


def test_int8_is_calibrated_on_the_training_pictures(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed; see requirements-export.txt")
    pytest.importorskip("onnx", reason="onnx is not installed; see requirements-export.txt")
    with suppress(SystemExit):  # labels of noise may differ; the logits are what is asked about
        run("export", arguments(place, "--include", "onnx", "--int8", "--calib-images", "20", "--name", "fine"))
    (report,) = result_in(place, "fine")["reports"]
    assert (place / "best_int8.onnx").is_file()
    assert 1e-4 < report["logits_error"] < 0.25
    message = refusal("export", arguments(place, "--include", "onnx", "--int8", "--calib-images", "21"), capsys)
    assert "lower --calib-images to 20" in message


def test_verify_only_refuses_the_artefact_of_other_weights(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("export", arguments(place, "--include", "torchscript"))
    run("export", arguments(place, "--include", "torchscript", "--verify-only", "--name", "again"))
    assert result_in(place, "again")["passed"] is True
    other = pruned_lenet()
    with torch.no_grad():
        next(other.parameters()).add_(1)
    save(other, place / "best.pt")
    message = refusal("export", arguments(place, "--include", "torchscript", "--verify-only"), capsys)
    assert "best.torchscript was exported from other weights; export it again" in message


@pytest.mark.parametrize(
    ("more", "finding"),
    [
        (["--include", "coreml"], "unknown format; choose from ncnn, onnx, openvino, tensorrt, torchscript"),
        (["--include", "torchscript", "--half"], "torchscript in fp16 is not supported; expected fp32"),
        (["--include", "torchscript", "--verify-only"], "best.torchscript does not exist"),
        (["--data", "data/bccd.yaml"], "--data data/bccd.yaml is for detection, --weights"),
    ],
)
def test_refusal_is_one_line_and_writes_nothing(
    place: Path, capsys: pytest.CaptureFixture[str], more: list[str], finding: str
) -> None:
    before = set(place.rglob("*"))
    assert finding in refusal("export", arguments(place, *more), capsys)
    assert set(place.rglob("*")) == before


def test_flags_of_detectors_are_told_of(place: Path, caplog: pytest.LogCaptureFixture) -> None:
    run("export", arguments(place, "--include", "torchscript", "--img", "320", "--dynamic"))
    assert "classification does not use them; without effect: --img-size, --dynamic" in caplog.text


def test_boxes_from_the_graph_are_for_detectors(place: Path, caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed; see requirements-export.txt")
    pytest.importorskip("onnx", reason="onnx is not installed; see requirements-export.txt")
    run("export", arguments(place, "--include", "onnx", "--nms", "--conf", "0.4"))
    assert "classification does not use them; without effect: --conf-thres, --nms" in caplog.text
    assert caplog.text.count("without effect") == 1
    assert result_in(place)["nms"] is None
    assert [path.name for path in place.glob("*.onnx")] == ["best.onnx"]
