"""Small modules of the kind that people bring, each of which was once cut wrongly or ended in a traceback."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torch.nn.utils as U
from column_oracle import deaf_to
from cut_oracle import cuttable_ids, difference
from mask_oracle import outputs
from torch import Tensor, nn
from torch.nn.utils import prune as torch_prune

from pruning.channels.graph import ChannelGraph
from pruning.surgery.cut import cut


def block(read: int, made: int) -> nn.Sequential:
    """A convolution, its norm and an activation."""
    return nn.Sequential(nn.Conv2d(read, made, 3, padding=1, bias=False), nn.BatchNorm2d(made), nn.ReLU())


class Base(nn.Module):
    """Three blocks and a head; what is odd happens between the second and the third."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.head = block(3, 6), block(6, 8), block(8, 10), nn.Conv2d(10, 4, 1)

    def between(self, x: Tensor) -> Tensor:
        return x

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.c(self.between(self.b(self.a(x)))))
        return y


class Alias(Base):
    """One module under two names, called by either."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.blocks = self.a, nn.ModuleDict({"first": self.a, "second": self.b})

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.c(self.blocks["second"](self.stem(x))))
        return y


class Keywords(Base):
    """Layers that are called by keyword."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8)

    def between(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(input=self.conv(input=x))
        return y


class Linears(nn.Module):
    """A linear layer that divides by the width of the next one."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.first, self.second = block(3, 6), nn.Linear(6, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.second(F.relu(self.first(self.a(x).mean((2, 3)))) / self.second.in_features**0.5)
        return y


class WeightsTwice(Base):
    """The weights of a layer that is also called."""

    def between(self, x: Tensor) -> Tensor:
        return F.conv_transpose2d(F.conv2d(x, self.c[0].weight, padding=1), self.c[0].weight, padding=1)


class Partial(Base):
    """A convolution of some of the channels, as in FasterNet."""

    def __init__(self) -> None:
        super().__init__()
        self.part = nn.Conv2d(3, 3, 3, padding=1)

    def between(self, x: Tensor) -> Tensor:
        convolved, rest = torch.split(x, [3, 5], dim=1)
        return torch.cat((self.part(convolved), rest), 1)


class Gate(Base):
    """Attention over positions, by way of a transposed view."""

    def between(self, x: Tensor) -> Tensor:
        weights = torch.sigmoid(x.flatten(2).mT.mean(-1)).reshape(x.shape[0], 1, x.shape[2], x.shape[3])
        return x * weights


class Tokens(Base):
    """Self-attention over positions, two heads, written out."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 8)

    def between(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2)
        q, k, v = self.qkv(tokens).reshape(x.shape[0], -1, 3, 2, 4).permute(2, 0, 3, 1, 4).unbind(0)
        attention = (q @ k.transpose(-2, -1) * 0.5).softmax(dim=-1)
        mixed = (attention @ v).transpose(1, 2).reshape(x.shape[0], -1, 8)
        return x + self.out(mixed).transpose(1, 2).reshape(x.shape)


class TokensByCounts(Tokens):
    """The same, with sizes that are computed from the number of channels of what comes in."""

    def between(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        tokens = x.flatten(2).transpose(1, 2)
        q, k, v = self.qkv(tokens).reshape(b, h * w, 3, 2, c // 2).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = ((q @ k.transpose(-2, -1) * 0.5).softmax(dim=-1) @ v).transpose(1, 2).reshape(b, h * w, c)
        return x + self.out(mixed).transpose(1, 2).reshape(b, c, h, w)


class Up(nn.Module):
    """A small U-Net with a transposed convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.up = block(3, 6), block(6, 8), nn.ConvTranspose2d(8, 6, 2, 2)
        self.c, self.head = block(12, 6), nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = self.a(x)
        y: Tensor = self.head(self.c(torch.cat((self.up(self.b(F.max_pool2d(a, 2))), a), 1)))
        return y


class Option(Base):
    """A shortcut that pads channels with zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.c = block(8, 12), block(12, 10)

    def between(self, x: Tensor) -> Tensor:
        y: Tensor = self.wide(x) + F.pad(x, (0, 0, 0, 0, 2, 2))
        return y


def hooked(kind: str) -> nn.Module:
    model = Base()
    if kind == "after":
        model.b[0].register_forward_hook(lambda module, args, output: output * 2)
    else:
        model.b[0].register_forward_pre_hook(lambda module, args: (args[0].roll(1, 1),))
    return model


def with_computed_weights(change: Callable[[nn.Module], object]) -> nn.Module:
    model = Base()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        change(model.b[0])
    return model


MODULES: dict[str, tuple[Callable[[], nn.Module], int]] = {
    # The number of channels that can be cut at most; less is kept for a reason.
    "alias": (Alias, 24),
    "keywords": (Keywords, 32),
    "width read": (Linears, 6),
    "weights twice": (WeightsTwice, 6),
    "part convolved": (Partial, 27),
    "gate over positions": (Gate, 16),
    "attention written out": (Tokens, 26),
    "attention by counts": (TokensByCounts, 26),
    "transposed convolution": (Up, 26),
    "padded shortcut": (Option, 24),
    "hook after": (lambda: hooked("after"), 10),
    "hook before": (lambda: hooked("before"), 10),
    "weight norm": (lambda: with_computed_weights(lambda layer: U.parametrizations.weight_norm(layer)), 10),
    "old weight norm": (lambda: with_computed_weights(lambda layer: U.weight_norm(layer)), 10),
    "spectral norm": (lambda: with_computed_weights(lambda layer: U.parametrizations.spectral_norm(layer)), 10),
    "mask of torch": (
        lambda: with_computed_weights(lambda layer: torch_prune.l1_unstructured(layer, "weight", 0.5)),
        10,
    ),
}


@pytest.mark.parametrize("name", MODULES)
def test_odd_module_is_cut_exactly_where_it_can_be_cut(name: str) -> None:
    torch.manual_seed(0)
    make, count = MODULES[name]
    model = make().double().eval()
    graph = ChannelGraph.of(model, image_chw=(3, 8, 8))
    assert len(graph.prunable_ids) == count
    dropped = cuttable_ids(graph, seed=1)
    images = torch.rand(2, 3, 8, 8, dtype=torch.float64)
    expected = outputs(deaf_to(model, graph, dropped), images)
    pruned = cut(model, graph, dropped, carry=False)
    assert difference(outputs(pruned, images), expected) < 1e-10
    assert sum(p.numel() for p in pruned.parameters()) < sum(p.numel() for p in model.parameters())


def test_module_under_two_names_is_one_after_the_cut() -> None:
    model = Alias().eval()
    graph = ChannelGraph.of(model, image_chw=(3, 8, 8))
    pruned = cut(model, graph, graph.layers["a.0"].output_ids[:2])
    assert pruned.stem is pruned.a is pruned.blocks["first"]
    assert pruned.a[0].out_channels == len(pruned.a[0].weight) == 4


def test_heads_of_attention_are_cut_whole() -> None:
    graph = ChannelGraph.of(Tokens().eval(), image_chw=(3, 8, 8))
    first, second = np.unique(graph.layers["qkv"].output_ids)
    assert graph.layers["qkv"].output_ids.tolist() == [*[first] * 4, *[second] * 4] * 3
    assert graph.layers["out"].input_ids.tolist() == [*[first] * 4, *[second] * 4]


class Holding(Base):
    """Any operators on eight channels, and what they need: layers and parameters."""

    def __init__(self, body: Callable[..., Tensor], **held: nn.Module | nn.Parameter) -> None:
        super().__init__()
        self.body = body
        for name, each in held.items():
            setattr(self, name, each)

    def between(self, x: Tensor) -> Tensor:
        return self.body(self, x)


def one_key_for_all_heads(net: Holding, x: Tensor) -> Tensor:
    tokens = x.flatten(2).mT
    q = net.q(tokens).reshape(x.shape[0], -1, 4, 4).transpose(1, 2)
    mixed = F.scaled_dot_product_attention(q, net.k(tokens).unsqueeze(1), net.v(tokens).unsqueeze(1))
    return net.out(mixed.transpose(1, 2).flatten(2)).mT.reshape(x.shape)


def up_to(sizes: Callable[[Tensor], object]) -> Holding:
    up = nn.ConvTranspose2d(8, 8, 3, 2, 1)
    return Holding(lambda net, x: net.up(F.max_pool2d(x, 2), output_size=sizes(x)), up=up)


def conv(made: int) -> nn.Conv2d:
    return nn.Conv2d(8, made, 1)


def bias_that_the_code_makes(net: Holding, x: Tensor) -> Tensor:
    return F.linear(F.conv2d(x, net.conv.weight, net.rows[0]), net.linear.weight, net.rows[1])


HOLDING: dict[str, tuple[Callable[[], Holding], int]] = {
    "as many rows as channels": (lambda: Holding(lambda net, x: x[:, :, : x.shape[1]]), 16),
    "rows split by channels": (lambda: Holding(lambda net, x: torch.cat(x.split(x.shape[1] // 2, 2), 2)), 16),
    "number that the code makes": (
        lambda: Holding(lambda net, x: torch.cat((x[:, :4] * torch.tensor(0.5), x[:, 4:]), 1)),
        24,
    ),
    "stored map used as a whole too": (
        lambda: Holding(lambda net, x: (x + net.map) * net.map.mean(), map=nn.Parameter(torch.rand(8, 8, 8))),
        16,
    ),
    "bias that the code makes": (
        lambda: Holding(
            bias_that_the_code_makes,
            conv=nn.Conv2d(8, 8, 1, bias=False),
            linear=nn.Linear(8, 8, bias=False),
            rows=nn.Parameter(torch.rand(2, 8)),
        ),
        16,
    ),
    "weights of a layer of one output": (
        lambda: Holding(
            lambda net, x: net.other(x) * net.one.weight + net.one(net.wide(x)),
            one=conv(1),
            other=conv(8),
            wide=conv(8),
        ),
        24,
    ),
    "one key for all heads": (
        lambda: Holding(
            one_key_for_all_heads, q=nn.Linear(8, 16), k=nn.Linear(8, 4), v=nn.Linear(8, 4), out=nn.Linear(16, 8)
        ),
        28,
    ),
    "size of the output": (lambda: up_to(lambda x: x.shape[2:]), 32),
    "size of the output with channels": (lambda: up_to(lambda x: x.size()), 32),
    "largest of a row": (
        lambda: Holding(lambda net, x: x * x.max(3, keepdim=True)[0] - x.min(dim=2)[0][:, :, None]),
        24,
    ),
    "largest by name": (lambda: Holding(lambda net, x: x * torch.max(x, 2, keepdim=True).values), 24),
    "largest of channels": (lambda: Holding(lambda net, x: x * x.max(1, keepdim=True)[0]), 16),
    "pools of volumes": (
        lambda: Holding(lambda net, x: net.pool(x[:, :, None])[:, :, 0], pool=nn.MaxPool3d((1, 2, 2))),
        24,
    ),
}


@pytest.mark.parametrize("name", HOLDING)
def test_operators_between_layers_are_cut_exactly_twice(name: str) -> None:
    torch.manual_seed(0)
    make, count = HOLDING[name]
    model: nn.Module = make().double().eval()
    images = torch.rand(2, 3, 8, 8, dtype=torch.float64)
    for seed in (1, 2):
        graph = ChannelGraph.of(model, image_chw=(3, 8, 8))
        assert seed == 2 or len(graph.prunable_ids) == count
        dropped = cuttable_ids(graph, seed=seed)
        expected = outputs(deaf_to(model, graph, dropped), images)
        model = cut(model, graph, dropped, carry=False)
        assert difference(outputs(model, images), expected) < 1e-10
