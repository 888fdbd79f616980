"""ONNX with suppression inside: the boxes of our own decoding and suppression, image by image."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from exporting import export_arguments, export_onnx_with_nms, images_of, network
from torch import Tensor

from deploy.artefact.metadata import METADATA_NAME
from deploy.formats import load_runtime
from deploy.onnx.network import load_onnx
from deploy.onnx.nms import OUTPUTS, NmsSettings
from deploy.settings import RuntimeOptions
from models.detector import Detector
from models.fuse import fuse
from models.load import load_model
from utils.boxes.decode import decode_heads
from utils.boxes.nms import non_max_suppression
from utils.datasets.augmenting.letterbox import letterbox
from utils.datasets.reading.images import read_image
from utils.errors import CheckpointError, ConfigError

onnx = pytest.importorskip("onnx", reason="onnx is not installed; see requirements-export.txt")
onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed; see requirements-export.txt")

CPU = torch.device("cpu")
NMS = NmsSettings(conf=0.2, iou=0.3, max_det=50)


@pytest.fixture(scope="module")
def tiny() -> Detector:
    """Not trained, but sure to have found something."""
    model = network("tiny")
    with torch.no_grad():
        for name, parameter in model.head.named_parameters():
            if name.endswith("bias"):
                parameter.add_(4)
    return model


def written(model: Detector, path: Path, *, nms: NmsSettings = NMS, **settings: Any) -> Path:
    export_onnx_with_nms(model, path, **export_arguments(model, **settings), nms=nms)
    return path


def graph_boxes(path: Path, images: Tensor) -> list[Tensor]:
    """(n, 6) of each image: box, score, class, in the order of the file."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    boxes, scores, classes, ids = map(torch.from_numpy, session.run(None, {"images": images.numpy()}))
    assert bool((ids.diff() >= 0).all())
    rows = torch.cat((boxes, scores[:, None], classes[:, None].float()), 1)
    return [rows[ids == index] for index in range(len(images))]


@torch.inference_mode()
def own_boxes(model: Detector, images: Tensor, nms: NmsSettings) -> list[Tensor]:
    decoded = decode_heads(fuse(model)(images), model.anchors, model.strides)
    return non_max_suppression(decoded, conf=nms.conf, iou=nms.iou, max_det=nms.max_det)


def assert_same(found: list[Tensor], expected: list[Tensor], *, least: int) -> None:
    assert sum(map(len, expected)) >= least
    for ours, theirs in zip(expected, found, strict=True):
        assert ours.shape == theirs.shape
        assert torch.equal(ours[:, 5], theirs[:, 5])
        torch.testing.assert_close(theirs[:, :4], ours[:, :4], rtol=0, atol=1e-2)
        torch.testing.assert_close(theirs[:, 4], ours[:, 4], rtol=0, atol=1e-4)


@pytest.mark.parametrize("max_det", [1, 7, 300])
def test_boxes_of_a_batch_are_ours_and_cut_per_image(max_det: int, tiny: Detector, tmp_path: Path) -> None:
    nms = NmsSettings(conf=0.05, iou=0.3, max_det=max_det)
    images = images_of((32, 48), count=3)
    path = written(tiny, tmp_path / "best.onnx", nms=nms, batch_size=3)
    expected = own_boxes(tiny, images, nms)
    assert max(map(len, expected)) <= max_det
    assert_same(graph_boxes(path, images), expected, least=3)


def test_dynamic_file_takes_any_batch_and_size(tiny: Detector, tmp_path: Path) -> None:
    nms = NmsSettings(conf=0.05, iou=0.3)
    path = written(tiny, tmp_path / "best.onnx", nms=nms, dynamic=True)
    for count, hw in ((1, (32, 48)), (2, (96, 64))):
        images = images_of(hw, count=count)
        assert_same(graph_boxes(path, images), own_boxes(tiny, images, nms), least=count)


