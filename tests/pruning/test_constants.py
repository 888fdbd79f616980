"""Constants of cut channels, which go on into what reads them."""

from __future__ import annotations

import copy
import logging
from typing import Any

import numpy as np
import pytest
import torch
from cut_oracle import cuttable_ids, difference, image_for
from mask_oracle import lively, outputs
from test_masking import narrow
from torch import Tensor, nn

from models.blocks.blocks import BottleneckCSP
from models.classifiers import DenseLayer
from models.widths import Width, Widths
from pruning.channels.graph import ChannelGraph
from pruning.channels.ids import IntArray
from pruning.surgery.constants import dropped_constants, zero_scales_
from pruning.surgery.cut import cut
from pruning.surgery.slicing import stays_by_id


def test_constant_goes_into_the_bias_of_its_reader_as_counted_by_hand() -> None:
    model: Any = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.ReLU(), nn.Conv2d(2, 1, 2)).eval()
    with torch.no_grad():
        model[1].bias.copy_(torch.tensor([0.0, 3.0]))
        model[3].weight.copy_(torch.tensor([[[[1.0, 1], [1, 1]], [[1, 2], [3, 4]]]]))
        model[3].bias.fill_(0.5)
    graph = ChannelGraph.of(model, image_chw=(1, 4, 4))
    dropped = graph.layers["0"].output_ids[1:]
    # relu(3) times 1 + 2 + 3 + 4.
    assert cut(model, graph, dropped)[3].bias.item() == 30.5  # type: ignore[index]
    assert cut(model, graph, dropped, carry=False)[3].bias.item() == 0.5  # type: ignore[index]


def test_constant_goes_into_the_mean_of_the_norm_behind_a_reader_without_a_bias() -> None:
    model: Any = nn.Sequential(
        nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.Conv2d(2, 3, 1, bias=False), nn.BatchNorm2d(3), nn.Conv2d(3, 1, 1)
    ).eval()
    with torch.no_grad():
        model[1].bias.copy_(torch.tensor([-2.0, 0.0]))
    graph = ChannelGraph.of(model, image_chw=(1, 4, 4))
    pruned: Any = cut(model, graph, graph.layers["0"].output_ids[:1])
    torch.testing.assert_close(pruned[3].running_mean, 2 * model[2].weight[:, 0, 0, 0].detach())


