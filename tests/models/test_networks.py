"""Every shipped YAML: it builds, runs, has the known size, and can be traced."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from models.builder import BLOCKS, PLAIN
from models.detector import Detector, build_model
from models.fuse import fuse
from models.layer_table import MODULE_RULES
from models.spec import MODELS_FOLDER, ModelSpec

NAMES = sorted(path.stem for path in MODELS_FOLDER.glob("*.yaml"))
# Small enough to run with real numbers in a test.
SMALL = ["yolov5n", "yolov5n6", "yolov5n-v6", "yolov3-tiny", "yolov5s-transformer", "yolov5s-mobilenetv3-small-075"]


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def on_meta(name: str) -> Detector:
    """Shapes without numbers: even the largest network takes no memory and no time."""
    with torch.device("meta"):
        return build_model(ModelSpec.from_yaml(name))


def test_all_variants_are_shipped() -> None:
    sizes = {f"yolov5{size}{end}" for size in "nsmlx" for end in ("", "6", "-v6")}
    hub = {f"yolov5-{end}" for end in ("fpn", "panet", "p2", "p6", "p7")}
    others = {"yolov3", "yolov3-spp", "yolov3-tiny", "yolov5s-transformer", "yolov5s-mobilenetv3-small-075"}
    assert set(NAMES) == sizes | hub | others


def test_every_known_module_can_be_built() -> None:
    assert set(MODULE_RULES) == {*BLOCKS, *PLAIN, "Detect"}


@pytest.mark.parametrize("name", NAMES)
def test_yaml_gives_heads_of_the_strides_it_says(name: str) -> None:
    model = on_meta(name)
    heads = model(torch.zeros(2, 3, 256, 128, device="meta"))
    cells = [(2, model.head.num_anchors, 256 // s, 128 // s, 85) for s in model.strides]
    assert [tuple(head.shape) for head in heads] == cells


@pytest.mark.parametrize("name", SMALL)
def test_network_runs_forward_and_backward(name: str) -> None:
    torch.manual_seed(0)
    model = build_model(ModelSpec.from_yaml(name, num_classes=2))
    sum(head.sum() for head in model(torch.rand(2, 3, 64, 64))).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("yolov5s", 7_276_605),
        ("yolov5m", 21_375_645),
        ("yolov5n-v6", 1_872_157),
        ("yolov5s-v6", 7_235_389),
        ("yolov3", 61_949_149),
        ("yolov3-spp", 62_998_749),
        ("yolov3-tiny", 8_852_366),
    ],
)
def test_parameter_count_is_the_published_one(name: str, parameters: int) -> None:
    assert count(on_meta(name)) == parameters


@pytest.mark.parametrize(("name", "parameters"), [("yolov5l", 47_025_981), ("yolov5x", 87_730_285)])
def test_fused_parameter_count_is_the_published_one(name: str, parameters: int) -> None:
    assert count(fuse(on_meta(name))) == parameters


@pytest.mark.parametrize(
    ("name", "millions"), [("yolov5s6", 12.7), ("yolov5m6", 35.9), ("yolov5l6", 77.3), ("yolov5x6", 141.8)]
)
def test_p6_networks_have_the_published_size(name: str, millions: float) -> None:
    assert round(count(on_meta(name)) / 1e6, 1) == millions


@pytest.mark.parametrize("name", NAMES)
def test_every_network_can_be_traced(name: str) -> None:
    graph = torch.fx.symbolic_trace(on_meta(name)).graph
    assert any(node.op == "call_module" and str(node.target).endswith(".m.0") for node in graph.nodes)


@pytest.mark.parametrize("name", ["yolov5n", "yolov5s-transformer", "yolov5s-mobilenetv3-small-075"])
def test_traced_network_gives_the_same_numbers_at_any_size(name: str) -> None:
    torch.manual_seed(0)
    model = build_model(ModelSpec.from_yaml(name, num_classes=2)).eval()
    traced = torch.fx.symbolic_trace(model)
    with torch.no_grad():
        for hw in ((64, 64), (96, 128)):
            images = torch.rand(1, 3, *hw)
            assert all(torch.equal(a, b) for a, b in zip(traced(images), model(images), strict=True))


def test_train_and_eval_mode_give_the_same_form() -> None:
    model = build_model(ModelSpec.from_yaml("yolov5n", num_classes=2))
    images = torch.rand(2, 3, 64, 64)
    assert [h.shape for h in model.train()(images)] == [h.shape for h in model.eval()(images)]


def test_parameter_names_are_those_of_the_checkpoint_format() -> None:
    names = set(on_meta("yolov5s").state_dict())
    expected = {
        "model.0.conv.conv.weight",
        "model.4.m.0.cv1.bn.bias",
        "model.8.cv2.conv.weight",
        "model.24.m.0.weight",
        "model.24.anchors",
    }
    assert expected <= names


def test_batch_norms_have_the_constants_of_yolov5() -> None:
    norms = [m for m in on_meta("yolov5-panet").modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms
    assert {(norm.eps, norm.momentum) for norm in norms} == {(1e-3, 0.03)}
