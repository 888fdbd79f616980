"""Remove whole shortcut bottlenecks: if the branch adds nothing, the block is the identity."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TypeVar

from torch import nn

from models.copies import tensors_by_name
from models.detector import Detector
from models.layer_table import MODULE_RULES, LayerSpec
from pruning.channels.shortcuts import shortcut_bottleneck_names
from pruning.surgery.rebuild import rebuilt
from utils.errors import PruningError

T = TypeVar("T")


def drop_bottlenecks(model: nn.Module, names: Iterable[str]) -> Detector:
    """Build a detector without these bottlenecks, each of which acts as the identity.

    Args:
        model: Detector; it is not changed, and the new one shares no memory with it.
        names: Paths of bottlenecks with a shortcut, such as `model.4.m.0`. Those behind a removed one move up.

    Raises:
        PruningError: The network is no detector, or a name is not the path of such a bottleneck.
    """
    if not isinstance(model, Detector):
        raise PruningError(
            f"bottlenecks are removed from detectors, and the network is a {type(model).__name__}; leave "
            "--drop-bottlenecks out, or make a plan for it"
        )
    removed = set(names)
    known = shortcut_bottleneck_names(model)
    unknown = sorted(removed.difference(known))
    if unknown:
        raise PruningError(
            f"{', '.join(unknown)}: no bottleneck with a shortcut; known: {', '.join(known) or 'none'}"
        )
    rows = list(model.spec.layers)
    moves: dict[str, str | None] = {}
    for index in {int(name.split(".")[1]) for name in removed}:
        paths = _paths(index, rows[index], number=rows[index].number)
        kept = [path for path in paths if path not in removed]
        rows[index] = _with_number(rows[index], len(kept))
        moves |= dict.fromkeys(paths)
        moves |= dict(zip(kept, _paths(index, rows[index], number=len(kept)), strict=True))
    back = {new: old for old, new in moves.items() if new is not None}
    return rebuilt(
        replace(model.spec, layers=tuple(rows), widths=_renamed(model.spec.widths, moves)),
        {name: tensor.detach().clone() for name, tensor in _renamed(tensors_by_name(model), moves).items()},
        like=model,
        origin=lambda name: _moved(name, back) or name,
    )


def _paths(index: int, row: LayerSpec, *, number: int) -> list[str]:
    """List the module paths of a layer's `number` bottlenecks, which are inside a block or a chain of layers."""
    if MODULE_RULES[row.module].takes_number:
        return [f"model.{index}.m.{position}" for position in range(number)]
    if number == 1:
        return [f"model.{index}"]
    return [f"model.{index}.{position}" for position in range(number)]


def _with_number(row: LayerSpec, number: int) -> LayerSpec:
    """Return a copy of a row with `number` bottlenecks."""
    if number == 0 and not MODULE_RULES[row.module].takes_number:
        # Keep a layer there, so that no index changes: a concat of one map is the identity.
        return replace(row, number=1, module="Concat", args=(1,))
    return replace(row, number=number)


def _renamed(values: Mapping[str, T], moves: Mapping[str, str | None]) -> dict[str, T]:
    """Rename values after blocks have moved, and leave out those of removed blocks."""
    moved = {_moved(name, moves): value for name, value in values.items()}
    return {name: value for name, value in moved.items() if name is not None}


def _moved(name: str, moves: Mapping[str, str | None]) -> str | None:
    """Return a path after blocks have moved; None if it is inside a removed one."""
    parts = name.split(".")
    for length in range(1, len(parts) + 1):
        block = ".".join(parts[:length])
        if block in moves:
            new = moves[block]
            return None if new is None else ".".join([new, *parts[length:]])
    return name