class Valid(nn.Module):
    """No padding anywhere: what joins, pools, resizes, adds and flattens, with and without biases."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = self.block(3, 6)
        self.left, self.right = self.block(6, 5), self.block(6, 5)
        self.add = self.block(6, 5)
        self.bare_left, self.bare_right = nn.Conv2d(10, 4, 1, bias=False), nn.Conv2d(5, 4, 1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.wide = nn.Sequential(nn.Conv2d(8, 8, 3, groups=8, bias=False), nn.BatchNorm2d(8), nn.Hardswish())
        self.dense = DenseLayer(8, 3)
        self.dense.conv = nn.Conv2d(8, 3, 1)
        self.biased = nn.Sequential(nn.Conv2d(11, 4, 1), nn.Tanh())
        self.head = nn.Sequential(
            nn.Linear(16, 6, bias=False), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2)
        )

    @staticmethod
    def block(cin: int, cout: int) -> nn.Sequential:
        return nn.Sequential(nn.Conv2d(cin, cout, 3, bias=False), nn.BatchNorm2d(cout), nn.SiLU())

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        right = self.right(x)
        joined = torch.cat((self.left(x), right + self.add(x)), 1)
        small = nn.functional.interpolate(nn.functional.max_pool2d(joined[:, :, 1:-1, 1:-1], 2), scale_factor=2)
        x = self.norm(torch.cat((self.bare_left(small), self.bare_right(right)[:, :, 1:-1, 1:-1]), 1))
        x = self.biased(self.dense(self.wide(torch.relu(x))))
        return self.head(torch.flatten(nn.functional.adaptive_avg_pool2d(x, 2), 1))


def without_scales(model: nn.Module, graph: ChannelGraph, dropped: IntArray) -> nn.Module:
    """A copy in which these channels are their shifts."""
    silent = copy.deepcopy(model)
    zero_scales_(silent, graph, stays_by_id(graph, dropped))
    return silent


@pytest.mark.parametrize("seed", range(5))
def test_without_padding_nothing_is_lost(seed: int) -> None:
    torch.manual_seed(seed)
    model = lively(Valid())
    graph = ChannelGraph.of(model, image_chw=(3, 16, 16))
    dropped = cuttable_ids(graph, seed=seed)
    images = image_for(model, graph)
    expected = outputs(without_scales(model, graph, dropped), images)
    assert difference(outputs(cut(model, graph, dropped), images), expected) < 1e-10
    assert difference(outputs(cut(model, graph, dropped, carry=False), images), expected) > 1e-3
    assert difference(outputs(cut(model.float(), graph, dropped), images.float()), expected) < 1e-5


def test_with_padding_only_borders_differ() -> None:
    torch.manual_seed(0)
    model = lively(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.SiLU(), nn.Conv2d(4, 2, 3, padding=1)))
    graph = ChannelGraph.of(model, image_chw=(3, 8, 8))
    dropped = graph.layers["0"].output_ids[1:3]
    images = image_for(model, graph)
    expected, actual = without_scales(model, graph, dropped)(images), cut(model, graph, dropped)(images)
    torch.testing.assert_close(actual[:, :, 1:-1, 1:-1], expected[:, :, 1:-1, 1:-1])
    assert not torch.allclose(actual[:, :, 0], expected[:, :, 0])


@pytest.mark.parametrize("name", ["yolov5n", "yolov5-panet", "yolov5s-transformer"])
def test_sparse_detector_changes_less_with_constants_carried(name: str) -> None:
    torch.manual_seed(0)
    model = lively(narrow(name))
    graph = ChannelGraph.of(model)
    dropped = cuttable_ids(graph, seed=0)
    sparse = without_scales(model, graph, dropped)
    images = torch.rand(1, 3, 256, 256, dtype=torch.float64)
    expected = outputs(sparse, images)
    with_, without = (outputs(cut(sparse, graph, dropped, carry=carry), images) for carry in (True, False))
    assert (with_ - expected).abs().mean() < 0.5 * (without - expected).abs().mean()


def constants_of(model: nn.Module, name: str, *positions: int) -> dict[str, list[float]]:
    """What readers see when some outputs of a layer go, on images of 3 x 8 x 8."""
    graph = ChannelGraph.of(model, image_chw=(3, 8, 8))
    dropped = graph.layers[name].output_ids[list(positions)]
    return {
        key: value.tolist() for key, value in dropped_constants(model, graph, stays_by_id(graph, dropped)).items()
    }


class Gated(nn.Module):
    """A channel times a gate that depends on the image."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2)
        self.gate = nn.Conv2d(2, 2, 1)
        self.last = nn.Conv2d(2, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x))
        return self.last(x * torch.sigmoid(self.gate(x.mean((2, 3), keepdim=True))))


def test_gated_channel_is_no_constant_but_what_its_gate_reads_is(caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(0)
    model: Any = lively(Gated())
    seen = constants_of(model, "conv", 0)
    assert seen["gate"] == [pytest.approx(model.norm.bias[0].item()), 0]
    assert np.isnan(seen["last"][0])
    graph = ChannelGraph.of(model, image_chw=(3, 8, 8))
    with caplog.at_level(logging.INFO):
        pruned: Any = cut(model, graph, graph.layers["conv"].output_ids[:1])
    assert torch.equal(pruned.last.bias, model.last.bias)
    assert "1 cut input channels" in caplog.text


def test_channel_without_a_norm_is_its_bias() -> None:
    model: Any = nn.Sequential(nn.Conv2d(3, 2, 1), nn.ReLU(), nn.Conv2d(2, 1, 1))
    with torch.no_grad():
        model[0].bias.copy_(torch.tensor([0.75, -1.0]))
    assert constants_of(model, "0", 0, 1) == {"2": [0.75, 0]}


def test_shift_that_no_bias_and_no_norm_can_take_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    model = nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2), nn.Conv2d(2, 2, 1, bias=False), nn.ReLU()).eval()
    nn.init.ones_(model[1].bias)  # type: ignore[arg-type]
    graph = ChannelGraph.of(model, image_chw=(3, 8, 8))
    with caplog.at_level(logging.INFO):
        pruned = cut(model, graph, graph.layers["0"].output_ids[:1])
    assert "1 cut input channels" in caplog.text
    assert "2.bias" not in pruned.state_dict()


