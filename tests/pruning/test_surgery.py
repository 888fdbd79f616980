"""What surgery does to single layers and to all that belongs to a network besides its weights."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from cut_oracle import cuttable_ids, image_for
from mask_oracle import lively, outputs
from tiny import TINY_CFG
from torch import Tensor, nn

from models.detector import Detector, build_model
from models.fuse import fuse
from models.layer_table import LayerSpec
from models.spec import ModelSpec
from pruning.channels.graph import ChannelGraph
from pruning.surgery.cut import apply_plan, cut
from pruning.surgery.plan import PruningPlan
from utils.errors import PruningError


def tiny_detector() -> Detector:
    torch.manual_seed(0)
    return build_model(ModelSpec.from_yaml(TINY_CFG))


def dropping(graph: ChannelGraph, name: str, *positions: int) -> Any:
    """Ids of some outputs of a layer."""
    return graph.layers[name].output_ids[list(positions)]


def test_cut_takes_rows_of_what_makes_a_channel_and_columns_of_what_reads_it() -> None:
    model: Any = nn.Sequential(nn.Conv2d(1, 3, 1), nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 2, 1))
    graph = ChannelGraph.of(model, image_chw=(1, 4, 4))
    pruned: Any = cut(model, graph, dropping(graph, "0", 1), carry=False)
    for name in ("weight", "bias"):
        assert torch.equal(getattr(pruned[0], name), getattr(model[0], name)[[0, 2]])
        assert torch.equal(getattr(pruned[1], name), getattr(model[1], name)[[0, 2]])
    assert torch.equal(pruned[3].weight, model[3].weight[:, [0, 2]])
    assert torch.equal(pruned[3].bias, model[3].bias)
    assert (pruned[0].out_channels, pruned[1].num_features, pruned[3].in_channels) == (2, 2, 2)
    assert model[0].out_channels == 3


def test_flattened_positions_of_a_channel_go_with_it() -> None:
    model: Any = nn.Sequential(nn.Conv2d(1, 2, 1), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(8, 3))
    graph = ChannelGraph.of(model, image_chw=(1, 4, 4))
    pruned: Any = cut(model, graph, dropping(graph, "0", 0), carry=False)
    assert torch.equal(pruned[3].weight, model[3].weight[:, 4:])
    assert pruned[3].in_features == 4


def test_depthwise_convolution_loses_groups() -> None:
    model: Any = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 8, 3, groups=4), nn.Conv2d(8, 1, 1))
    graph = ChannelGraph.of(model)
    pruned: Any = cut(model, graph, dropping(graph, "0", 0, 2), carry=False)
    assert torch.equal(pruned[1].weight, model[1].weight[[2, 3, 6, 7]])
    assert (pruned[1].groups, pruned[1].in_channels, pruned[1].out_channels) == (2, 2, 4)
    assert pruned(torch.rand(1, 3, 8, 8)).shape == (1, 1, 6, 6)


def test_convolution_of_groups_loses_whole_groups() -> None:
    model: Any = nn.Sequential(nn.Conv2d(3, 6, 1), nn.Conv2d(6, 9, 3, groups=3), nn.Conv2d(9, 1, 1))
    graph = ChannelGraph.of(model)
    pruned: Any = cut(model, graph, dropping(graph, "0", 2), carry=False)
    assert torch.equal(pruned[0].weight, model[0].weight[[0, 1, 4, 5]])
    assert torch.equal(pruned[1].weight, model[1].weight[[0, 1, 2, 6, 7, 8]])
    assert torch.equal(pruned[2].weight, model[2].weight[:, [0, 1, 2, 6, 7, 8]])
    assert (pruned[1].groups, pruned[1].in_channels, pruned[1].out_channels) == (2, 4, 6)
    assert pruned(torch.rand(1, 3, 8, 8)).shape == (1, 1, 6, 6)


@pytest.mark.parametrize("carry", [True, False])
def test_empty_cut_is_bit_identical(carry: bool) -> None:
    for model in (tiny_detector().eval(), nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).eval()):
        graph = ChannelGraph.of(model)
        same = cut(model, graph, np.array([], dtype=np.int64), carry=carry)
        assert type(same) is type(model)
        assert list(same.state_dict()) == list(model.state_dict())
        assert all(map(torch.equal, same.state_dict().values(), model.state_dict().values()))
        assert torch.equal(outputs(same, image_for(model, graph)), outputs(model, image_for(model, graph)))


def test_empty_cut_keeps_the_spec() -> None:
    model = tiny_detector()
    same: Any = cut(model, ChannelGraph.of(model), np.array([], dtype=np.int64))
    assert same.spec == model.spec


def test_network_is_not_touched_and_shares_no_memory_with_the_cut_one() -> None:
    model: Any = lively(tiny_detector())
    graph = ChannelGraph.of(model)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    pruned = cut(model, graph, cuttable_ids(graph, seed=0))
    for tensor in pruned.state_dict().values():
        tensor.zero_()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_modes_gradients_precision_and_constants_of_norms_stay() -> None:
    model: Any = tiny_detector().double().train()
    model.model[0].eval()
    model.model[1].bn.eps, model.model[1].bn.momentum = 0.25, 0.5
    model.model[2].conv.weight.requires_grad_(False)
    model.set_anchors_(model.anchors + 1.5)
    graph = ChannelGraph.of(model)
    pruned: Any = cut(model, graph, cuttable_ids(graph, seed=0))
    assert [layer.training for layer in pruned.model[:2]] == [False, True]
    assert (pruned.model[1].bn.eps, pruned.model[1].bn.momentum) == (0.25, 0.5)
    frozen = {name for name, parameter in pruned.named_parameters() if not parameter.requires_grad}
    assert frozen == {"model.2.conv.weight"}
    assert {tensor.dtype for tensor in pruned.parameters()} == {torch.float64}
    assert torch.equal(pruned.anchors, model.anchors)
    assert (pruned.spec.anchors, pruned.strides) == (model.spec.anchors, model.strides)


class WithHiddenBuffer(nn.Module):
    """A buffer that the state dict leaves out."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.last = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1)
        self.register_buffer("scale", torch.tensor(3.0), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(self.conv(x))) * self.scale


