"""Tables that map each operator to its channel rule; an operator not listed protects its channels."""

from __future__ import annotations

from collections.abc import Mapping

from torch import fx, nn

from engine.training.sync_bn import CpuSyncBatchNorm2d
from models.operators import (
    ACTIVATIONS,
    CASTS,
    CONCATENATIONS,
    ELEMENTWISE,
    IDENTITIES,
    POOLS,
    REDUCTIONS,
    SPLITS,
    module_operator,
    traced_operator,
)
from pruning.channels import layer_rules, shape_rules
from pruning.channels.recording import Rule

# Rules by name of the operator in `models.operators`, for modules, functions and methods alike.
_RULES: Mapping[str, Rule] = {
    **dict.fromkeys(ACTIVATIONS, shape_rules.pointwise),
    **dict.fromkeys((*IDENTITIES, *CASTS, *POOLS, "interpolate", "repeat_pad"), shape_rules.pass_on),
    **dict.fromkeys(ELEMENTWISE, shape_rules.elementwise),
    **dict.fromkeys(CONCATENATIONS, shape_rules.concat),
    **dict.fromkeys(SPLITS, shape_rules.split),
    **dict.fromkeys(REDUCTIONS, shape_rules.reduce),
    **dict.fromkeys(("transpose", "squeeze", "unsqueeze"), shape_rules.of_positions),
    **dict.fromkeys(("view", "reshape"), shape_rules.reshape),
    "getitem": shape_rules.take,
    "flatten": shape_rules.flatten,
    "permute": shape_rules.permute,
    "pad": shape_rules.pad,
    "prelu": layer_rules.prelu,
}
MODULE_RULES: Mapping[str, Rule] = {
    **_RULES,
    "conv2d": layer_rules.convolution,
    "linear": layer_rules.linear,
    "batch_norm": layer_rules.batch_norm,
    "flatten": shape_rules.flatten_module,
    "pad": shape_rules.pass_on,
}
FUNCTION_RULES: Mapping[str, Rule] = _RULES
# Operators without a counterpart in `models.operators`.
_OWN_MODULES: Mapping[type[nn.Module], Rule] = {CpuSyncBatchNorm2d: layer_rules.batch_norm}
_OWN_METHODS: Mapping[str, Rule] = {
    "size": shape_rules.read,
    "dim": shape_rules.read,
    "expand_as": shape_rules.expand_as,
}


def module_rule(module: nn.Module) -> Rule | None:
    """Return the rule of a module's class, or of the base class whose `forward` it inherits."""
    for kind in type(module).__mro__:
        rule = _OWN_MODULES.get(kind) or MODULE_RULES.get(module_operator(kind) or "")
        if rule and issubclass(kind, nn.Module) and type(module).forward is kind.forward:
            return rule
    return None


def rule_of(node: fx.Node, module: nn.Module | None) -> Rule | None:
    """Return the rule of a traced operator, or None if it is unknown."""
    if module is not None:
        return module_rule(module)
    if node.target is getattr:
        return shape_rules.read
    if node.op == "call_method" and node.target in _OWN_METHODS:
        return _OWN_METHODS[str(node.target)]
    return FUNCTION_RULES.get(traced_operator(node) or "")
