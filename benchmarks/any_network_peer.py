"""What torch-pruning does with a network of the table, and whether its cut is that of a masked network."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.any_network_cases import NUM_CLASSES, Case, freeze_norms_
from benchmarks.any_network_numbers import EXACT, largest_difference, outputs_at, settle_
from benchmarks.any_network_ours import RATIO
from benchmarks.pruning_speed import import_torch_pruning
from models.complexity import count_parameters

_NORMS = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm)
_LAYERS = (nn.modules.conv._ConvNd, nn.Linear, nn.MultiheadAttention, *_NORMS)


@dataclass(frozen=True, kw_only=True)
class Removed:
    """Indices of a parameter that a cut removed.

    Attributes:
        owner: Module of the parameter.
        name: Name of the parameter in the whole network.
        by_dimension: Indices removed, by dimension; dimensions that lost nothing are left out.
    """

    owner: nn.Module
    name: str
    by_dimension: Mapping[int, Tensor]


def measure_peer(case: Case, result: dict[str, Any]) -> None:
    """Prune a network with torch-pruning and compare; what is known so far is in `result` whatever happens then."""
    peer = import_torch_pruning()
    model = settle_(case.build(), case.image_chw)
    if case.is_frozen:
        freeze_norms_(model)
    result["parameters"] = count_parameters(model)
    small = copy.deepcopy(model)
    result["stage"] = "cut"
    peer.pruner.MetaPruner(
        small,
        torch.rand(1, *case.image_chw, dtype=torch.float64),
        importance=peer.importance.MagnitudeImportance(p=2),
        global_pruning=False,
        pruning_ratio=RATIO,
        ignored_layers=_last_layers(small, case),
    ).step()
    result["left"] = count_parameters(small) / result["parameters"]
    if result["left"] == 1:
        result["verdict"] = "cuts nothing"
        return
    result["stage"] = "run the cut network"
    found = outputs_at(small, case.image_chw)
    result["stage"] = "compare"
    try:
        removed = list(removed_indices(model, small))
        mask_removed_(model, removed)
    except LookupError as error:
        result.update(verdict="cannot be compared", message=str(error))
        return
    masked = outputs_at(model, case.image_chw)
    if [tensor.shape for tensor in masked] != [tensor.shape for tensor in found]:
        result.update(verdict="cannot be compared", message="its outputs lost channels")
        return
    result["error"] = largest_difference(found, masked)
    result["verdict"] = "exact" if result["error"] < EXACT else "differs"


def _last_layers(model: nn.Module, case: Case) -> list[nn.Module]:
    """Return the layers that make the outputs: classifiers, or the convolutions behind a feature pyramid."""
    if case.name.startswith("backbone:"):
        return [module for name, module in model.named_modules() if name.startswith("fpn.") and "block" in name]
    linear = [module for module in model.modules() if getattr(module, "out_features", 0) == NUM_CLASSES]
    # SqueezeNet classifies by a convolution.
    return linear or [module for module in model.modules() if getattr(module, "out_channels", 0) == NUM_CLASSES]


def removed_indices(dense: nn.Module, small: nn.Module) -> Iterator[Removed]:
    """Find what a cut removed from each parameter, by the values that are left, which must be distinct.

    Raises:
        LookupError: A parameter of the cut network is no part of the same parameter before.
    """
    before = dict(dense.named_parameters())
    for name, after in small.named_parameters():
        if name not in before:
            raise LookupError(f"{name} is not a parameter of the network before")
        if after.shape != before[name].shape:
            owner = dense.get_submodule(name.rpartition(".")[0])
            yield Removed(owner=owner, name=name, by_dimension=_removed(before[name].detach(), after.detach(), name))


def _removed(before: Tensor, after: Tensor, name: str) -> dict[int, Tensor]:
    values, order = before.flatten().sort()
    removed: dict[int, Tensor] = {}
    part = before
    for dimension in range(before.ndim):
        if before.shape[dimension] == after.shape[dimension]:
            continue
        # One value for each index along this dimension, all other indices 0.
        line = after.movedim(dimension, 0).reshape(after.shape[dimension], -1)[:, 0].contiguous()
        at = order[torch.searchsorted(values, line).clamp(max=len(values) - 1)]
        kept = torch.unravel_index(at, before.shape)[dimension]
        part = part.index_select(dimension, kept)
        is_removed = torch.ones(before.shape[dimension], dtype=torch.bool)
        is_removed[kept] = False
        removed[dimension] = is_removed.nonzero().flatten()
    if not torch.equal(part, after):
        raise LookupError(f"{name}: the values left are not a part of those before")
    return removed


@torch.no_grad()
def mask_removed_(dense: nn.Module, removed: list[Removed]) -> None:
    """Set to zero all that made or shifted the removed channels.

    Layer norms that lost channels normalise over the channels left.

    Raises:
        LookupError: Masked channels would change what a layer does to the others.
    """
    for item in removed:
        parameter = dense.get_parameter(item.name)
        for dimension, indices in item.by_dimension.items():
            if dimension in _output_dimensions(item):
                parameter.movedim(dimension, 0)[indices] = 0
        if isinstance(item.owner, nn.GroupNorm):
            raise LookupError(f"{item.name}: the groups of a group norm changed")
        if isinstance(item.owner, nn.LayerNorm) and item.name.endswith("weight"):
            _normalise_rest_(item.owner, item.by_dimension[0])


def _output_dimensions(item: Removed) -> tuple[int, ...]:
    """Return the dimensions of a parameter that count output channels; a stored tensor has no others."""
    if isinstance(item.owner, nn.modules.conv._ConvTransposeNd) and item.name.endswith("weight"):
        if item.owner.groups > 1:
            raise LookupError(f"{item.name}: a transposed convolution of groups")
        return (1,)
    is_layer = isinstance(item.owner, _LAYERS)
    return (0,) if is_layer else tuple(item.by_dimension)


def _normalise_rest_(norm: nn.LayerNorm, removed: Tensor) -> None:
    """Let a layer norm leave removed channels out of its mean and variance, and set them to zero."""
    is_kept = torch.ones(norm.normalized_shape[0], dtype=torch.bool)
    is_kept[removed] = False
    kept = is_kept.nonzero().flatten()

    def normalise(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        (values,) = inputs
        # timm and torchvision have layer norms over the second dimension of (B, C, H, W).
        dimension = 1 if "2d" in type(norm).__name__ else -1
        rest = values.movedim(dimension, -1)[..., kept]
        whole = torch.zeros_like(output.movedim(dimension, -1))
        whole[..., kept] = F.layer_norm(rest, (len(kept),), norm.weight[kept], norm.bias[kept], norm.eps)
        return whole.movedim(-1, dimension)

    norm.register_forward_hook(normalise)