def test_buffer_outside_of_the_state_dict_comes_along() -> None:
    model = WithHiddenBuffer()
    model.scale.fill_(7)
    graph = ChannelGraph.of(model)
    pruned: Any = cut(model, graph, dropping(graph, "conv", 1))
    assert pruned.scale.item() == 7
    assert pruned.scale is not model.scale


def test_spec_lists_only_widths_that_changed() -> None:
    model = tiny_detector()
    graph = ChannelGraph.of(model)
    ids = np.concatenate([dropping(graph, "model.0.conv", 0, 3), dropping(graph, "model.3.cv1.conv", 1)])
    pruned: Any = cut(model, graph, ids)
    # The shortcut ties cv1 to the end of the bottleneck.
    assert pruned.spec.widths == {"model.0": 6, "model.3.cv1": 7, "model.3.m.0.cv2": 7}
    again = ChannelGraph.of(pruned)
    twice: Any = cut(pruned, again, dropping(again, "model.0.conv", 0))
    assert twice.spec.widths == {**pruned.spec.widths, "model.0": 5}


def with_row(index: int, row: LayerSpec) -> Detector:
    spec = ModelSpec.from_yaml(TINY_CFG)
    return build_model(replace(spec, layers=(*spec.layers[:index], row, *spec.layers[index + 1 :])))


def test_depthwise_row_gets_other_groups() -> None:
    model = with_row(1, LayerSpec(source=-1, number=1, module="Conv", args=(16, 3, 2, None, 8)))
    graph = ChannelGraph.of(model)
    pruned: Any = cut(model, graph, dropping(graph, "model.0.conv", 0, 5))
    assert pruned.spec.layers[1].args == (16, 3, 2, None, 6)
    assert pruned.spec.widths == {"model.0": 6, "model.1": 12}
    assert build_model(pruned.spec).model[1].conv.groups == 6  # type: ignore[union-attr]