def test_boxes_on_photographs_are_ours(shared: Path, tmp_path: Path) -> None:
    model = load_model(shared / "weights" / "yolov5n_v6_coco.pt").model
    files = sorted((shared / "data" / "coco128_val" / "images").iterdir())[:3]
    frames = np.stack([letterbox(read_image(file), (256, 256))[0] for file in files])
    images = torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 255
    nms = NmsSettings()
    path = written(model, tmp_path / "best.onnx", nms=nms, image_hw=(256, 256), batch_size=len(files))
    assert_same(graph_boxes(path, images), own_boxes(model, images, nms), least=3)


def test_images_without_boxes_give_empty_outputs(tiny: Detector, tmp_path: Path) -> None:
    path = written(tiny, tmp_path / "best.onnx", nms=NmsSettings(conf=1.0), batch_size=2)
    assert [len(rows) for rows in graph_boxes(path, images_of((32, 48), count=2))] == [0, 0]


def test_file_names_its_outputs_thresholds_and_network(tiny: Detector, tmp_path: Path) -> None:
    graph = onnx.load(written(tiny, tmp_path / "best.onnx"))
    assert [item.name for item in graph.graph.input] == ["images"]
    assert tuple(item.name for item in graph.graph.output) == OUTPUTS == ("boxes", "scores", "class_ids", "image_ids")
    properties = {item.key: json.loads(item.value) for item in graph.metadata_props}
    assert properties["nms.json"] == {"conf": 0.2, "iou": 0.3, "max_det": 50}
    assert properties[METADATA_NAME]["names"] == ["class 0", "class 1", "class 2"]


@pytest.mark.parametrize("opset", [11, 12, 13])
@pytest.mark.parametrize("dynamic", [True, False])
def test_old_opsets_give_the_same_boxes(dynamic: bool, opset: int, tiny: Detector, tmp_path: Path) -> None:
    nms = NmsSettings(conf=0.05, iou=0.3)
    images = images_of((32, 48), count=2)
    path = written(tiny, tmp_path / "best.onnx", nms=nms, opset=opset, dynamic=dynamic, batch_size=2)
    assert {item.version for item in onnx.load(path).opset_import} == {opset}
    assert_same(graph_boxes(path, images), own_boxes(tiny, images, nms), least=2)


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_smaller_precisions_decode_in_float(precision: str, tiny: Detector, tmp_path: Path) -> None:
    images = images_of((32, 48))
    nms = NmsSettings(conf=0.05)
    arguments = export_arguments(tiny, precision=precision)
    export_onnx_with_nms(tiny, tmp_path / "best.onnx", **arguments, nms=nms, calibration=[images])
    found, expected = graph_boxes(tmp_path / "best.onnx", images), own_boxes(tiny, images, nms)
    assert abs(len(found[0]) - len(expected[0])) <= 0.2 * len(expected[0])
    assert found[0][0, :4].tolist() == pytest.approx(expected[0][0, :4].tolist(), abs=2)


def test_our_runtimes_refuse_boxes_in_one_line(tiny: Detector, tmp_path: Path) -> None:
    path = written(tiny, tmp_path / "best.onnx")
    for load in (load_onnx, load_runtime):
        with pytest.raises(CheckpointError, match=r"returns boxes, not raw heads; run it with onnxruntime itself"):
            load(path, device=CPU, options=RuntimeOptions())


@pytest.mark.parametrize(
    ("wrong", "finding"),
    [
        ({"conf": 1.5}, r"conf: got 1\.5, expected 0 to 1"),
        ({"iou": -0.1}, r"iou: got -0\.1"),
        ({"max_det": 0}, r"max_det: got 0, expected at least 1"),
    ],
)
def test_thresholds_out_of_range_are_refused(wrong: dict[str, float], finding: str) -> None:
    with pytest.raises(ConfigError, match=finding):
        NmsSettings(**wrong)  # type: ignore[arg-type]


def test_failed_export_leaves_no_file(tiny: Detector, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--opset 9: expected 11 to 20"):
        written(tiny, tmp_path / "best.onnx", opset=9)
    assert list(tmp_path.iterdir()) == []
