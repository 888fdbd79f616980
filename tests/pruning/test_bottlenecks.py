"""Detectors without some of their shortcut bottlenecks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cut_oracle import cuttable_ids, difference
from mask_oracle import lively, outputs
from test_masking import narrow

from models.detector import Detector, build_model
from models.spec import ModelSpec
from pruning.channels.graph import ChannelGraph
from pruning.channels.shortcuts import shortcut_bottleneck_names
from pruning.surgery.bottlenecks import drop_bottlenecks
from pruning.surgery.cut import cut
from utils.errors import PruningError

IMAGES = torch.rand(1, 3, 64, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def check_dropping(model: Detector, names: list[str]) -> Detector:
    """Compare with a network in which the branches of these blocks end in zero."""
    smaller = drop_bottlenecks(model, names)
    with torch.no_grad():
        for name in names:
            norm = model.get_submodule(f"{name}.cv2.bn")
            # The activation of zero is zero.
            norm.get_parameter("weight").zero_()
            norm.get_parameter("bias").zero_()
    assert difference(outputs(smaller, IMAGES), outputs(model, IMAGES)) < 1e-10
    rebuilt = build_model(ModelSpec.from_dict(smaller.spec.to_dict()))
    assert rebuilt.load_state_dict(smaller.state_dict()).missing_keys == []
    return smaller


def lively_detector(name: str) -> Any:
    torch.manual_seed(0)
    return lively(narrow(name))


def test_shortcut_bottlenecks_of_yolov5s_are_those_of_its_backbone() -> None:
    with torch.device("meta"):
        model = build_model(ModelSpec.from_yaml("yolov5s"))
    assert shortcut_bottleneck_names(model) == (
        "model.2.m.0", "model.4.m.0", "model.4.m.1", "model.4.m.2", "model.6.m.0", "model.6.m.1", "model.6.m.2",
    )  # fmt: skip


def test_later_bottlenecks_move_up() -> None:
    model = lively_detector("yolov5s")
    last = model.get_parameter("model.4.m.2.cv1.conv.weight").clone()
    smaller = check_dropping(model, ["model.4.m.0", "model.6.m.1"])
    assert torch.equal(smaller.get_parameter("model.4.m.1.cv1.conv.weight"), last)
    assert [smaller.spec.layers[index].number for index in (2, 4, 6)] == [1, 2, 2]
    assert len(shortcut_bottleneck_names(smaller)) == 5


@pytest.mark.parametrize("name", ["yolov5s", "yolov5-panet", "yolov3"])
def test_all_bottlenecks_may_go(name: str) -> None:
    model = lively_detector(name)
    smaller = check_dropping(model, list(shortcut_bottleneck_names(model)))
    assert shortcut_bottleneck_names(smaller) == ()
    assert sum(p.numel() for p in smaller.parameters()) < sum(p.numel() for p in model.parameters())


def test_chain_of_one_is_no_chain() -> None:
    model = lively_detector("yolov3")
    kept = model.get_parameter("model.4.1.cv1.conv.weight").clone()
    smaller = check_dropping(model, ["model.4.0"])
    assert torch.equal(smaller.get_parameter("model.4.cv1.conv.weight"), kept)
    assert smaller.spec.layers[4].number == 1


def test_layer_that_loses_its_only_bottleneck_passes_its_input_on() -> None:
    model = lively_detector("yolov3")
    smaller = check_dropping(model, ["model.2"])
    assert smaller.spec.layers[2].module == "Concat"
    assert ChannelGraph.of(smaller).norms_after["model.3.conv"][0].name == "model.3.bn"


def test_widths_of_a_pruned_network_move_with_their_blocks() -> None:
    model = lively_detector("yolov5s")
    graph = ChannelGraph.of(model)
    pruned: Any = cut(model, graph, graph.layers["model.4.m.1.cv1.conv"].output_ids[:3])
    smaller = check_dropping(pruned, ["model.4.m.0"])
    assert smaller.spec.widths == {"model.4.m.0.cv1": 13}
    check_dropping(lively_cut(model), ["model.4.m.1", "model.6.m.2"])


def lively_cut(model: Detector) -> Any:
    graph = ChannelGraph.of(model)
    return cut(model, graph, cuttable_ids(graph, seed=0))


def test_dropping_touches_nothing_and_shares_nothing() -> None:
    model = lively_detector("yolov5n")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.model[4].train()
    smaller = drop_bottlenecks(model, ["model.4.m.0"])
    assert smaller.model[4].training
    assert not smaller.model[2].training
    for tensor in smaller.state_dict().values():
        tensor.zero_()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_dropping_nothing_changes_nothing() -> None:
    model = lively_detector("yolov5n")
    same = drop_bottlenecks(model, [])
    assert same.spec == model.spec
    assert torch.equal(outputs(same, IMAGES), outputs(model, IMAGES))


def test_block_that_is_no_shortcut_is_refused_with_those_that_are() -> None:
    model = narrow("yolov5n")
    with pytest.raises(PruningError, match=r"model\.13\.m\.0, nose: no bottleneck.*known: model\.2\.m\.0, model\.4"):
        drop_bottlenecks(model, ["nose", "model.13.m.0", "model.2.m.0"])
