"""Find the batch norms that read a layer's output unchanged, so that their means can absorb a shift of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import fx, nn

from models.operators import CONCATENATIONS, IDENTITIES, SPLITS, module_operator, traced_operator
from pruning.channels.ids import IntArray
from pruning.channels.layer_rules import BATCH_NORM, READS_ALL
from pruning.channels.recording import LayerRecord, Recording, Tracked, from_front

# Operators whose output shifts with their input: f(x + d) = f(x) + d for one value d per channel.
_SHIFTING = {
    *("max_pool2d", "adaptive_avg_pool2d", "adaptive_max_pool2d", "interpolate", "flatten", "getitem"),
    *(*IDENTITIES, *SPLITS),
}
_SIZES = ("size", "dim", getattr)


@dataclass(frozen=True, kw_only=True)
class NormAfter:
    """A batch norm that reads output channels of a layer unchanged.

    Attributes:
        name: Module path of the batch norm.
        sources: Index of the layer's output channel that each batch-norm channel reads, or -1 (C,).
    """

    name: str
    sources: IntArray


class _Shifted(Exception):
    """A shift of the layer's output would change something other than the mean of a batch norm."""


@dataclass(frozen=True, kw_only=True)
class _Pass:
    """A finished pass over a traced network.

    Attributes:
        recording: Layers by path, and the layer that each node applies.
        uses: Uses of each layer, by path.
        module_of: Function that returns the module that a node calls, if it calls one.
        value_of: Function that returns the value of a node.
    """

    recording: Recording
    uses: Mapping[str, int]
    module_of: Callable[[fx.Node], nn.Module | None]
    value_of: Callable[[fx.Node], Any]

    def layer_of(self, node: fx.Node) -> tuple[str, LayerRecord | None]:
        """Return path and record of the layer that a node applies."""
        name = self.recording.calls.get(node.name, "")
        return name, self.recording.layers.get(name)


def norms_after(
    operators: fx.Graph,
    recording: Recording,
    *,
    module_of: Callable[[fx.Node], nn.Module | None],
    value_of: Callable[[fx.Node], Any],
) -> dict[str, tuple[NormAfter, ...]]:
    """Find, for each layer without a bias, the batch norms that read its output, if nothing else reads it.

    Args:
        operators: Traced graph.
        recording: Recorded layers, with ids not yet resolved: no two layers produce the same ids.
        module_of: Returns the module that a node calls, if it calls one.
        value_of: Returns the value of a node: one or several `Tracked`.
    """
    uses = Counter(recording.calls.values())
    finished = _Pass(recording=recording, uses=uses, module_of=module_of, value_of=value_of)
    found: dict[str, tuple[NormAfter, ...]] = {}
    failed: set[str] = set()
    for node in operators.nodes:
        name, layer = finished.layer_of(node)
        if layer is None or layer.kind not in READS_ALL or getattr(layer.module, "bias", None) is not None:
            continue
        try:
            found[name] = (*found.get(name, ()), *_norms_of(node, finished))
        except _Shifted:
            failed.add(name)
    return {name: norms for name, norms in found.items() if name not in failed}


def _norms_of(node: fx.Node, finished: _Pass) -> tuple[NormAfter, ...]:
    """Find the batch norms behind one call of a layer.

    Raises:
        _Shifted: Something else reads the output of the layer.
    """
    made = finished.value_of(node).ids
    names: dict[str, None] = {}
    pending, seen = [node], {node}
    while pending:
        for user in pending.pop().users:
            if user in seen:
                continue
            seen.add(user)
            if _is_norm(user, finished):
                names[finished.layer_of(user)[0]] = None
            elif user.target not in _SIZES or isinstance(finished.value_of(user), Tracked):
                _check_shifts(user, finished)
                pending.append(user)
    return tuple(
        NormAfter(name=name, sources=_sources(finished.recording.layers[name].input_ids, made)) for name in names
    )


def _is_norm(node: fx.Node, finished: _Pass) -> bool:
    """Return whether a node is a batch norm with a mean that only this call uses.

    Raises:
        _Shifted: The batch norm is used more than once or has no running mean.
    """
    name, layer = finished.layer_of(node)
    if layer is None or layer.kind != BATCH_NORM:
        return False
    if finished.uses[name] > 1 or layer.module.running_mean is None:
        raise _Shifted
    return True


def _check_shifts(node: fx.Node, finished: _Pass) -> None:
    """Raise `_Shifted` unless the output of the node shifts with its input, channel by channel."""
    module = finished.module_of(node)
    name = module_operator(type(module)) if module is not None else traced_operator(node)
    if isinstance(module, nn.AvgPool2d):
        shifts = not any(np.atleast_1d(module.padding)) and module.divisor_override is None
    elif name in CONCATENATIONS:
        # Concatenated along another dimension, the result has the channels of a single input.
        dim, value = _dimension_of(node), finished.value_of(node)
        shifts = from_front(dim, ndim=value.ndim) == value.axis
    else:
        shifts = name in _SHIFTING
    if not shifts:
        raise _Shifted


def _dimension_of(node: fx.Node) -> Any:
    """Return the dimension along which a node concatenates."""
    return node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", node.kwargs.get("axis", 0))


def _sources(ids: IntArray, made: IntArray) -> IntArray:
    """Return the position of each of `ids` in `made`, which are consecutive new ids, or -1."""
    positions = ids - made[0]
    return np.where((positions >= 0) & (positions < len(made)), positions, -1)
