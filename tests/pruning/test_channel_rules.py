"""What single operators do to channels, between a convolution that makes four and one that reads them."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mask_oracle import deviation, outputs
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from pruning.channels.graph import ChannelGraph
from pruning.surgery.cut import cut
from utils.errors import PruningError

Operator = Callable[[Tensor], Tensor]


class Between(nn.Module):
    """`first` makes four channels, an operator follows, `last` reads what comes out."""

    def __init__(self, operator: Operator, *, read: int = 4) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.operator = operator
        self.last = nn.Conv2d(read, 2, 1)
        self.scale = nn.Parameter(torch.ones(1, 4, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.operator(self.first(x)))


class Scaled(Between):
    """Each channel times a number that belongs to no layer."""

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x) * self.scale)


class SqueezeWithViews(nn.Module):
    """A gate as it is most often written: by sizes read from the map."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(4, 3), nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        b, c, _, _ = x.size()
        y = torch.relu(self.fc1(F.adaptive_avg_pool2d(x, 1).view(b, c)))
        return x * torch.sigmoid(self.fc2(y)).view(b, c, 1, 1).expand_as(x)


class SpatialGate(nn.Module):
    """One number per position for all channels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.conv(x))


class AddedMap(SpatialGate):
    """One number per position added to all channels, which then are not zero with their scales."""

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x)


class Branch(nn.Module):
    """Cannot be traced: what it does depends on numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return y if y.sum() > 0 else x


class OwnArithmetic(nn.Conv2d):
    """Inherits `forward`, yet computes something else."""

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return super()._conv_forward(x, weight - weight.mean(1, keepdim=True), bias)


class Standardised(nn.Conv2d):
    """Computes with weights of mean zero."""

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight - self.weight.mean((1, 2, 3), keepdim=True), self.bias)


PASSING: dict[str, Operator] = {
    "relu": torch.relu,
    "hardswish": F.hardswish,
    "module": nn.Sequential(nn.SiLU(), nn.MaxPool2d(2), nn.ZeroPad2d(1), nn.Upsample(scale_factor=2)),
    "subclass": type("OwnReLU", (nn.ReLU,), {})(),
    "max_pool": lambda x: F.max_pool2d(x, 2),
    "interpolate": lambda x: F.interpolate(x, scale_factor=2),
    "interpolate to another's size": lambda x: F.interpolate(F.avg_pool2d(x, 2), size=x.shape[2:]),
    "pad": lambda x: F.pad(x, (1, 1, 0, 2)),
    "scalars": lambda x: 2 * x / 3 - 1,
    "in place": lambda x: x.clone().mul_(2).clamp(min=-1),
    "positions": lambda x: x[..., ::2, 1:],
    "one image": lambda x: x[:1],
    "mean": lambda x: x.mean((2, 3), keepdim=True),
    "mean and back": lambda x: x.mean(-1).mean(-1).unsqueeze(-1).unsqueeze(-1),
    "mean by numpy's names": lambda x: x.mean(axis=(2, 3), keepdims=True),
    "positions joined along an axis": lambda x: torch.cat((x, x), axis=3),  # type: ignore[call-overload]
    "one slope": lambda x: F.prelu(x, torch.tensor([0.2]).to(x.dtype)),
    "limits of one value": lambda x: torch.clamp(x, torch.tensor(-1.0), torch.tensor(1.0)).pow(torch.tensor(2.0)),
    "squeeze": lambda x: F.adaptive_avg_pool2d(x, 1).squeeze(-1).unsqueeze(-1),
    "turned": lambda x: x.permute(0, 1, 3, 2).transpose(2, 3),
    "view": lambda x: x.view(x.shape[0], x.shape[1], -1, 1),
    "flat positions": lambda x: x.flatten(2).unsqueeze(-1),
    "sum of halves of the map": lambda x: torch.cat((x[:, :, :4], x[:, :, 4:]), 2),
    "split of positions": lambda x: x.chunk(2, 3)[0] + torch.split(x, 4, 3)[1],
    "power of tensors": lambda x: x ** torch.relu(x),
    "limits of each channel": lambda x: x.clamp(min=x.mean((2, 3), keepdim=True)),
    "slopes": nn.PReLU(4),
    "channels behind positions and back": lambda x: x.permute(0, 2, 3, 1).transpose(1, 2).permute(0, 3, 2, 1),
    "fixed view": lambda x: x.view(-1, 4, 8, 8),
    "flattened and back": lambda x: x.flatten(2).view_as(x),
    "softmax of positions": lambda x: x.flatten(2).softmax(-1).view(x.size(0), -1, 8, 8),
    "statistics": lambda x: x / (x.std((2, 3), keepdim=True) + 1),
    "choice by comparison": lambda x: torch.where(x > 0, x, torch.zeros_like(x)),
    "data": lambda x: x.data * 2,
    "turned by attribute": lambda x: x.mT.mT + x.flatten(2).mT.mT.reshape(x.shape),
    "moved along positions": lambda x: torch.roll(x, 1, dims=3).flip(2),
    "one of the positions": lambda x: x.unbind(3)[0].unsqueeze(3),
}