def test_carrying_touches_no_random_state_and_no_statistics() -> None:
    model = narrow("yolov5n").train()
    graph = ChannelGraph.of(model)
    before, state = [buffer.clone() for buffer in model.buffers()], torch.get_rng_state()
    cut(model, graph, cuttable_ids(graph, seed=0))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(map(torch.equal, model.buffers(), before))


def norms(model: nn.Module, chw: tuple[int, int, int]) -> dict[str, list[tuple[str, list[int]]]]:
    found = ChannelGraph.of(model, image_chw=chw).norms_after
    return {name: [(norm.name, norm.sources.tolist()) for norm in behind] for name, behind in found.items()}


def test_norm_behind_a_join_takes_each_layer_at_its_place() -> None:
    block = BottleneckCSP(Width(4, 4), 4, 0, widths=Widths({}, path=""))
    assert norms(block, (4, 8, 8)) == {
        "cv1.conv": [("cv1.bn", [0, 1])],
        "cv3": [("bn", [0, 1, -1, -1])],
        "cv2": [("bn", [-1, -1, 0, 1])],
        "cv4.conv": [("cv4.bn", [0, 1, 2, 3])],
    }


def test_every_norm_of_a_dense_network_takes_what_layers_before_it_made() -> None:
    model = nn.Sequential(nn.Conv2d(3, 2, 1, bias=False), DenseLayer(2, 1), DenseLayer(3, 1), nn.BatchNorm2d(4))
    assert norms(model, (3, 8, 8)) == {
        "0": [("1.norm", [0, 1]), ("2.norm", [0, 1, -1]), ("3", [0, 1, -1, -1])],
        "1.conv": [("2.norm", [-1, -1, 0]), ("3", [-1, -1, 0, -1])],
        "2.conv": [("3", [-1, -1, -1, 0])],
    }


@pytest.mark.parametrize(
    "between",
    [nn.ReLU(), nn.ZeroPad2d(1), nn.AvgPool2d(3, padding=1), nn.Conv2d(4, 4, 1), nn.LPPool2d(2, 2)],
    ids=lambda module: type(module).__name__,
)
def test_norm_behind_what_does_not_shift_takes_nothing(between: nn.Module) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1, bias=False), between, nn.BatchNorm2d(4))
    assert "0" not in norms(model, (3, 8, 8))


@pytest.mark.parametrize(
    "between",
    [nn.Identity(), nn.AvgPool2d(2), nn.MaxPool2d(3, padding=1), nn.Upsample(scale_factor=2)],
    ids=lambda module: type(module).__name__,
)
def test_norm_behind_what_shifts_takes_the_layer(between: nn.Module) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1, bias=False), between, nn.BatchNorm2d(4))
    assert norms(model, (3, 8, 8)) == {"0": [("2", [0, 1, 2, 3])]}


class SharedNorm(nn.Module):
    """One norm behind two layers: its mean serves both."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 4, 1, bias=False), nn.Conv2d(3, 4, 1, bias=False)
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.left(x)) + self.norm(self.right(x))


def test_norm_that_runs_twice_takes_nothing() -> None:
    assert norms(SharedNorm(), (3, 8, 8)) == {}


class Values(nn.Module):
    """A layer without a bias whose values are read by a norm, and under another name by something else."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 5, 1, bias=False)
        self.norm, self.last = nn.BatchNorm2d(5), nn.Conv2d(5, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.second(torch.sigmoid(self.first(x)))
        z: Tensor = self.last(torch.relu(self.norm(y)) + y.data)
        return z


def test_shift_is_not_carried_into_a_norm_if_the_values_are_read_by_another_name() -> None:
    assert "second" not in ChannelGraph.of(Values(), image_chw=(3, 8, 8)).norms_after