def test_detector_keeps_the_groups_of_its_layer_list() -> None:
    graph = ChannelGraph.of(with_row(1, LayerSpec(source=-1, number=1, module="Conv", args=(16, 3, 2, None, 4))))
    reasons = {graph.protected.get(channel) for channel in graph.layers["model.1.conv"].output_ids.tolist()}
    assert reasons == {"model.1.conv is a convolution of groups, which the layer list counts"}
    assert not graph.is_prunable(graph.layers["model.0.conv"].output_ids).any()


def test_depthwise_convolution_inside_a_block_is_refused() -> None:
    model = with_row(3, LayerSpec(source=-1, number=1, module="C3", args=(16, False, 8)))
    graph = ChannelGraph.of(model)
    with pytest.raises(PruningError, match=r"model\.3\.m\.0\.cv2\.conv: C3 takes the groups .* protect this layer"):
        cut(model, graph, dropping(graph, "model.3.m.0.cv1.conv", 0))


def test_channel_that_must_stay_is_refused_with_the_reason() -> None:
    model = tiny_detector()
    graph = ChannelGraph.of(model)
    with pytest.raises(PruningError, match=r"layer model\.9\.m\.0: channel 2 must be kept \(output\); do not"):
        cut(model, graph, dropping(graph, "model.9.m.0", 2))


def test_layer_without_channels_is_refused_by_name() -> None:
    model = tiny_detector()
    graph = ChannelGraph.of(model)
    with pytest.raises(PruningError, match=r"layer model\.1\.conv: the cut keeps 0 of 8 channels"):
        cut(model, graph, graph.layers["model.1.conv"].output_ids)


def test_unknown_id_is_refused() -> None:
    model = tiny_detector()
    with pytest.raises(PruningError, match="channel 99999 is produced by no layer"):
        cut(model, ChannelGraph.of(model), np.array([99999]))


def test_network_that_its_spec_does_not_tell_is_refused() -> None:
    model = fuse(tiny_detector())
    graph = ChannelGraph.of(model)
    with pytest.raises(PruningError, match="not the one its layer list describes.*before it is fused"):
        cut(model, graph, dropping(graph, "model.1.conv", 0))


def test_plan_is_applied_to_its_own_network_only() -> None:
    model = tiny_detector()
    graph = ChannelGraph.of(model)
    dropped = cuttable_ids(graph, seed=0)
    plan = PruningPlan.of(model, graph, dropped)
    expected, pruned = cut(model, graph, dropped), apply_plan(model, plan)
    assert pruned.spec == expected.spec  # type: ignore[union-attr]
    assert all(map(torch.equal, pruned.state_dict().values(), expected.state_dict().values()))
    with pytest.raises(PruningError, match="made for another network"):
        apply_plan(pruned, plan)


def test_plan_removes_bottlenecks_first() -> None:
    model = tiny_detector()
    plan = PruningPlan.of(model, ChannelGraph.of(model), np.array([], dtype=np.int64))
    plan = replace(plan, bottlenecks=("model.3.m.0",), keep={"model.3.cv1.conv": (0, 2)})
    pruned: Any = apply_plan(model, plan)
    # Without its bottleneck cv1 is tied to nothing.
    assert pruned.spec.widths == {"model.3.cv1": 2}
    assert pruned.spec.layers[3].number == 0


def test_plan_with_bottlenecks_needs_a_detector() -> None:
    model = WithHiddenBuffer()
    plan = PruningPlan.of(model, ChannelGraph.of(model), np.array([], dtype=np.int64))
    with pytest.raises(PruningError, match="the network is a WithHiddenBuffer"):
        apply_plan(model, replace(plan, bottlenecks=("model.3.m.0",)))