@pytest.mark.parametrize("name", PASSING)
def test_operator_passes_channels_on(name: str) -> None:
    graph = ChannelGraph.of(Between(PASSING[name]), image_chw=(3, 8, 8))
    np.testing.assert_array_equal(graph.layers["last"].input_ids, graph.layers["first"].output_ids)
    assert len(graph.prunable_ids) == 4


@pytest.mark.parametrize("name", PASSING)
def test_cut_around_an_operator_computes_what_is_left(name: str) -> None:
    torch.manual_seed(0)
    model = Between(PASSING[name]).double().eval()
    graph = ChannelGraph.of(model, image_chw=(3, 8, 8))
    pruned = cut(model, graph, graph.layers["first"].output_ids[1:3], carry=False)
    model.last.weight.data[:, 1:3] = 0
    images = torch.rand(2, 3, 8, 8, dtype=torch.float64)
    assert pruned.get_parameter("last.weight").shape[1] == 2
    torch.testing.assert_close(outputs(pruned, images), outputs(model, images), rtol=1e-12, atol=1e-12)


def hooked() -> nn.Module:
    layer = nn.Conv2d(4, 4, 1)
    layer.register_forward_hook(lambda module, args, output: output * 2)
    return layer


UNKNOWN: dict[str, tuple[Operator, int, str]] = {
    "function": (lambda x: torch.cumsum(x, 1), 4, "torch.cumsum in the network: unknown operator"),
    "method": (lambda x: x.cumsum(1), 4, "cumsum in the network: unknown operator"),
    "module": (nn.LocalResponseNorm(2), 4, r"operator \(LocalResponseNorm\): unknown operator"),
    "own arithmetic": (OwnArithmetic(4, 4, 1), 4, r"operator \(OwnArithmetic\): .* arithmetic of its own"),
    "hooks": (hooked(), 4, r"operator \(Conv2d\): it has forward hooks"),
    "parametrisation": (weight_norm(nn.Conv2d(4, 4, 1)), 4, "weights are computed by parametrisations"),
    "computed weight": (Standardised(4, 4, 1), 4, "conv2d in operator: its weight is computed"),
    "softmax": (lambda x: torch.softmax(x, 1), 4, "softmax works across channels"),
    "group norm": (nn.GroupNorm(2, 4), 4, "operator works across channels"),
    "layer norm": (nn.LayerNorm([4, 8, 8]), 4, "operator works across channels"),
    "numbers of each channel": (lambda x: x * torch.ones(4, 1, 1), 4, "mul.*a tensor of one value per channel"),
    "slopes of a function": (lambda x: F.prelu(x, torch.ones(4)), 4, "prelu.*slope per channel"),
    "overwritten forward": (type("Own", (nn.ReLU,), {"forward": lambda s, x: x.flip(1)})(), 4, "flip.*on channels"),
    "moved along channels": (lambda x: x.roll(1, 1), 4, "roll in the network: it works on channels"),
    "turned": (lambda x: x.permute(0, 2, 3, 1), 8, r"last \(Conv2d\): its channels lie along dimension 3 and not 1"),
    "transposed": (lambda x: x.transpose(1, 2), 8, "its channels lie along dimension 2 and not 1"),
    "pooled channels": (lambda x: F.avg_pool2d(x.permute(0, 2, 3, 1), 2), 8, "as if they were positions"),
    "attribute": (lambda x: x.real, 4, "the attribute real is unknown"),
    "count in a computation": (lambda x: x / x.shape[1], 4, "channel count is used in a computation"),
    "count of all values": (lambda x: x / x.shape[1:].numel(), 4, "channel count is used in a computation"),
    "count for another tensor": (lambda x: x * x.new_full((x.shape[1], 1, 1), 2.0), 4, "new_full.*channel count"),
    "mean of channels": (lambda x: x.mean(1, keepdim=True), 1, "mean works across channels"),
    "mean of all": (lambda x: x - x.mean(), 4, "mean works across channels"),
    "product over channels": (
        lambda x: x * (x.flatten(2).mT @ x.flatten(2)).mean(),
        4,
        "matmul works across channels",
    ),
    "one map in each channel": (AddedMap(), 4, "add puts one map into each of the channels"),
    "indices of channels": (lambda x: x[:, torch.tensor([1, 0, 3, 2])], 4, "getitem.*other means than a slice"),
    "dimensions that do not match": (lambda x: x + x.mean((2, 3)).new_ones(8), 4, "new_ones.*unknown operator"),
    "data dependent": (Branch(), 4, r"operator \(Branch\): unknown operator"),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_unknown_use_keeps_channels_and_says_why(name: str) -> None:
    operator, read, reason = UNKNOWN[name]
    graph = ChannelGraph.of(Between(operator, read=read), image_chw=(3, 8, 8))
    (found,) = {graph.protected.get(channel) for channel in graph.layers["first"].output_ids.tolist()}
    assert found is not None
    assert re.search(reason, found)


def test_stored_numbers_per_channel_are_channels_of_what_they_scale() -> None:
    graph = ChannelGraph.of(Scaled(nn.Identity()))
    assert len(graph.prunable_ids) == 4
    np.testing.assert_array_equal(graph.stored["scale"].ids, graph.layers["first"].output_ids)
    assert graph.stored["scale"].axis == 1


def test_shuffle_ties_the_channels_that_are_at_one_place_in_their_groups() -> None:
    graph = ChannelGraph.of(
        Between(lambda x: x.view(x.shape[0], 2, -1, 8, 8).transpose(1, 2).flatten(1, 2)), image_chw=(3, 8, 8)
    )
    first, second, third, fourth = graph.layers["first"].output_ids
    assert (first, second) == (third, fourth)
    assert graph.layers["last"].input_ids.tolist() == [first, first, second, second]
    assert len(graph.prunable_ids) == 2


def test_added_channels_are_nobodys() -> None:
    graph = ChannelGraph.of(Between(lambda x: F.pad(x, (0, 0, 0, 0, 1, 2)), read=7), image_chw=(3, 8, 8))
    read = graph.layers["last"].input_ids
    np.testing.assert_array_equal(read[1:5], graph.layers["first"].output_ids)
    assert graph.is_prunable(read).tolist() == [False, *[True] * 4, False, False]


def test_coordinates_are_joined_to_channels() -> None:
    grid = torch.linspace(0, 1, 8).view(1, 1, 8, 1).expand(2, 1, 8, 8)
    graph = ChannelGraph.of(Between(lambda x: torch.cat((x, grid), 1), read=5), image_chw=(3, 8, 8))
    assert graph.is_prunable(graph.layers["last"].input_ids).tolist() == [True] * 4 + [False]


class Widths(Between):
    """Divides by a width that a layer tells."""

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.operator(self.first(x)) / self.first.out_channels) * self.operator.in_channels


