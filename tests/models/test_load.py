"""Weights files of every kind, against numbers of the YOLOv5 code, and partial loading."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from models.detector import Detector, build_model
from models.load import create_model, load_model
from models.spec import MODELS_FOLDER, ModelSpec
from models.transfer import transfer_weights_
from utils.boxes.decode import decode_heads
from utils.errors import CheckpointError, ConfigError
from utils.storage.checkpoint import Checkpoint, save_checkpoint


def golden(shared: Path, name: str) -> tuple[torch.Tensor, dict[str, np.ndarray]]:
    """The input as (1, 3, H, W) in [0, 1], and the reference outputs."""
    with np.load(shared / "golden" / name) as file:
        arrays = dict(file)
    rgb = torch.from_numpy(arrays["image"][..., ::-1].copy())
    return rgb.permute(2, 0, 1)[None].float() / 255, arrays


def tiny_detector(*, num_classes: int = 2) -> Detector:
    torch.manual_seed(0)
    return build_model(ModelSpec.from_yaml("yolov5n", num_classes=num_classes))


def save_own(model: Detector, path: Path) -> Path:
    names = tuple(f"class{i}" for i in range(model.spec.num_classes))
    save_checkpoint(Checkpoint(spec=model.spec.to_dict(), names=names, weights=model.state_dict()), path)
    return path


def test_v5_state_dict_gives_the_reference_heads(shared: Path) -> None:
    loaded = load_model(shared / "weights/yolov5s_v5_coco_state_dict.pt")
    images, reference = golden(shared, "yolov5s_v5_forward.npz")
    with torch.no_grad():
        heads = loaded.model(images)
    for head, name in zip(heads, ("p3", "p4", "p5"), strict=True):
        np.testing.assert_allclose(head[0].numpy(), reference[name], rtol=0, atol=1e-4)
    decoded = decode_heads(heads, loaded.model.anchors, loaded.model.strides)[0].numpy()
    np.testing.assert_allclose(decoded, reference["decoded"], rtol=1e-5, atol=1e-4)
    assert loaded.names[:2] == ("person", "bicycle")


def test_v6_pickle_gives_the_reference_boxes(shared: Path) -> None:
    loaded = load_model(shared / "weights/yolov5n_v6_coco.pt")
    images, reference = golden(shared, "yolov5n_v6_forward.npz")
    with torch.no_grad():
        decoded = decode_heads(loaded.model(images), loaded.model.anchors, loaded.model.strides)[0].numpy()
    np.testing.assert_allclose(decoded, reference["decoded"], rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    ("file", "names", "layer"),
    [
        ("yolov5s_v6_coco.pt", 80, "SPPF"),
        ("yolov5s_v5_h2b_2classes.pt", ("Apoptosis", "Mitosis"), "SPP"),
    ],
)
def test_pickle_brings_names_anchors_and_strides(
    file: str, names: int | tuple[str, ...], layer: str, shared: Path
) -> None:
    loaded = load_model(shared / "weights" / file)
    assert names in (loaded.names, len(loaded.names))
    assert loaded.model.anchors[0, 0].tolist() == [10, 13]
    assert loaded.model.strides == (8, 16, 32)
    assert layer in {row.module for row in loaded.model.spec.layers}
    assert not loaded.model.training


def test_own_checkpoint_gives_back_the_same_network(tmp_path: Path) -> None:
    model = tiny_detector().eval()
    loaded = load_model(save_own(model, tmp_path / "own.pt"))
    images = torch.rand(1, 3, 64, 64)
    assert loaded.names == ("class0", "class1")
    assert loaded.checkpoint is not None
    with torch.no_grad():
        assert all(torch.equal(a, b) for a, b in zip(loaded.model(images), model(images), strict=True))


@pytest.mark.parametrize("name", ["yolov5n", "yolov5n6", "yolov5n-v6"])
def test_plain_state_dict_is_recognised_by_its_shapes(name: str, tmp_path: Path) -> None:
    model = build_model(ModelSpec.from_yaml(name, num_classes=3))
    torch.save(model.half().state_dict(), tmp_path / "state.pt")
    loaded = load_model(tmp_path / "state.pt")
    assert loaded.model.spec.layers == model.spec.layers
    assert loaded.names == ("class0", "class1", "class2")
    assert loaded.model.head.m[0].weight.dtype == torch.float32


def test_state_dict_of_another_network_is_refused(tmp_path: Path) -> None:
    torch.save({"fc.weight": torch.zeros(2)}, tmp_path / "resnet.pt")
    with pytest.raises(CheckpointError, match="unknown network"):
        load_model(tmp_path / "resnet.pt")


def test_state_dict_of_a_pruned_network_without_its_spec_is_refused(tmp_path: Path) -> None:
    state = tiny_detector().state_dict()
    state["model.0.conv.conv.weight"] = state["model.0.conv.conv.weight"][:9]
    torch.save(state, tmp_path / "pruned.pt")
    with pytest.raises(CheckpointError, match="match no YOLOv5"):
        load_model(tmp_path / "pruned.pt")


def test_checkpoint_that_does_not_fill_its_network_is_refused(tmp_path: Path) -> None:
    model = tiny_detector()
    state = model.state_dict()
    del state["model.1.conv.weight"]
    save_checkpoint(Checkpoint(spec=model.spec.to_dict(), names=("a", "b"), weights=state), tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match=r"model\.1\.conv\.weight: not in the weights"):
        load_model(tmp_path / "x.pt")


def test_other_class_count_keeps_box_and_objectness_rows() -> None:
    source, target = tiny_detector(num_classes=2), tiny_detector(num_classes=3)
    with torch.no_grad():
        for conv in source.head.m:
            conv.weight.add_(1)
    before = target.head.m[0].weight.detach().clone()
    report = transfer_weights_(target, source.state_dict())
    after, given = target.head.m[0].weight.detach().view(3, 8, -1), source.head.m[0].weight.detach().view(3, 7, -1)
    assert torch.equal(after[:, :5], given[:, :5])
    assert torch.equal(after[:, 5:], before.view(3, 8, -1)[:, 5:])
    assert report.partial == tuple(f"model.24.m.{i}.{kind}" for i in range(3) for kind in ("weight", "bias"))
    assert report.loaded == report.total - 6
    assert "box and objectness rows of 6" in report.as_text()


def test_other_width_loads_what_fits_and_says_what_did_not() -> None:
    target = build_model(ModelSpec.from_yaml("yolov5s", num_classes=2))
    report = transfer_weights_(target, tiny_detector().state_dict())
    skipped = dict(report.skipped)
    assert skipped["model.0.conv.conv.weight"] == "(16, 12, 3, 3) in the weights, (32, 12, 3, 3) here"
    assert report.loaded + len(skipped) + len(report.partial) == report.total
    assert "and" in report.as_text()


def test_training_starts_from_the_network_of_the_weights(tmp_path: Path) -> None:
    model = tiny_detector()
    model.set_anchors_(torch.arange(1.0, 19.0).view(3, 3, 2))
    created, report = create_model(None, save_own(model, tmp_path / "w.pt"), num_classes=5)
    assert report is not None
    assert created.spec.num_classes == 5
    assert created.spec.anchors == model.spec.anchors


def test_anchors_of_the_weights_fill_a_yaml_that_only_counts_them(tmp_path: Path) -> None:
    model = tiny_detector()
    model.set_anchors_(torch.arange(1.0, 19.0).view(3, 3, 2))
    weights = save_own(model, tmp_path / "w.pt")
    values = yaml.safe_load((MODELS_FOLDER / "yolov5n.yaml").read_text())
    (tmp_path / "auto.yaml").write_text(yaml.safe_dump({**values, "anchors": 3}))
    assert create_model(tmp_path / "auto.yaml", weights, num_classes=2)[0].spec.anchors == model.spec.anchors
    assert create_model("yolov5n", weights, num_classes=2)[0].spec.anchors[0][:2] == (10.0, 13.0)


def test_yaml_alone_starts_from_scratch() -> None:
    model, report = create_model("yolov5n", None, num_classes=4)
    assert report is None
    assert model.spec.num_classes == 4


def test_neither_yaml_nor_weights_is_refused() -> None:
    with pytest.raises(ConfigError, match="use --cfg"):
        create_model(None, None, num_classes=1)
