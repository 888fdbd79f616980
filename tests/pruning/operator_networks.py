"""Random networks of every operator that has a channel rule, in one of its spellings, and of some that have none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.operators import ACTIVATIONS, IDENTITIES, OPERATORS, VALUES

SIDE = 8
Program = list[tuple[str, int, int, int]]
# From two maps (B, C, SIDE, SIDE) of equal shape, one of any number of channels.
Body = Callable[[Tensor, Tensor], Tensor]

_ARGUMENTS: dict[str, tuple[Any, ...]] = {
    "threshold": (0.1, 0.2),
    "clamp": (-0.5, 0.5),
    "clamp_min": (-0.5,),
    "clamp_max": (0.5,),
    "pow": (2,),
    **dict.fromkeys(("dropout", "dropout2d", "alpha_dropout", "feature_alpha_dropout"), (0.5, False)),
    "stochastic_depth": (0.5, "row", False),
}
_POSITIVE = ("sqrt", "rsqrt", "reciprocal", "log", "log1p")
# dropout1d takes no maps, and rounding to other precisions is not exact.
_LEFT_OUT = ("dropout1d", "float", "half", "stochastic_depth", "to", "identity")


def _of_values(name: str) -> Body:
    """An operator on each value, as a method if it has one, else as a function."""
    each, given = OPERATORS[name], _ARGUMENTS.get(name, ())
    # Tracing turns augmented assignments, such as operator.ipow, into new tensors.
    known = [function for function in each.functions(name) if function.__module__ != "_operator"]
    functions = sorted(known, key=lambda function: function.__name__)

    def body(x: Tensor, y: Tensor) -> Tensor:
        x = x.abs() + 0.5 if name in _POSITIVE else x
        found: Tensor = functions[0](x, *given) if functions else getattr(x, name)(*given)
        return found

    return body


def _rows(x: Tensor) -> Tensor:
    return x.flatten(2)


def _map(x: Tensor) -> Tensor:
    return x.reshape(x.shape[0], -1, SIDE, SIDE)


BODIES: dict[str, Body] = {
    **{name: _of_values(name) for name in (*ACTIVATIONS, *VALUES, *IDENTITIES) if name not in _LEFT_OUT},
    "double": lambda x, y: x.double().to(y.dtype),
    "type_as": lambda x, y: x.type_as(y),
    "max_pool2d": lambda x, y: F.max_pool2d(x, 3, 1, 1),
    "avg_pool2d": lambda x, y: F.avg_pool2d(x, 3, 1, 1),
    "adaptive_avg_pool2d": lambda x, y: x * F.adaptive_avg_pool2d(x, 1),
    "adaptive_max_pool2d": lambda x, y: F.interpolate(F.adaptive_max_pool2d(x, 4), size=x.shape[2:]),
    "lp_pool2d": lambda x, y: F.interpolate(F.lp_pool2d(x.abs() + 0.1, 2, 2), scale_factor=2.0),
    "max_pool1d": lambda x, y: _map(F.max_pool1d(_rows(x), 3, 1, 1)),
    "avg_pool1d": lambda x, y: _map(F.avg_pool1d(_rows(x), 3, 1, 1)),
    "adaptive_avg_pool1d": lambda x, y: x * F.adaptive_avg_pool1d(_rows(x), 1).unsqueeze(-1),
    "adaptive_max_pool1d": lambda x, y: x - F.adaptive_max_pool1d(_rows(x), 1)[..., None],
    "interpolate": lambda x, y: F.interpolate(x[:, :, ::2, ::2], scale_factor=2, mode="bilinear"),
    "pad": lambda x, y: F.pad(x, (1, 0, 0, 2))[..., 2:, 1:],
    "pad of channels": lambda x, y: F.pad(x, (0, 0, 0, 0, 1, 2)),
    "add": lambda x, y: x + 2 * y,
    "sub": lambda x, y: 1 - torch.sub(x, y, alpha=2),
    "rsub": lambda x, y: torch.rsub(x, y),
    "mul": lambda x, y: x * torch.sigmoid(y),
    "div": lambda x, y: x / (y.abs() + 1),
    "maximum": torch.maximum,
    "minimum": lambda x, y: torch.minimum(input=x, other=y),
    "clamp by a map": lambda x, y: x.clamp(max=y),
    "power of a map": lambda x, y: (x.abs() + 0.1) ** y,
    **{
        name: (lambda x, y, name=name: x * getattr(torch, name)(x, y))
        for name in ("gt", "ge", "lt", "le", "ne", "eq")
    },
    "lerp": lambda x, y: torch.lerp(x, y, 0.3),
    "addcmul": lambda x, y: torch.addcmul(x, y, x),
    "addcdiv": lambda x, y: torch.addcdiv(x, x, y.abs() + 1),
    "where": lambda x, y: torch.where(x > y, x, torch.zeros_like(y)),
    "remainder": lambda x, y: x % 0.7,
    "fmod": lambda x, y: torch.fmod(x, 0.7),
    "floor_divide": lambda x, y: x - (x // 0.5) * 0.25,
    "atan2": lambda x, y: torch.atan2(x, y.abs() + 1),
    "masked_fill": lambda x, y: x.masked_fill(y > 0, 0.0),
    "cat": lambda x, y: torch.cat((x, y), 1),
    "cat of positions": lambda x, y: torch.cat((x[:, :, :4], y[:, :, 4:]), 2),
    "split": lambda x, y: torch.cat(torch.split(x, [1, x.shape[1] - 1], 1)[::-1], 1),
    "chunk": lambda x, y: torch.cat((x.chunk(2, 1)[-1], y), 1),
    "mean": lambda x, y: x * y.mean((2, 3), keepdim=True),
    "sum": lambda x, y: x - x.sum(-1).sum(-1)[:, :, None, None] / 64,
    "amax": lambda x, y: x - y.amax(dim=(2, 3), keepdim=True),
    "amin": lambda x, y: x * torch.amin(y, (2, 3), keepdim=True),
    "std": lambda x, y: x / (1 + y.std((2, 3), keepdim=True)),
    "var": lambda x, y: x / (1 + torch.var(x, (2, 3), keepdim=True)),
    "logsumexp": lambda x, y: x - torch.logsumexp(x, (2, 3), keepdim=True),
    "mean of channels": lambda x, y: x * y.mean(1, keepdim=True),
    "roll": lambda x, y: x + torch.roll(y, 1, dims=3),
    "flip": lambda x, y: y.flip(2, 3),
    "softmax": lambda x, y: _map(_rows(x).softmax(-1)),
    "softmax of channels": lambda x, y: x * torch.softmax(y, 1),
    "log_softmax": lambda x, y: F.log_softmax(x, 3),
    "layer_norm": lambda x, y: F.layer_norm(x, (SIDE,)),
    "layer norm of channels": lambda x, y: F.layer_norm(x.permute(0, 2, 3, 1), (x.shape[1],)).permute(0, 3, 1, 2),
    "group_norm": lambda x, y: F.group_norm(x, 1),
    "matmul": lambda x, y: x @ y.mT,
    "matmul of channels": lambda x, y: _map(_rows(x) @ (_rows(y).mT @ _rows(x)) / 64),
    "scaled_dot_product_attention": lambda x, y: F.scaled_dot_product_attention(x, y, x + y),
    "flatten": lambda x, y: torch.flatten(x, 2).view_as(y),
    "view": lambda x, y: x.contiguous().view(x.size(0), x.size(1), -1).reshape(y.shape),
    "permute": lambda x, y: torch.permute(x, (2, 3, 1, 0)).permute(3, 2, 1, 0),
    "transpose": lambda x, y: x.transpose(1, 3).swapaxes(3, 1) + y.mT,
    "squeeze": lambda x, y: F.adaptive_avg_pool2d(x, 1).squeeze(-1).squeeze(2)[:, :, None, None] * y,
    "unsqueeze": lambda x, y: torch.unsqueeze(x, 1).squeeze(1),
    "unbind": lambda x, y: torch.unbind(x, 3)[0].unsqueeze(3) * y,
    "expand": lambda x, y: x.mean((2, 3), keepdim=True).expand(-1, -1, SIDE, SIDE) + y,
    "expand_as": lambda x, y: x * y.amax((2, 3), keepdim=True).expand_as(x),
    "getitem": lambda x, y: x[:, ::2],
    "list of channels": lambda x, y: x[:, [1, 0]],
    "attributes": lambda x, y: x.data.mT.mT / len(y.shape),
    "shuffle": lambda x, y: torch.cat((x, y), 1).view(x.shape[0], 2, -1, SIDE, SIDE).transpose(1, 2).flatten(1, 2),
    "stack": lambda x, y: torch.stack((x, y), 1).sum(1),
    "movedim": lambda x, y: x.movedim(1, -1).movedim(-1, 1),
    "repeat": lambda x, y: y.mean((2, 3), keepdim=True).repeat(1, 2, SIDE, SIDE),
    "max": lambda x, y: x.max(dim=3)[0].unsqueeze(3) * y,
    "min": lambda x, y: torch.min(x, 2, keepdim=True)[0] * y,
    "max of two": lambda x, y: torch.max(x, y) - x.min(y),
    "max of channels": lambda x, y: x * y.max(1, keepdim=True)[0],
    "glu": lambda x, y: F.glu(torch.cat((x, y), 1), 1),
    "pixel_shuffle": lambda x, y: F.pixel_shuffle(torch.cat((x, y, y, x), 1), 2)[:, :, ::2, 1::2],
    "pixel_unshuffle": lambda x, y: F.pixel_unshuffle(F.interpolate(x, scale_factor=2), 2),
    "channel_shuffle": lambda x, y: F.channel_shuffle(torch.cat((x, y), 1), 2),
    # Operators without a rule.
    "unknown cumsum": lambda x, y: torch.cumsum(x, 1),
    "unknown sort": lambda x, y: x.sort(1)[0],
    "unknown normalize": lambda x, y: F.normalize(x, dim=1),
    "unknown einsum": lambda x, y: torch.einsum("bchw,bdhw->bchw", x, y),
    "unknown count": lambda x, y: x / y.shape[1] + y.numel(),
}


class Layer(nn.Module):
    """A layer with weights as a body; `made` is the number of channels that it makes."""

    def __init__(self, kind: str, width: int, made: int) -> None:
        super().__init__()
        self.kind = kind
        self.made = {"conv": made, "linear": made, "conv1d": made, "conv3d": made, "conv_transpose": made}.get(
            kind.removesuffix(" as a function"), width
        )
        layers: dict[str, Callable[[], nn.Module]] = {
            "conv": lambda: nn.Conv2d(width, made, 3, padding=1),
            "conv1d": lambda: nn.Conv1d(width, made, 3, padding=1),
            "conv3d": lambda: nn.Conv3d(width, made, 1),
            "conv_transpose": lambda: nn.ConvTranspose2d(width, made, 3, padding=1),
            "linear": lambda: nn.Linear(width, made),
            "batch_norm": lambda: nn.BatchNorm2d(width),
            "batch_norm3d": lambda: nn.BatchNorm3d(width),
            "instance_norm": lambda: nn.InstanceNorm2d(width, affine=True),
            "prelu": lambda: nn.PReLU(width),
            "identity": nn.Identity,
            "repeat_pad": lambda: nn.Sequential(nn.ReflectionPad2d(1), nn.ZeroPad2d(-1)),
            "depthwise": lambda: nn.Conv2d(width, width, 3, padding=1, groups=width),
            "attention": lambda: nn.MultiheadAttention(width, 1, batch_first=True),
        }
        self.layer: Any = layers[kind.removesuffix(" as a function")]()

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Two maps (B, C, SIDE, SIDE) to one."""
        own = self.layer
        if self.kind == "conv as a function":
            return F.conv2d(x, own.weight, own.bias, padding=1)
        if self.kind == "depthwise as a function":
            return F.conv2d(x, own.weight, own.bias, 1, 1, 1, own.groups)
        if self.kind == "linear as a function":
            return F.linear(x.permute(0, 2, 3, 1), own.weight, own.bias).permute(0, 3, 1, 2)
        if self.kind == "batch_norm as a function":
            return F.batch_norm(x, own.running_mean, own.running_var, own.weight, own.bias)
        if self.kind == "prelu as a function":
            return F.prelu(x, own.weight)
        if self.kind == "linear":
            return own(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        if self.kind == "attention":
            tokens = _rows(x).mT
            return _map(own(tokens, tokens, tokens, need_weights=False)[0].mT)
        if self.kind == "conv1d":
            return _map(own(_rows(x)))
        if self.kind in ("conv3d", "batch_norm3d"):
            return own(x.unsqueeze(2)).squeeze(2)
        made: Tensor = own(x)
        return made


class Scale(nn.Module):
    """A stored number per channel, as LayerScale has."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.numbers = nn.Parameter(torch.rand(width, 1, 1) + 0.5)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Two maps to one."""
        return x + self.numbers * y


LAYERS = (
    *("conv", "conv1d", "conv3d", "conv_transpose", "linear", "batch_norm", "batch_norm3d", "instance_norm", "prelu"),
    *(
        "identity",
        "repeat_pad",
        "depthwise",
        "attention",
        "conv as a function",
        "linear as a function",
        "batch_norm as a function",
    ),
    *("prelu as a function", "depthwise as a function"),
)
KINDS = (*BODIES, *LAYERS, "scale")


class Step(nn.Module):
    """One operator on a map and on another one that a convolution brings to its width."""

    def __init__(self, kind: str, first: int, second: int, made: int) -> None:
        super().__init__()
        self.bring = nn.Conv2d(second, first, 1)
        self.body: Any = BODIES.get(kind)
        if kind in LAYERS:
            self.body = Layer(kind, first, made)
        if kind == "scale":
            self.body = Scale(first)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Two maps (B, C, SIDE, SIDE) to one."""
        found: Tensor = self.body(x, self.bring(y))
        return found


class OperatorNetwork(nn.Module):
    """Steps over a pool of maps, then a convolution over the last three of them."""

    def __init__(self, program: Program) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU())
        self.steps, self.norms, self.sources = nn.ModuleList(), nn.ModuleList(), []
        maps = [self.stem(torch.zeros(2, 3, SIDE, SIDE))]
        for kind, first, second, made in program:
            source = first % len(maps), second % len(maps)
            x, y = (maps[place] for place in source)
            if x.shape[1] < 2:
                continue  # a map of one channel cannot be divided
            step = Step(kind, x.shape[1], y.shape[1], made).eval()
            self.sources.append(source)
            self.steps.append(step)
            made_now = step(x, y)
            # Signals of any operator come back to the same size.
            self.norms.append(nn.BatchNorm2d(made_now.shape[1]))
            maps.append(made_now)
        self.last = nn.Conv2d(sum(each.shape[1] for each in maps[-3:]), 2, 1)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, SIDE, SIDE) to (B, 2, SIDE, SIDE)."""
        maps = [self.stem(images)]
        for step, norm, (first, second) in zip(self.steps, self.norms, self.sources, strict=True):
            maps.append(norm(step(maps[first], maps[second])))
        made: Tensor = self.last(torch.cat(maps[-3:], 1))
        return made