def test_width_that_the_code_reads_stays() -> None:
    model = Widths(nn.Sequential(nn.Conv2d(4, 4, 1)))
    model.operator.in_channels = 1
    graph = ChannelGraph.of(model)
    (reason,) = {graph.protected[channel] for channel in graph.layers["first"].output_ids.tolist()}
    assert reason == "the code reads first.out_channels"
    assert graph.is_prunable(graph.layers["operator.0"].output_ids).all()
    assert (model.first.out_channels, "out_channels" in vars(model.first)) == (4, True)


@pytest.mark.parametrize(
    ("wrapped", "advice"),
    [
        (nn.DataParallel(Between(nn.ReLU())), "DataParallel cannot be pruned; give its .module"),
        (torch.compile(Between(nn.ReLU()), backend="eager"), "OptimizedModule cannot be pruned; give its ._orig_mod"),
        (
            torch.jit.trace(Between(nn.ReLU()).eval(), torch.rand(1, 3, 8, 8)),
            "give the network that it was made from",
        ),
    ],
)
def test_network_inside_of_another_form_is_refused_by_name(wrapped: nn.Module, advice: str) -> None:
    with pytest.raises(PruningError, match=advice):
        ChannelGraph.of(wrapped)


class TwoInputs(nn.Module):
    """Adds what two layers make of two images."""

    def __init__(self) -> None:
        super().__init__()
        self.colour, self.depth, self.last = nn.Conv2d(3, 4, 1), nn.Conv2d(1, 4, 1), nn.Conv2d(4, 2, 1)

    def forward(self, colour: Tensor, depth: Tensor) -> Tensor:
        return self.last(torch.relu(self.colour(colour) + self.depth(depth)))


