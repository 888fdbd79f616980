"""export.py from a checkpoint to files that are compared with it, and what it refuses."""

from __future__ import annotations

import json
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from refusal import Place, make_place, refusal, run

from deploy.verification.heads import TOLERANCES, Tolerance
from models.load import load_model
from utils.storage.checkpoint import Checkpoint, save_checkpoint

for package in ("ncnn", "pnnx"):
    pytest.importorskip(package, reason=f"the {package} package is not installed")


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return make_place(tmp_path)


def arguments(place: Place, *more: str) -> list[str]:
    common = ["--weights", str(place.weights), "--img", "64", "--verify-images", "1", "--threads", "1"]
    return [*common, "--project", str(place.project), *more]


def report(place: Place) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((place.project / "exp/result.json").read_text())
    return content


def test_formats_are_written_beside_the_weights_and_compared(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    run("export", arguments(place, "--include", "ncnn", "torchscript", "--data", str(place.data), "--workers", "0"))
    assert (place.root / "tiny_ncnn_model/model.ncnn.bin").is_file()
    assert (place.root / "tiny.torchscript").is_file()
    result = report(place)
    assert result["passed"] is True
    assert [item["format"] for item in result["reports"]] == ["_ncnn_model", ".torchscript"]
    for item in result["reports"]:
        assert max(head["largest"] for head in item["heads"]) < 1e-4
        assert len(item["ap"]) == 2
    assert "tiny.torchscript" in caplog.text
    assert "passed" in caplog.text
    assert all(item["boxes"]["expected"] == 0 for item in result["reports"])  # the network is untrained
    assert "no boxes to compare: on these images the network finds none above 0.25" in caplog.text


def test_classes_of_another_order_are_told_of(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    text = place.data.read_text()
    place.data.write_text(text.replace("'RBC', 'WBC'", "'WBC', 'RBC'"))
    assert place.data.read_text() != text
    caplog.set_level("INFO")
    run("export", arguments(place, "--include", "torchscript", "--data", str(place.data), "--workers", "0"))
    assert "order their classes differently; classes are matched by name" in caplog.text


def test_settings_that_change_nothing_are_told(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    run(
        "export",
        arguments(place, "--include", "torchscript", "--opset", "13", "--conf", "0.4", "--calib-images", "9"),
    )
    assert "--include torchscript; without effect: --opset" in caplog.text
    assert "without --int8; without effect: --calib-images" in caplog.text
    assert "without --nms; without effect: --conf" in caplog.text


def test_verify_only_refuses_artefact_of_other_weights(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    run("export", arguments(place, "--include", "torchscript"))
    run("export", arguments(place, "--include", "torchscript", "--verify-only", "--name", "again"))
    model = load_model(place.weights).model
    for parameter in model.parameters():
        parameter.data += 1
    checkpoint = Checkpoint(spec=model.spec.to_dict(), names=("a", "b", "c"), weights=model.state_dict())
    save_checkpoint(checkpoint, place.weights)
    message = refusal("export", arguments(place, "--include", "torchscript", "--verify-only"), capsys)
    assert "exported from other weights; export it again" in message


def test_failed_verification_ends_with_1_and_the_numbers(
    place: Place, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level("INFO")
    strict = Tolerance(head_error=-1, unmatched=0, score=0, ap_loss=0)
    monkeypatch.setitem(TOLERANCES, "fp32", strict)  # type: ignore[call-overload]
    with pytest.raises(SystemExit) as caught:
        run("export", arguments(place, "--include", "torchscript"))
    assert caught.value.code == 1
    assert "FAILED" in caplog.text
    assert "at most -1 allowed" in caplog.text
    assert report(place)["passed"] is False


def test_int8_search_tells_which_layers_stay_in_floats(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    search = ["--int8", "--int8-search", "--calib-images", "2", "--data", str(place.data), "--workers", "0"]
    with suppress(SystemExit):  # boxes of a network with random numbers may differ; the search is what is asked about
        run("export", arguments(place, *search))
    assert "int8 with 0 more layers skipped: mAP" in caplog.text
    assert "kept in floating point: " in caplog.text
    assert (place.root / "tiny_int8_ncnn_model/model.ncnn.bin").is_file()


def test_boxes_from_the_graph_are_compared_too(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("onnx", reason="onnx is not installed; see requirements-export.txt")
    caplog.set_level("INFO")
    run("export", arguments(place, "--include", "onnx", "--nms"))
    result = report(place)
    assert result["passed"] is True
    assert result["nms"]["passed"] is True
    assert "tiny_nms.onnx  boxes from the graph: 100.0% of" in caplog.text
    (place.root / "tiny_nms.onnx").unlink()
    with pytest.raises(SystemExit):
        run("export", arguments(place, "--include", "onnx", "--nms", "--verify-only", "--name", "again"))


@pytest.mark.parametrize(
    ("more", "finding"),
    [
        (["--img", "60"], "multiple of the stride"),
        (["--img", "0"], "--img-size 0: expected a multiple of the stride"),
        (["--img", "1000000"], "at most 16384"),
        (["--threads", "0"], "--threads 0: expected at least 1"),
        (["--include", "onnx", "--nms", "--conf", "2"], "--conf-thres 2.0: expected 0 to 1"),
        (
            ["--include", "coreml"],
            "--include coreml: unknown format; choose from ncnn, onnx, openvino, tensorrt, torchscript",
        ),
        (["--img", "64", "64", "64"], "give one side, or height and width"),
        (["--int8"], "--int8 learns ranges from images; give --data"),
        (["--half", "--int8", "--data", "data.yaml"], "choose one"),
        (["--int8-skip", "model.0*"], "--int8-skip says what int8 leaves out; give --int8"),
        (["--int8-search"], "--int8-search finds what int8 leaves out; give --int8"),
        (["--nms"], "--nms is for ONNX"),
        (["--include", "torchscript", "--half"], "torchscript in fp16 is not supported; expected fp32"),
        (["--include", "torchscript", "--verify-only"], "tiny.torchscript does not exist; leave --verify-only"),
        (["--int8", "--data", "DATA", "--calib-images", "5"], "lower --calib-images to 2"),
        (["--data", "data/coco128.yaml"], "classes"),
        (["--include", "onnx", "--opset", "10"], "--opset 10: expected 11 to 20"),
        (["--include", "openvino", "--int8", "--data", "DATA", "--opset", "12"], "of int8; give --opset 13"),
    ],
)
def test_refusal_is_one_line_and_leaves_no_artefact(
    place: Place, capsys: pytest.CaptureFixture[str], more: list[str], finding: str
) -> None:
    before = set(place.snapshot())
    resolved = [str(place.data) if item == "DATA" else item for item in more]
    message = refusal("export", arguments(place, *resolved), capsys)
    assert finding in message
    assert set(place.snapshot()) == before


def test_export_is_repeated_to_the_same_files(place: Place) -> None:
    run("export", arguments(place))
    folder = place.root / "tiny_ncnn_model"
    first = {path.name: path.read_bytes() for path in folder.iterdir()}
    shutil.rmtree(folder)
    run("export", arguments(place, "--name", "again"))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == first
