"""Tables that map operators to their lowering rules."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import fx, nn

from models.operators import (
    ACTIVATIONS,
    CLAMPS,
    CONCATENATIONS,
    IDENTITIES,
    KEYWORDS,
    SPLITS,
    module_operator,
    traced_operator,
)
from quantization.lowering import layer_rules, shape_rules, window_rules
from quantization.lowering.building import Rule


@dataclass(frozen=True, kw_only=True)
class _Row:
    """One row of the tables below.

    Attributes:
        rule: Function that lowers the operator.
        parameters: Names of positional arguments, in order; for a module, of the attributes that it has for them.
        attributes: Attributes of a module that have other names than the arguments.
        fixed: Arguments of the rule that the operator implies.
    """

    rule: Rule
    parameters: tuple[str, ...] = ("input",)
    attributes: Mapping[str, str] = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=dict)


_CONV = ("weight", "bias", "stride", "padding", "dilation", "groups", "padding_mode")
_NORM = ("running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")
_MAX_POOL = ("kernel_size", "stride", "padding", "dilation", "ceil_mode")
_AVG_POOL = ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override")
_OPERANDS = ("input", "other")

# Activations that become tables.
_TABLES = ACTIVATIONS.keys() - CLAMPS.keys()
# Rows by name of the operator in `models.operators`, for functions, methods and modules alike.
_ROWS: Mapping[str, _Row] = {
    "conv2d": _Row(rule=layer_rules.conv, parameters=("input", *_CONV)),
    "linear": _Row(rule=layer_rules.linear, parameters=("input", "weight", "bias")),
    "batch_norm": _Row(rule=layer_rules.batch_norm, parameters=("input", *_NORM)),
    "prelu": _Row(rule=layer_rules.prelu, parameters=("input", "weight")),
    "max_pool2d": _Row(rule=window_rules.max_pool, parameters=("input", *_MAX_POOL)),
    "avg_pool2d": _Row(rule=window_rules.avg_pool, parameters=("input", *_AVG_POOL)),
    "adaptive_avg_pool2d": _Row(rule=window_rules.adaptive_avg_pool),
    "mean": _Row(rule=window_rules.mean, parameters=("input", "dim", "keepdim")),
    "interpolate": _Row(rule=shape_rules.upsample, parameters=("input", "size", "scale_factor", "mode")),
    "pad": _Row(rule=window_rules.pad, parameters=("input", "pad", "mode", "value")),
    "relu": _Row(rule=layer_rules.clamp, fixed={"min": 0}),
    "relu6": _Row(rule=layer_rules.clamp, fixed={"min": 0, "max": 6}),
    **dict.fromkeys(("hardtanh", "clamp"), _Row(rule=layer_rules.clamp, parameters=("input", "min", "max"))),
    "clamp_min": _Row(rule=layer_rules.clamp, parameters=("input", "min")),
    "clamp_max": _Row(rule=layer_rules.clamp, parameters=("input", "max")),
    "add": _Row(rule=layer_rules.add, parameters=_OPERANDS),
    "sub": _Row(rule=layer_rules.subtract, parameters=_OPERANDS),
    "rsub": _Row(rule=layer_rules.subtract, parameters=_OPERANDS[::-1]),
    "mul": _Row(rule=layer_rules.multiply, parameters=_OPERANDS),
    "div": _Row(rule=layer_rules.divide, parameters=_OPERANDS),
    **dict.fromkeys(CONCATENATIONS, _Row(rule=shape_rules.concat, parameters=("input", "dim"))),
    **dict.fromkeys(SPLITS, _Row(rule=shape_rules.split, parameters=("input", "number", "dim"))),
    **dict.fromkeys(("flatten", "view", "reshape", "squeeze", "unsqueeze"), _Row(rule=shape_rules.reshape)),
    **dict.fromkeys(IDENTITIES, _Row(rule=shape_rules.identity)),
    "permute": _Row(rule=shape_rules.permute, parameters=("input", "dims")),
    "transpose": _Row(rule=shape_rules.transpose, parameters=("input", "dim0", "dim1")),
    "getitem": _Row(rule=shape_rules.take, parameters=_OPERANDS),
}
# Modules whose attributes differ from the arguments of the functions.
_MODULE_ROWS: Mapping[str, _Row] = {
    **_ROWS,
    "hardtanh": _Row(
        rule=layer_rules.clamp,
        parameters=("input", "min", "max"),
        attributes={"min": "min_val", "max": "max_val"},
    ),
    "pad": _Row(rule=window_rules.pad, parameters=("input", "pad", "value"), attributes={"pad": "padding"}),
}

# Argument names of functions that differ from ours.
_KEYWORDS = {**KEYWORDS, "tensors": "input", "min_val": "min", "max_val": "max"}


def module_call(module: nn.Module, args: tuple[Any, ...]) -> tuple[Rule, dict[str, Any]] | None:
    """Return the rule of a module and its arguments, or None if there is no rule."""
    name = module_operator(type(module)) or ""
    source = {"input": args[0]} if args else {}
    if name in _TABLES:
        if hasattr(module, "inplace"):
            # Other layers may read the tensor that it would overwrite.
            module.inplace = False  # type: ignore[assignment]
        return layer_rules.table, {**source, "function": module}
    if name not in _MODULE_ROWS:
        return None
    row = _MODULE_ROWS[name]
    named = {key: row.attributes.get(key, key) for key in row.parameters if key != "input"}
    values = {key: getattr(module, attribute) for key, attribute in named.items()}
    return row.rule, {**source, **values, **row.fixed}


def function_call(node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Rule, dict[str, Any]] | None:
    """Return the rule of a function or method and its arguments, or None if there is no rule."""
    name = traced_operator(node) or ""
    kwargs = {key: value for key, value in kwargs.items() if key != "inplace"}
    if name in _TABLES and args:
        return layer_rules.table, {
            "input": args[0],
            "function": _applied(node, args[1:], kwargs),
            "others": (*args[1:], *kwargs.values()),
        }
    if name not in _ROWS:
        return None
    row = _ROWS[name]
    if name == "permute" and len(args) > 2:
        args = (args[0], args[1:])
    values = dict(zip(row.parameters, args, strict=False))
    renamed = {_KEYWORDS.get(key, key): value for key, value in kwargs.items()}
    return row.rule, {**values, **renamed, **row.fixed}


def operator_name(node: fx.Node) -> str:
    """Return the name of a function or method, without the trailing underscore of in-place ones."""
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
    return name.rstrip("_")


def _applied(node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Callable[[Any], Any]:
    """Bind all arguments of a function except the first."""
    target = node.target
    if isinstance(target, str):
        method = operator_name(node)
        return lambda x: getattr(x, method)(*args, **kwargs)
    # Positions of `inplace` differ between functions, so those that change their input get a copy.
    return lambda x: target(x.clone(), *args, **kwargs)