def test_network_of_two_inputs_is_cut_when_both_shapes_are_given() -> None:
    model = TwoInputs()
    with pytest.raises(PruningError, match=r"takes 2 inputs \(colour, depth\), 1 given; give .* input_shapes"):
        ChannelGraph.of(model)
    graph = ChannelGraph.of(model, input_shapes=[(3, 8, 8), (1, 8, 8)])
    np.testing.assert_array_equal(graph.layers["colour"].output_ids, graph.layers["depth"].output_ids)
    assert cut(model, graph, graph.prunable_ids[:1]).depth.out_channels == 3


@pytest.mark.parametrize(("gate", "count"), [(SqueezeWithViews(), 4 + 3), (SpatialGate(), 4)])
def test_gate_is_followed(gate: nn.Module, count: int) -> None:
    torch.manual_seed(0)
    model = Between(gate)
    graph = ChannelGraph.of(model, image_chw=(3, 8, 8))
    assert len(graph.prunable_ids) == count
    images = torch.rand(2, 3, 8, 8, dtype=torch.float64)
    assert deviation(model, graph, images, graph.prunable_ids[1:3]) < 1e-12


def test_one_channel_spread_over_many_stays() -> None:
    graph = ChannelGraph.of(Between(SpatialGate()))
    (single,) = graph.layers["operator.conv"].output_ids
    assert graph.protected[int(single)] == "mul broadcasts it over 4 channels"


def test_split_slice_and_chunk_take_parts_and_are_listed() -> None:
    def swap(x: Tensor) -> Tensor:
        three, one = torch.split(x, [3, 1], 1)
        return torch.cat((one, three[:, 1:], three[:, :1]), 1)

    graph = ChannelGraph.of(Between(swap))
    made = graph.layers["first"].output_ids
    np.testing.assert_array_equal(graph.layers["last"].input_ids, made[[3, 1, 2, 0]])
    assert [part.node for part in graph.parts] == ["split", "getitem_2", "getitem_3"]
    assert [list(map(len, part.output_ids)) for part in graph.parts] == [[3, 1], [2], [1]]


