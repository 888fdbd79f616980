"""`PruningPlan`: the channels that a network keeps, as a file that people can read and surgery can apply."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from models.fingerprint import network_fingerprint
from pruning.channels.graph import ChannelGraph
from pruning.channels.ids import FloatArray, IntArray
from utils.errors import PruningError
from utils.storage.files import write_json

# Name of the file that a plan is kept in.
PLAN_NAME = "plan.json"
# Digits to which importance is rounded in it.
_DIGITS = 4


@dataclass(frozen=True, kw_only=True)
class PruningPlan:
    """The channels of a network to keep, and the bottlenecks to remove.

    Attributes:
        fingerprint: `network_fingerprint` of the network that the plan was made for.
        keep: Kept output indices, sorted, of each convolution and linear layer that loses channels, by module path.
        bottlenecks: Module paths of shortcut bottlenecks to remove first; `keep` refers to the network after that.
        settings: Settings that produced the plan.
        importance: Importance by which channels were ranked, of each output of the convolutions and linear layers, by
            module path; None where it is unknown. Empty in plans that were written without it.
    """

    fingerprint: str
    keep: Mapping[str, tuple[int, ...]]
    bottlenecks: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    importance: Mapping[str, tuple[float | None, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, kept in self.keep.items():
            if not kept:
                raise PruningError(f"layer {name}: the plan keeps none of its channels; lower --percent")
            if list(kept) != sorted(set(kept)) or kept[0] < 0:
                raise PruningError(
                    f"layer {name}: the plan's channels must be distinct, ascending and not negative; make a new plan"
                )

    @classmethod
    def of(
        cls,
        model: nn.Module,
        graph: ChannelGraph,
        dropped: IntArray,
        *,
        settings: Mapping[str, Any] | None = None,
        bottlenecks: tuple[str, ...] = (),
        fingerprint: str | None = None,
        importance: FloatArray | None = None,
    ) -> PruningPlan:
        """Build the plan that drops these ids of a network.

        Args:
            model: Network that `graph` describes.
            graph: Channels of the network.
            dropped: Channel ids to drop (n,).
            settings: Settings to record in the plan.
            bottlenecks: Paths of the bottlenecks already removed from `model`.
            fingerprint: Fingerprint of the network before they were removed; None means that of `model`.
            importance: Importance by channel id (num_ids,) to record in the plan.
        """
        keep = {}
        for layer in graph.layers.values():
            stays = ~np.isin(layer.output_ids, dropped)
            if not layer.is_norm and not stays.all():
                keep[layer.name] = tuple(np.flatnonzero(stays).tolist())
        return cls(
            fingerprint=fingerprint or network_fingerprint(model),
            keep=keep,
            bottlenecks=bottlenecks,
            settings=dict(settings or {}),
            importance={} if importance is None else importance_by_layer(graph, importance),
        )

    def dropped_ids(self, model: nn.Module, graph: ChannelGraph) -> IntArray:
        """Return the ids that this plan drops, sorted (n,).

        Raises:
            PruningError: The layers are not those of `model`, or a channel that layers share is kept in one of them
                and dropped in another.
        """
        dropped: set[int] = set()
        for name, kept in self.keep.items():
            layer = graph.layers.get(name)
            if layer is None or kept[-1] >= len(layer.output_ids):
                raise PruningError(f"the plan's layer {name} does not fit this network; make a plan for it")
            dropped.update(np.delete(layer.output_ids, list(kept)).tolist())
        ids = np.array(sorted(dropped), dtype=np.int64)
        for layer in graph.layers.values():
            gone = np.isin(layer.output_ids, ids)
            kept = self.keep.get(layer.name, tuple(range(len(gone))))
            if not layer.is_norm and gone[list(kept)].any():
                raise PruningError(
                    f"layer {layer.name} keeps a channel that another layer, joined to it by an addition, drops; "
                    "make a new plan"
                )
        return ids

    def check_fits(self, model: nn.Module) -> None:
        """Check that a network has the layers and widths that the plan was made for.

        Raises:
            PruningError: The plan was made for another network.
        """
        found = network_fingerprint(model)
        if found != self.fingerprint:
            raise PruningError(
                f"the plan was made for another network (fingerprint {self.fingerprint[:12]}, this one has "
                f"{found[:12]}); make a plan for this one"
            )

    def then(self, later: PruningPlan) -> PruningPlan:
        """Return the plan that does at once what this one and then another do, the latter on what this one leaves.

        Raises:
            PruningError: The later one removes bottlenecks, so that its layers have other paths.
        """
        if later.bottlenecks:
            raise PruningError("a plan that removes bottlenecks cannot follow another one; apply them one by one")
        keep = dict(self.keep)
        for name, kept in later.keep.items():
            keep[name] = tuple(keep[name][index] for index in kept) if name in keep else kept
        return replace(self, keep=keep, settings=later.settings)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return {
            "fingerprint": self.fingerprint,
            "keep": {name: list(kept) for name, kept in self.keep.items()},
            "bottlenecks": list(self.bottlenecks),
            "settings": dict(self.settings),
            "importance": {name: list(values) for name, values in self.importance.items()},
        }

    @classmethod
    def from_dict(cls, values: Any, *, where: str) -> PruningPlan:
        """Rebuild from `to_dict`; `where` names its origin in messages.

        Raises:
            PruningError: `values` are not those of a plan.
        """
        try:
            return cls(
                fingerprint=str(values["fingerprint"]),
                keep={str(name): tuple(int(index) for index in kept) for name, kept in values["keep"].items()},
                bottlenecks=tuple(str(name) for name in values["bottlenecks"]),
                settings=dict(values["settings"]),
                importance={
                    str(name): tuple(None if value is None else float(value) for value in given)
                    for name, given in values.get("importance", {}).items()
                },
            )
        except PruningError as error:
            raise PruningError(f"{where}: {error}") from None
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise PruningError(f"{where}: not a pruning plan ({error!r}); use one that prune.py wrote") from None

    def save(self, path: Path) -> None:
        """Write the plan as JSON."""
        write_json(path, self.to_dict(), has_flat_lists=True)

    @classmethod
    def load(cls, path: Path) -> PruningPlan:
        """Read what `save` wrote.

        Raises:
            PruningError: The file cannot be read or contains no plan.
        """
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise PruningError(f"plan {path}: cannot be read ({error}); give a plan that prune.py wrote") from error
        return cls.from_dict(values, where=f"plan {path}")


def importance_by_layer(graph: ChannelGraph, importance: FloatArray) -> dict[str, tuple[float | None, ...]]:
    """Return the importance of each output of the convolutions and linear layers, by path, rounded for a file.

    Args:
        graph: Channels of the network.
        importance: Importance by channel id (num_ids,); NaN and infinity become None.
    """
    return {
        layer.name: tuple(_rounded(value) for value in importance[layer.output_ids].tolist())
        for layer in graph.layers.values()
        if not layer.is_norm
    }


def _rounded(value: float) -> float | None:
    return float(f"{value:.{_DIGITS}g}") if math.isfinite(value) else None
