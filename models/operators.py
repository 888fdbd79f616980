"""The operators of torch under one name each, for packages that read traced networks.

An operator is spelled in several ways: ReLU is `nn.ReLU`, `torch.relu`, `F.relu`, `F.relu_`, `Tensor.relu` and more.
Here each has one name, and alike operators form a family. A package maps names to its own rules; an operator
that it has no rule for is unknown to it.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

Function = Callable[..., Any]

# Numpy's names of arguments, which torch accepts as well.
KEYWORDS: Mapping[str, str] = {"axis": "dim", "keepdims": "keepdim"}


@dataclass(frozen=True, kw_only=True)
class Operator:
    """How an operator is spelled, besides its name as a function of torch and as a method of tensors.

    Attributes:
        modules: Modules whose `forward` is the operator.
        also: Other names of the functions and methods.
        symbols: Functions of Python's `operator` module, which tracing puts in place of `+` and the like.
        paths: Modules and names of functions of packages that need not be installed.
        homes: Modules of torch whose function of this name takes the usual arguments.
    """

    modules: tuple[type[nn.Module], ...] = ()
    also: tuple[str, ...] = ()
    symbols: tuple[str, ...] = ()
    paths: tuple[str, ...] = ()
    homes: tuple[Any, ...] = (torch, F)

    def functions(self, name: str) -> set[Function]:
        """Collect the functions of an operator with this name, those that work in place included."""
        found = {getattr(home, word, None) for home in self.homes for word in self._words(name)}
        return {each for each in found if callable(each)} | {getattr(operator, symbol) for symbol in self.symbols}

    def methods(self, name: str) -> set[str]:
        """Collect the names of the tensor methods of an operator with this name."""
        return {word for word in self._words(name) if hasattr(Tensor, word)}

    def _words(self, name: str) -> Iterator[str]:
        for word in (name, *self.also):
            yield from (word, f"{word}_")


Family = Mapping[str, Operator]

# Limits on values: activations that are clamps.
CLAMPS: Family = {
    "relu": Operator(modules=(nn.ReLU,)),
    "relu6": Operator(modules=(nn.ReLU6,)),
    "hardtanh": Operator(modules=(nn.Hardtanh,)),
    "clamp": Operator(also=("clip",)),
    "clamp_min": Operator(),
    "clamp_max": Operator(),
}
# Functions of each value alone, given numbers as their other arguments.
ACTIVATIONS: Family = {
    **CLAMPS,
    "leaky_relu": Operator(modules=(nn.LeakyReLU,)),
    "silu": Operator(modules=(nn.SiLU,)),
    "hardswish": Operator(modules=(nn.Hardswish,)),
    "hardsigmoid": Operator(modules=(nn.Hardsigmoid,)),
    "sigmoid": Operator(modules=(nn.Sigmoid,)),
    "logsigmoid": Operator(modules=(nn.LogSigmoid,)),
    "tanh": Operator(modules=(nn.Tanh,)),
    "gelu": Operator(modules=(nn.GELU,)),
    "elu": Operator(modules=(nn.ELU,)),
    "selu": Operator(modules=(nn.SELU,)),
    "celu": Operator(modules=(nn.CELU,)),
    "mish": Operator(modules=(nn.Mish,)),
    "softplus": Operator(modules=(nn.Softplus,)),
    "softsign": Operator(modules=(nn.Softsign,)),
    "threshold": Operator(modules=(nn.Threshold,)),
    "hardshrink": Operator(modules=(nn.Hardshrink,)),
    "softshrink": Operator(modules=(nn.Softshrink,)),
    "tanhshrink": Operator(modules=(nn.Tanhshrink,)),
    "exp": Operator(),
    "abs": Operator(also=("absolute",), symbols=("abs",)),
    "neg": Operator(also=("negative",), symbols=("neg",)),
    "sqrt": Operator(),
    "square": Operator(),
    "pow": Operator(symbols=("pow", "ipow")),
}
# Further functions of each value, which no integer table stands for.
VALUES: Family = dict.fromkeys(
    ("rsqrt", "reciprocal", "log", "log1p", "expm1", "erf", "sin", "cos", "floor", "ceil", "round", "sign"),
    Operator(),
) | dict.fromkeys(("zeros_like", "ones_like", "nan_to_num"), Operator())
# No effect at inference.
IDENTITIES: Family = {
    "identity": Operator(modules=(nn.Identity,)),
    "dropout": Operator(modules=(nn.Dropout,)),
    "dropout1d": Operator(modules=(nn.Dropout1d,)),
    "dropout2d": Operator(modules=(nn.Dropout2d,)),
    "alpha_dropout": Operator(modules=(nn.AlphaDropout,)),
    "feature_alpha_dropout": Operator(modules=(nn.FeatureAlphaDropout,)),
    "stochastic_depth": Operator(paths=("torchvision.ops.stochastic_depth.stochastic_depth",)),
    "contiguous": Operator(),
    "clone": Operator(),
    "detach": Operator(),
}
# Changes of the dtype or the device.
CASTS: Family = dict.fromkeys(("float", "half", "double", "to", "type_as"), Operator())
# Windows over the positions of each channel.
POOLS: Family = {
    "max_pool2d": Operator(modules=(nn.MaxPool2d,)),
    "avg_pool2d": Operator(modules=(nn.AvgPool2d,)),
    "adaptive_avg_pool2d": Operator(modules=(nn.AdaptiveAvgPool2d,)),
    "adaptive_max_pool2d": Operator(modules=(nn.AdaptiveMaxPool2d,)),
    "lp_pool2d": Operator(modules=(nn.LPPool2d,)),
}
POOLS_1D: Family = {
    "max_pool1d": Operator(modules=(nn.MaxPool1d,)),
    "avg_pool1d": Operator(modules=(nn.AvgPool1d,)),
    "adaptive_avg_pool1d": Operator(modules=(nn.AdaptiveAvgPool1d,)),
    "adaptive_max_pool1d": Operator(modules=(nn.AdaptiveMaxPool1d,)),
}
# Other sizes of the map of each channel; "pad" adds one number, "repeat_pad" adds values of the map.
RESIZES: Family = {
    "interpolate": Operator(
        modules=(nn.Upsample, nn.UpsamplingNearest2d, nn.UpsamplingBilinear2d), also=("upsample",)
    ),
    "pad": Operator(modules=(nn.ZeroPad2d, nn.ConstantPad2d)),
    "repeat_pad": Operator(modules=(nn.ReflectionPad2d, nn.ReplicationPad2d, nn.CircularPad2d)),
}
# Arithmetic of two tensors of one shape, or of a tensor and what is broadcast over it.
ELEMENTWISE: Family = {
    "add": Operator(symbols=("add", "iadd")),
    "sub": Operator(also=("subtract",), symbols=("sub", "isub")),
    "rsub": Operator(),
    "mul": Operator(also=("multiply",), symbols=("mul", "imul")),
    "div": Operator(also=("divide", "true_divide"), symbols=("truediv", "itruediv")),
    "maximum": Operator(),
    "minimum": Operator(),
}
# Comparisons, and functions of several values at each place.
COMPARISONS: Family = {
    name: Operator(also=(f"{word}",), symbols=(name,))
    for name, word in {
        "gt": "greater",
        "ge": "greater_equal",
        "lt": "less",
        "le": "less_equal",
        "ne": "not_equal",
    }.items()
} | {"eq": Operator(symbols=("eq",))}
MIXTURES: Family = dict.fromkeys(
    ("lerp", "addcmul", "addcdiv", "where", "remainder", "fmod", "floor_divide", "atan2", "masked_fill"), Operator()
) | {"floor_divide": Operator(symbols=("floordiv",)), "remainder": Operator(symbols=("mod",))}
CONCATENATIONS: Family = {"cat": Operator(also=("concat", "concatenate"))}
SPLITS: Family = {"split": Operator(), "chunk": Operator()}
REDUCTIONS: Family = dict.fromkeys(("mean", "sum", "amax", "amin"), Operator())
# Statistics of the same arguments.
STATISTICS: Family = dict.fromkeys(("std", "var", "logsumexp"), Operator())
# Orders of values along given dimensions.
MOVES: Family = dict.fromkeys(("roll", "flip"), Operator())
# Other orders of channels, and tensors side by side.
ORDERS: Family = {
    **dict.fromkeys(("stack", "movedim", "repeat", "max", "min"), Operator()),
    "glu": Operator(modules=(nn.GLU,)),
    "pixel_shuffle": Operator(modules=(nn.PixelShuffle,)),
    "pixel_unshuffle": Operator(modules=(nn.PixelUnshuffle,)),
    "channel_shuffle": Operator(modules=(nn.ChannelShuffle,)),
}
# Values that are mixed along a dimension, and products of matrices.
MIXERS: Family = {
    "softmax": Operator(modules=(nn.Softmax,)),
    "log_softmax": Operator(modules=(nn.LogSoftmax,)),
    "layer_norm": Operator(modules=(nn.LayerNorm,), homes=(F,)),
    "group_norm": Operator(modules=(nn.GroupNorm,), homes=(F,)),
    "matmul": Operator(also=("bmm",), symbols=("matmul",)),
    "scaled_dot_product_attention": Operator(),
    "multihead_attention": Operator(modules=(nn.MultiheadAttention,), homes=()),
}
# Other dimensions or another order of the same values.
RESHAPES: Family = {
    "flatten": Operator(modules=(nn.Flatten,)),
    **dict.fromkeys(("view", "reshape", "squeeze", "unsqueeze", "permute"), Operator()),
    "transpose": Operator(also=("swapaxes", "swapdims")),
}
# Weights per channel. torch.batch_norm takes its arguments in another order than F.batch_norm.
LAYERS: Family = {
    "conv2d": Operator(modules=(nn.Conv2d,)),
    "linear": Operator(modules=(nn.Linear,)),
    "batch_norm": Operator(modules=(nn.BatchNorm1d, nn.BatchNorm2d, nn.SyncBatchNorm), homes=(F,)),
    "prelu": Operator(modules=(nn.PReLU,)),
}
# Those of other dimensions, of transposed convolutions, and scales of each channel of one image.
MORE_LAYERS: Family = {
    "conv1d": Operator(modules=(nn.Conv1d,)),
    "conv3d": Operator(modules=(nn.Conv3d,)),
    "conv_transpose": Operator(modules=(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)),
    "batch_norm3d": Operator(modules=(nn.BatchNorm3d,), homes=()),
    "instance_norm": Operator(modules=(nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d), homes=()),
}

OPERATORS: Family = {
    **ACTIVATIONS,
    **VALUES,
    **IDENTITIES,
    **CASTS,
    **POOLS,
    **POOLS_1D,
    **RESIZES,
    **ELEMENTWISE,
    **COMPARISONS,
    **MIXTURES,
    **CONCATENATIONS,
    **SPLITS,
    **REDUCTIONS,
    **STATISTICS,
    **MOVES,
    **ORDERS,
    **MIXERS,
    **RESHAPES,
    **LAYERS,
    **MORE_LAYERS,
    "unbind": Operator(),
    "expand": Operator(),
    "getitem": Operator(symbols=("getitem",)),
}

_MODULES = {module: name for name, each in OPERATORS.items() for module in each.modules}
_FUNCTIONS = {function: name for name, each in OPERATORS.items() for function in each.functions(name)}
_METHODS = {method: name for name, each in OPERATORS.items() for method in each.methods(name)}
_PATHS = {path: name for name, each in OPERATORS.items() for path in each.paths}


def module_operator(kind: type[nn.Module]) -> str | None:
    """Return the name of the operator that a class of modules is, or None; subclasses are other classes."""
    return _MODULES.get(kind)


def traced_operator(node: fx.Node) -> str | None:
    """Return the name of the operator that a node calls as a function or a method, or None if it is not listed."""
    if node.op == "call_method":
        return _METHODS.get(str(node.target))
    if node.op != "call_function":
        return None
    return _FUNCTIONS.get(node.target) or _PATHS.get(full_name(node.target))  # type: ignore[arg-type]


def full_name(function: Any) -> str:
    """Return module and name of a function."""
    return f"{getattr(function, '__module__', '')}.{getattr(function, '__name__', function)}"
