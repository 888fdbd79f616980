"""Tables that map each operator to its channel rule; an operator not listed protects its channels."""

from __future__ import annotations

from collections.abc import Mapping

from torch import fx, nn
from torch.nn.utils import parametrize

from engine.training.sync_bn import CpuSyncBatchNorm2d
from models.operators import (
    ACTIVATIONS,
    CASTS,
    COMPARISONS,
    CONCATENATIONS,
    ELEMENTWISE,
    IDENTITIES,
    MIXTURES,
    MOVES,
    POOLS,
    POOLS_1D,
    REDUCTIONS,
    SPLITS,
    STATISTICS,
    VALUES,
    module_operator,
    traced_operator,
)
from pruning.channels import layer_rules, mixing_rules, part_rules, reorder_rules, reshape_rules, shape_rules
from pruning.channels.recording import Call, Rule, UnknownOperator

# Rules by name of the operator in `models.operators`, for modules, functions and methods alike.
_RULES: Mapping[str, Rule] = {
    **dict.fromkeys((*IDENTITIES, *CASTS), shape_rules.pass_on),
    **dict.fromkeys((*POOLS, "repeat_pad"), shape_rules.of_windows),
    **dict.fromkeys(POOLS_1D, shape_rules.of_rows),
    **dict.fromkeys((*ACTIVATIONS, *VALUES, *ELEMENTWISE, *COMPARISONS, *MIXTURES), shape_rules.elementwise),
    **dict.fromkeys((*REDUCTIONS, *STATISTICS), shape_rules.reduce),
    **dict.fromkeys(CONCATENATIONS, part_rules.concat),
    **dict.fromkeys(SPLITS, part_rules.split),
    **dict.fromkeys(MOVES, shape_rules.of_other_dimensions),
    **dict.fromkeys(("view", "reshape"), reshape_rules.reshape),
    **dict.fromkeys(("softmax", "log_softmax"), mixing_rules.softmax),
    **dict.fromkeys(("max", "min"), reorder_rules.extreme),
    "stack": part_rules.stack,
    "movedim": reorder_rules.movedim,
    "repeat": reorder_rules.repeat,
    "glu": reorder_rules.glu,
    "pixel_shuffle": reorder_rules.pixel_shuffle,
    "pixel_unshuffle": reorder_rules.pixel_unshuffle,
    "channel_shuffle": reorder_rules.channel_shuffle,
    "interpolate": shape_rules.interpolate,
    "transpose": shape_rules.transpose,
    "squeeze": shape_rules.squeeze,
    "unsqueeze": shape_rules.unsqueeze,
    "unbind": shape_rules.unbind,
    "permute": shape_rules.permute,
    "pad": shape_rules.pad,
    "getitem": part_rules.take,
    "flatten": reshape_rules.flatten,
    "expand": reshape_rules.expand,
    "layer_norm": mixing_rules.layer_norm,
    "group_norm": mixing_rules.group_norm,
    "matmul": mixing_rules.matmul,
    "scaled_dot_product_attention": mixing_rules.attention,
}
_LAYERS: Mapping[str, Rule] = {
    **dict.fromkeys(("conv1d", "conv2d", "conv3d", "conv_transpose"), layer_rules.convolution),
    **dict.fromkeys(("batch_norm", "batch_norm3d", "instance_norm"), layer_rules.batch_norm),
    "linear": layer_rules.linear,
}
MODULE_RULES: Mapping[str, Rule] = {
    **_RULES,
    **_LAYERS,
    "prelu": layer_rules.prelu,
    "multihead_attention": mixing_rules.multihead_attention,
    "pad": shape_rules.of_windows,
}
FUNCTION_RULES: Mapping[str, Rule] = {
    **_RULES,
    **dict.fromkeys(("conv1d", "conv2d", "conv3d"), layer_rules.convolution_function),
    "batch_norm": layer_rules.batch_norm_function,
    "linear": layer_rules.linear_function,
    "prelu": layer_rules.prelu_function,
}
# Operators without a counterpart in `models.operators`.
_OWN_MODULES: Mapping[type[nn.Module], Rule] = {
    CpuSyncBatchNorm2d: layer_rules.batch_norm,
    nn.Dropout3d: shape_rules.pass_on,
    **dict.fromkeys((nn.MaxPool3d, nn.AvgPool3d, nn.AdaptiveAvgPool3d, nn.AdaptiveMaxPool3d), shape_rules.of_volumes),
}
_OWN_METHODS: Mapping[str, Rule] = {
    "size": shape_rules.size,
    "dim": shape_rules.fact,
    "ndimension": shape_rules.fact,
    "expand_as": reshape_rules.expand_as,
    "view_as": reshape_rules.reshape_as,
    "reshape_as": reshape_rules.reshape_as,
}
# Rules that follow counts of channels among their arguments.
_FOLLOWING = (reshape_rules.reshape, reshape_rules.expand, part_rules.take, part_rules.split)
# A transposed convolution is given a size of its output, of which it takes the positions alone.
_COUNTING = (*_FOLLOWING, layer_rules.convolution)
# Layers that read a tensor even if its channels are unknown.
_READING = {*_LAYERS.values(), layer_rules.convolution_function, layer_rules.linear_function}


def module_rule(module: nn.Module) -> Rule | None:
    """Return the rule of a module's class, or of the base class whose `forward` it inherits."""
    for kind in type(module).__mro__:
        rule = _OWN_MODULES.get(kind) or MODULE_RULES.get(module_operator(kind) or "")
        if rule and issubclass(kind, nn.Module) and type(module).forward is kind.forward:
            change = _change_of(module, kind)
            return rule if change is None else _changed(change)
    return layer_rules.batch_norm if layer_rules.is_frozen_norm(module) else None


def _change_of(module: nn.Module, kind: type[nn.Module]) -> str | None:
    """Say by what a module computes something else than its class, or None."""
    if module._forward_hooks or module._forward_pre_hooks:
        return "it has forward hooks, which may change what it computes"
    if parametrize.is_parametrized(module):
        return "its weights are computed by parametrisations"
    own = getattr(type(module), "_conv_forward", None)
    if own is not getattr(kind, "_conv_forward", None):
        return "it is a convolution with arithmetic of its own"
    return None


def _changed(reason: str) -> Rule:
    def rule(call: Call) -> None:
        raise UnknownOperator(reason)

    return rule


def rule_of(node: fx.Node, module: nn.Module | None) -> Rule | None:
    """Return the rule of a traced operator, or None if it is unknown."""
    if module is not None:
        return module_rule(module)
    if node.target is getattr:
        return shape_rules.attribute
    if node.op == "call_method" and node.target in _OWN_METHODS:
        return _OWN_METHODS[str(node.target)]
    return FUNCTION_RULES.get(traced_operator(node) or "")


def follows_counts(rule: Rule | None) -> bool:
    """Return whether a rule knows what to do with counts of channels among the arguments."""
    return rule in _COUNTING


def reads_anything(rule: Rule | None) -> bool:
    """Return whether an operator is a layer, which makes channels of whatever it reads."""
    return rule in _READING
