"""Tables that map each operator to its channel rule; an operator not listed protects its channels."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from engine.training.sync_bn import CpuSyncBatchNorm2d
from pruning.channels import layer_rules, shape_rules
from pruning.channels.recording import Rule

_ACTIVATIONS = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.SiLU, nn.Hardswish, nn.Hardsigmoid, nn.Sigmoid, nn.Tanh, nn.GELU, nn.ELU,
    nn.SELU, nn.CELU, nn.Mish, nn.Softplus, nn.Softsign, nn.Hardtanh, nn.LogSigmoid,
)  # fmt: skip
_PER_CHANNEL = (
    nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d,
    nn.AdaptiveMaxPool2d, nn.LPPool2d, nn.Upsample, nn.UpsamplingNearest2d, nn.UpsamplingBilinear2d, nn.ZeroPad2d,
    nn.ConstantPad2d, nn.ReflectionPad2d, nn.ReplicationPad2d, nn.CircularPad2d,
)  # fmt: skip
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.SyncBatchNorm, CpuSyncBatchNorm2d)

MODULE_RULES: dict[type[nn.Module], Rule] = {
    nn.Conv2d: layer_rules.convolution,
    nn.Linear: layer_rules.linear,
    nn.PReLU: layer_rules.prelu,
    nn.Flatten: shape_rules.flatten_module,
    **dict.fromkeys(_BATCH_NORMS, layer_rules.batch_norm),
    **dict.fromkeys((*_ACTIVATIONS, *_PER_CHANNEL), shape_rules.pass_on),
}

FUNCTION_RULES: dict[Callable[..., Any], Rule] = {
    **dict.fromkeys(
        (
            F.relu, F.relu6, F.leaky_relu, F.silu, F.hardswish, F.hardsigmoid, F.sigmoid, F.tanh, F.gelu, F.elu,
            F.selu, F.mish, F.softplus, F.hardtanh, F.dropout, F.dropout2d, F.max_pool2d, F.avg_pool2d,
            F.adaptive_avg_pool2d, F.adaptive_max_pool2d, F.interpolate, F.upsample, torch.relu, torch.sigmoid,
            torch.tanh, torch.abs, torch.neg, torch.exp, torch.sqrt, torch.clamp, torch.square, operator.neg,
            operator.pow, torch.clone,
        ),
        shape_rules.pass_on,
    ),
    **dict.fromkeys(
        (
            operator.add, operator.sub, operator.mul, operator.truediv, operator.iadd, operator.isub, operator.imul,
            operator.itruediv, torch.add, torch.sub, torch.mul, torch.div, torch.maximum, torch.minimum,
        ),
        shape_rules.elementwise,
    ),
    **dict.fromkeys((torch.cat, torch.concat, torch.concatenate), shape_rules.concat),
    **dict.fromkeys((torch.split, torch.chunk), shape_rules.split),
    **dict.fromkeys((torch.mean, torch.sum, torch.amax, torch.amin), shape_rules.reduce),
    **dict.fromkeys((torch.transpose, torch.squeeze, torch.unsqueeze), shape_rules.of_positions),
    operator.getitem: shape_rules.take,
    torch.flatten: shape_rules.flatten,
    torch.reshape: shape_rules.reshape,
    torch.permute: shape_rules.permute,
    F.pad: shape_rules.pad,
    getattr: shape_rules.read,
}  # fmt: skip

# Functions of packages that need not be installed, by module and name.
NAMED_FUNCTION_RULES: dict[str, Rule] = {
    "torchvision.ops.stochastic_depth.stochastic_depth": shape_rules.pass_on,
}

METHOD_RULES: dict[str, Rule] = {
    **dict.fromkeys(
        (
            "relu", "relu_", "sigmoid", "sigmoid_", "tanh", "tanh_", "abs", "neg", "exp", "sqrt", "square", "pow",
            "clamp", "clamp_", "contiguous", "clone", "detach", "float", "half", "double", "to", "type_as",
        ),
        shape_rules.pass_on,
    ),
    **dict.fromkeys(
        ("add", "add_", "sub", "sub_", "mul", "mul_", "div", "div_", "maximum", "minimum"), shape_rules.elementwise
    ),
    **dict.fromkeys(("split", "chunk"), shape_rules.split),
    **dict.fromkeys(("mean", "sum", "amax", "amin"), shape_rules.reduce),
    **dict.fromkeys(("transpose", "squeeze", "unsqueeze"), shape_rules.of_positions),
    **dict.fromkeys(("size", "dim"), shape_rules.read),
    **dict.fromkeys(("view", "reshape"), shape_rules.reshape),
    "flatten": shape_rules.flatten,
    "permute": shape_rules.permute,
    "expand_as": shape_rules.expand_as,
}  # fmt: skip


def module_rule(module: nn.Module) -> Rule | None:
    """Return the rule of a module's class, or of the base class whose `forward` it inherits."""
    for kind in type(module).__mro__:
        if kind in MODULE_RULES and type(module).forward is kind.forward:
            return MODULE_RULES[kind]
    return None


def rule_of(node: fx.Node, module: nn.Module | None) -> Rule | None:
    """Return the rule of a traced operator, or None if it is unknown."""
    if module is not None:
        return module_rule(module)
    if node.op == "call_method":
        return METHOD_RULES.get(str(node.target))
    rule = FUNCTION_RULES.get(node.target)  # type: ignore[arg-type]
    return rule or NAMED_FUNCTION_RULES.get(operator_name(node))


def operator_name(node: fx.Node) -> str:
    """Return the full name of a traced function, or the target of a method or module unchanged."""
    if callable(node.target):
        return f"{getattr(node.target, '__module__', '')}.{getattr(node.target, '__name__', node.target)}"
    return str(node.target)
