"""Tables that map modules, functions and methods of torch to their lowering rules."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import fx, nn

from quantization.lowering import layer_rules, shape_rules, window_rules
from quantization.lowering.building import Rule

# Packages of known functions. Tracing enters modules of torchvision; only functions it keeps whole matter here.
_LIBRARIES = ("torch", "torchvision", "_operator", "builtins")


@dataclass(frozen=True, kw_only=True)
class Operator:
    """One row of the tables below.

    Attributes:
        rule: Function that lowers the operator.
        parameters: Names of positional arguments, in order; for a module, names of its attributes, after the input.
        fixed: Arguments of the rule that the operator implies.
    """

    rule: Rule
    parameters: tuple[str, ...] = ()
    fixed: Mapping[str, Any] | None = None


_CONV = ("weight", "bias", "stride", "padding", "dilation", "groups")
_NORM = ("running_mean", "running_var", "weight", "bias")
_MAX_POOL = ("kernel_size", "stride", "padding", "dilation", "ceil_mode")
_AVG_POOL = ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override")

_MODULES: dict[type[nn.Module], Operator] = {
    nn.Conv2d: Operator(rule=layer_rules.conv, parameters=(*_CONV, "padding_mode")),
    nn.Linear: Operator(rule=layer_rules.linear, parameters=("weight", "bias")),
    nn.BatchNorm2d: Operator(rule=layer_rules.batch_norm, parameters=(*_NORM, "eps")),
    nn.BatchNorm1d: Operator(rule=layer_rules.batch_norm, parameters=(*_NORM, "eps")),
    nn.MaxPool2d: Operator(rule=window_rules.max_pool, parameters=_MAX_POOL),
    nn.AvgPool2d: Operator(rule=window_rules.avg_pool, parameters=_AVG_POOL),
    nn.AdaptiveAvgPool2d: Operator(rule=window_rules.adaptive_avg_pool),
    nn.Upsample: Operator(rule=shape_rules.upsample, parameters=("mode",)),
    nn.UpsamplingNearest2d: Operator(rule=shape_rules.upsample),
    nn.Flatten: Operator(rule=shape_rules.reshape),
    nn.ReLU: Operator(rule=layer_rules.clamp, fixed={"min": 0}),
    nn.ReLU6: Operator(rule=layer_rules.clamp, fixed={"min": 0, "max": 6}),
    nn.PReLU: Operator(rule=layer_rules.prelu, parameters=("weight",)),
    nn.Identity: Operator(rule=shape_rules.identity),
    nn.Dropout: Operator(rule=shape_rules.identity),
    nn.Dropout2d: Operator(rule=shape_rules.identity),
}
# Modules whose attributes have other names than the arguments of the functions.
_RENAMED: dict[type[nn.Module], tuple[Operator, Mapping[str, str]]] = {
    nn.Hardtanh: (Operator(rule=layer_rules.clamp), {"min": "min_val", "max": "max_val"}),
    nn.ZeroPad2d: (Operator(rule=window_rules.pad), {"pad": "padding"}),
}
_TABLE_MODULES: tuple[type[nn.Module], ...] = (
    nn.SiLU,
    nn.Hardswish,
    nn.Hardsigmoid,
    nn.Sigmoid,
    nn.LogSigmoid,
    nn.Tanh,
    nn.LeakyReLU,
    nn.ELU,
    nn.SELU,
    nn.CELU,
    nn.GELU,
    nn.Mish,
    nn.Softplus,
    nn.Softsign,
)

_TABLE_NAMES = frozenset(
    {
        *("silu", "hardswish", "hardsigmoid", "sigmoid", "logsigmoid", "tanh", "leaky_relu", "elu", "selu", "celu"),
        *("gelu", "mish", "softplus", "softsign", "exp", "abs", "neg", "sqrt", "square", "pow"),
    }
)
_ADD = Operator(rule=layer_rules.add, parameters=("input", "other"))
_MULTIPLY = Operator(rule=layer_rules.multiply, parameters=("input", "other"))
_DIVIDE = Operator(rule=layer_rules.divide, parameters=("input", "other"))
_SUBTRACT = Operator(rule=layer_rules.subtract, parameters=("input", "other"))
_CLAMP = Operator(rule=layer_rules.clamp, parameters=("input", "min", "max"))
_CONCAT = Operator(rule=shape_rules.concat, parameters=("input", "dim"))
_RESHAPE = Operator(rule=shape_rules.reshape, parameters=("input",))
_DROPPED = Operator(rule=shape_rules.identity, parameters=("input",))
_SPLIT = Operator(rule=shape_rules.split, parameters=("input", "number", "dim"))

_NAMES: dict[str, Operator] = {
    "conv2d": Operator(rule=layer_rules.conv, parameters=("input", *_CONV)),
    "linear": Operator(rule=layer_rules.linear, parameters=("input", "weight", "bias")),
    "batch_norm": Operator(rule=layer_rules.batch_norm, parameters=("input", *_NORM, "training", "momentum", "eps")),
    "max_pool2d": Operator(rule=window_rules.max_pool, parameters=("input", *_MAX_POOL)),
    "avg_pool2d": Operator(rule=window_rules.avg_pool, parameters=("input", *_AVG_POOL)),
    "adaptive_avg_pool2d": Operator(rule=window_rules.adaptive_avg_pool, parameters=("input",)),
    "mean": Operator(rule=window_rules.mean, parameters=("input", "dim", "keepdim")),
    "interpolate": Operator(rule=shape_rules.upsample, parameters=("input", "size", "scale_factor", "mode")),
    "relu": Operator(rule=layer_rules.clamp, parameters=("input",), fixed={"min": 0}),
    "relu6": Operator(rule=layer_rules.clamp, parameters=("input",), fixed={"min": 0, "max": 6}),
    "hardtanh": _CLAMP,
    "clamp": _CLAMP,
    "clip": _CLAMP,
    "clamp_min": Operator(rule=layer_rules.clamp, parameters=("input", "min")),
    "clamp_max": Operator(rule=layer_rules.clamp, parameters=("input", "max")),
    "prelu": Operator(rule=layer_rules.prelu, parameters=("input", "weight")),
    **dict.fromkeys(("add", "iadd"), _ADD),
    **dict.fromkeys(("mul", "imul", "multiply"), _MULTIPLY),
    **dict.fromkeys(("div", "truediv", "itruediv", "divide"), _DIVIDE),
    **dict.fromkeys(("sub", "isub", "subtract"), _SUBTRACT),
    "rsub": Operator(rule=layer_rules.subtract, parameters=("other", "input")),
    **dict.fromkeys(("cat", "concat"), _CONCAT),
    **dict.fromkeys(("flatten", "view", "reshape", "squeeze", "unsqueeze"), _RESHAPE),
    **dict.fromkeys(("dropout", "dropout2d", "contiguous", "clone", "detach", "stochastic_depth"), _DROPPED),
    **dict.fromkeys(("chunk", "split"), _SPLIT),
    "permute": Operator(rule=shape_rules.permute, parameters=("input", "dims")),
    "transpose": Operator(rule=shape_rules.transpose, parameters=("input", "dim0", "dim1")),
    "getitem": Operator(rule=shape_rules.take, parameters=("input", "other")),
    "pad": Operator(rule=window_rules.pad, parameters=("input", "pad", "mode", "value")),
}

# Argument names of functions that differ from ours.
_KEYWORDS = {"tensors": "input", "min_val": "min", "max_val": "max", "axis": "dim"}


def module_call(module: nn.Module, args: tuple[Any, ...]) -> tuple[Rule, dict[str, Any]] | None:
    """Return the rule of a module and its arguments, or None if there is no rule."""
    kind = type(module)
    source = {"input": args[0]} if args else {}
    if kind in _TABLE_MODULES:
        if hasattr(module, "inplace"):
            # Other layers may read the tensor that it would overwrite.
            module.inplace = False  # type: ignore[assignment]
        return layer_rules.table, {**source, "function": module}
    if kind in _RENAMED:
        operator, names = _RENAMED[kind]
        return operator.rule, {**source, **{name: getattr(module, given) for name, given in names.items()}}
    if kind not in _MODULES:
        return None
    operator = _MODULES[kind]
    values = {name: getattr(module, name) for name in operator.parameters}
    return operator.rule, {**source, **values, **(operator.fixed or {})}


def function_call(node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Rule, dict[str, Any]] | None:
    """Return the rule of a function or method and its arguments, or None if there is no rule."""
    name = operator_name(node)
    kwargs = {key: value for key, value in kwargs.items() if key != "inplace"}
    if name in _TABLE_NAMES and _is_of_library(node) and args:
        return layer_rules.table, {
            "input": args[0],
            "function": _applied(node, args[1:], kwargs),
            "others": (*args[1:], *kwargs.values()),
        }
    operator = _NAMES.get(name) if _is_of_library(node) else None
    if operator is None:
        return None
    if name == "permute" and len(args) > 2:
        args = (args[0], args[1:])
    values = dict(zip(operator.parameters, args, strict=False))
    renamed = {_KEYWORDS.get(key, key): value for key, value in kwargs.items()}
    return operator.rule, {**values, **renamed, **(operator.fixed or {})}


def operator_name(node: fx.Node) -> str:
    """Return the name of a function or method, without the trailing underscore of in-place ones."""
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
    return name.rstrip("_")


def _is_of_library(node: fx.Node) -> bool:
    """Return whether a function belongs to a known package; the names of others carry no meaning."""
    module = getattr(node.target, "__module__", None)
    return isinstance(node.target, str) or module is None or module.split(".")[0] in _LIBRARIES


def _applied(node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Callable[[Any], Any]:
    """Bind all arguments of a function except the first."""
    target = node.target
    if isinstance(target, str):
        method = operator_name(node)
        return lambda x: getattr(x, method)(*args, **kwargs)
    # Positions of `inplace` differ between functions, so those that change their input get a copy.
    return lambda x: target(x.clone(), *args, **kwargs)