def test_depthwise_convolution_repeats_each_channel_as_often_as_it_multiplies() -> None:
    graph = ChannelGraph.of(Between(nn.Conv2d(4, 8, 3, padding=1, groups=4), read=8))
    made = graph.layers["first"].output_ids
    np.testing.assert_array_equal(graph.layers["last"].input_ids, np.repeat(made, 2))
    assert len(graph.prunable_ids) == 4


def test_group_of_a_convolution_is_one_channel_with_all_that_it_reads() -> None:
    graph = ChannelGraph.of(Between(nn.Conv2d(4, 6, 1, groups=2), read=6))
    layer = graph.layers["operator"]
    one, other = graph.prunable_ids
    assert layer.kind == "grouped"
    np.testing.assert_array_equal(graph.layers["first"].output_ids, [one, one, other, other])
    np.testing.assert_array_equal(layer.output_ids, [one, one, one, other, other, other])


def test_group_that_reads_a_protected_channel_is_kept() -> None:
    class Whole(Between):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            y = self.first(x)
            return self.last(self.operator(y)), y[:, :1]

    graph = ChannelGraph.of(Whole(nn.Conv2d(4, 6, 1, groups=2), read=6))
    kept = graph.is_prunable(graph.layers["operator"].output_ids)
    assert kept.tolist() == [False, False, False, True, True, True]


def test_concatenation_along_an_axis_is_one_along_a_dimension() -> None:
    graph = ChannelGraph.of(Between(lambda x: torch.cat((x, x[:, :2]), axis=1), read=6))  # type: ignore[call-overload]
    made = graph.layers["first"].output_ids
    np.testing.assert_array_equal(graph.layers["last"].input_ids, made[[0, 1, 2, 3, 0, 1]])


def test_addition_ties_and_the_tie_carries_protection() -> None:
    graph = ChannelGraph.of(nn.Sequential(nn.Conv2d(3, 3, 1), Shortcut()), image_chw=(3, 8, 8))
    assert set(graph.protected.values()) == {"input", "output"}
    assert len(graph.prunable_ids) == 0


class Shortcut(nn.Module):
    """The sum is the output of the network."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x)


def test_weight_that_two_layers_share_is_never_cut() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 2, 1))
    assert len(ChannelGraph.of(model).prunable_ids) == 12
    model[3].weight = model[1].weight
    graph = ChannelGraph.of(model)
    assert len(graph.prunable_ids) == 0
    assert "its weight is used in more than one place" in graph.protected.values()


def test_layer_inside_a_block_that_cannot_be_traced_is_no_layer_of_the_graph() -> None:
    assert list(ChannelGraph.of(Between(Branch())).layers) == ["first", "last"]


def test_network_that_cannot_be_traced_at_all_is_one_clear_line() -> None:
    with pytest.raises(PruningError, match=r"Branch: its own forward cannot be traced .*into a block of its own"):
        ChannelGraph.of(Branch(), image_chw=(4, 8, 8))


class Chosen(nn.Conv2d):
    """Cannot be traced, and gives another shape than a convolution of its settings."""

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(F.pad(x, (1, 1, 1, 1)) if x.sum() > -1 else x, self.weight, self.bias)


def test_block_that_cannot_be_traced_takes_no_other_block_with_it() -> None:
    blocks = nn.Sequential(nn.Sequential(Chosen(4, 4, 3), nn.BatchNorm2d(4)), nn.Sequential(nn.Conv2d(4, 4, 1)))
    graph = ChannelGraph.of(Between(blocks), image_chw=(3, 8, 8))
    assert list(graph.layers) == ["first", "operator.0.1", "operator.1.0", "last"]
    assert graph.is_prunable(graph.layers["operator.1.0"].output_ids).all()
    (reason,) = {graph.protected[channel] for channel in graph.layers["first"].output_ids.tolist()}
    assert reason == "operator.0.0 (Chosen): unknown operator"
