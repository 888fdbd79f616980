"""Unstructured magnitude pruning: set single weights to zero, the smallest first, wherever they are.

Han et al., "Learning both Weights and Connections for Efficient Neural Networks", NIPS 2015 (arXiv 1506.02626).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils import prune

from models.copies import tensors_by_name
from pruning.choices import Scope
from utils.errors import ConfigError, PruningError

LOGGER = logging.getLogger(__name__)

# Bool masks by name of a parameter, of its shape, True for the weights to keep.
Masks = Mapping[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class UnstructuredSettings:
    """Choice of the weights to set to zero.

    Attributes:
        sparsity: Share of the weights to set to zero, in [0, 1).
        scope: "global" for one threshold for the network, "layer" for the same share of every layer.
        protect: Patterns of paths of layers that keep all weights, such as "model.0*".
    """

    sparsity: float
    scope: Scope = "global"
    protect: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 0 <= self.sparsity < 1:
            raise ConfigError(
                f"sparsity {self.sparsity}: expected a share from 0 up to, not including, 1, such as 0.9"
            )


def prunable_weights(model: nn.Module, *, protect: Sequence[str] = ()) -> dict[str, nn.Parameter]:
    """Return the weights of convolutions and linear layers by name, each once, without those of protected layers.

    Biases and batch norms are never pruned.

    Raises:
        PruningError: A pattern matches no layer, or no layer is left.
    """
    layers = {name: module for name, module in model.named_modules() if isinstance(module, _ConvNd | nn.Linear)}
    for pattern in protect:
        if not any(fnmatchcase(name, pattern) for name in layers):
            raise PruningError(
                f"--protect {pattern} matches no layer; the layers include {', '.join(list(layers)[:3])}; "
                "use * for any part"
            )
    names = {f"{name}.weight" for name in layers if not any(fnmatchcase(name, pattern) for pattern in protect)}
    found = {name: parameter for name, parameter in model.named_parameters() if name in names}
    if not found:
        raise PruningError(
            f"{type(model).__name__} has no convolution or linear layer that may be pruned; give fewer patterns to "
            "protect, or another network"
        )
    return found


def l1_masks(model: nn.Module, settings: UnstructuredSettings, *, start: Masks | None = None) -> dict[str, Tensor]:
    """Build masks that keep the largest weights, without changing the network.

    Args:
        model: Network to prune.
        settings: Share and choice of the weights to set to zero.
        start: Earlier masks; the weights they prune remain pruned.

    Returns:
        A mask for each of `prunable_weights`, by name, on the device of its weight.

    Raises:
        PruningError: A weight is NaN or infinite, a pattern matches no layer, or `start` is for another network.
    """
    weights = prunable_weights(model, protect=settings.protect)
    _check_finite(weights)
    start = start or {}
    check_masks(model, start)
    kept = [start.get(name, torch.ones_like(weight, dtype=torch.bool)) for name, weight in weights.items()]
    flat = [weight.detach().flatten() for weight in weights.values()]
    flat_kept = [mask.to(values.device).flatten() for mask, values in zip(kept, flat, strict=True)]
    if settings.scope == "global":
        mask = _largest(torch.cat(flat), torch.cat(flat_kept), settings.sparsity)
        parts = list(torch.split(mask, [len(values) for values in flat]))
    else:
        parts = [_largest(values, mask, settings.sparsity) for values, mask in zip(flat, flat_kept, strict=True)]
    masks = {name: part.view(weight.shape) for (name, weight), part in zip(weights.items(), parts, strict=True)}
    _warn_of_empty(masks)
    return masks


def zero_masks(model: nn.Module) -> dict[str, Tensor]:
    """Build masks of the weights that are exactly zero now; a parameter without zeros has no mask."""
    masks = {name: weight.detach() != 0 for name, weight in prunable_weights(model).items()}
    return {name: mask for name, mask in masks.items() if not mask.all()}


def check_masks(model: nn.Module, masks: Masks) -> None:
    """Check that masks fit a network.

    Raises:
        PruningError: A mask does not fit; the message names the first.
    """
    tensors = tensors_by_name(model)
    for name, mask in masks.items():
        there = (
            f"is of shape {tuple(tensors[name].shape)} in the network" if name in tensors else "is not in the network"
        )
        if name not in tensors or mask.shape != tensors[name].shape:
            raise PruningError(
                f"mask of {name} has shape {tuple(mask.shape)}, which {there}; make masks for this very network"
            )


@torch.no_grad()
def apply_masks_(model: nn.Module, masks: Masks) -> None:
    """Set the weights that the masks do not keep to zero.

    Raises:
        PruningError: The masks are for another network.
    """
    check_masks(model, masks)
    tensors = tensors_by_name(model)
    for name, mask in masks.items():
        tensors[name].masked_fill_(~mask.to(tensors[name].device), 0)


def sparsity_table(model: nn.Module) -> str:
    """Return a table of the weights and zeros of each convolution and linear layer, and of all together."""
    weights = prunable_weights(model)
    rows = [(name, weight.numel(), int((weight == 0).sum())) for name, weight in weights.items()]
    rows.append(("all", sum(row[1] for row in rows), sum(row[2] for row in rows)))
    width = max(len(name) for name, _, _ in rows)
    lines = [f"{'weights of':<{width}}  {'number':>12}  {'zero':>12}  share"]
    lines += [f"{name:<{width}}  {number:>12,}  {zeros:>12,}  {zeros / number:>5.1%}" for name, number, zeros in rows]
    return "\n".join(lines)


def _check_finite(weights: Mapping[str, Tensor]) -> None:
    for name, weight in weights.items():
        num_broken = int((~weight.isfinite()).sum())
        if num_broken:
            raise PruningError(
                f"{name}: {num_broken} of {weight.numel()} weights are NaN or infinite; "
                "start from an undamaged checkpoint or train with a lower rate"
            )


def _largest(weights: Tensor, kept: Tensor, sparsity: float) -> Tensor:
    """Return the mask `kept` (n,), bool, without the smallest `weights` (n,), a share of `sparsity`."""
    mask: Tensor = prune.L1Unstructured(amount=float(sparsity)).compute_mask(weights, kept)  # type: ignore[no-untyped-call]
    return mask


def _warn_of_empty(masks: Masks) -> None:
    empty = [name for name, mask in masks.items() if not mask.any()]
    if empty:
        LOGGER.warning(
            "%d layers have no weight left, first %s; lower the sparsity, protect them, or prune by layer",
            len(empty),
            empty[0],
        )
