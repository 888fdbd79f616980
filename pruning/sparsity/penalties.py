"""Sparsity training as a hook: an added gradient draws the parameters to prune towards zero.

Batch-norm scales: Liu et al., "Learning Efficient Convolutional Networks through Network Slimming", ICCV 2017
(arXiv 1708.06519). Filters: Li et al., "Pruning Filters for Efficient ConvNets", ICLR 2017 (arXiv 1608.08710).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from engine.training.hooks import Hook
from engine.training.trainer import Trainer
from pruning.channels.graph import ChannelGraph
from pruning.channels.ids import IntArray
from pruning.channels.shortcuts import candidate_ids, shortcut_bottleneck_names
from pruning.choices import Shortcuts, Sparsity
from pruning.sparsity.settings import Strengths

# A decaying strength ends at a tenth of its start.
_DECAY = 0.9
# Factor of the strength on the branch of a shortcut.
_BRANCH_FACTOR = 2.0


@dataclass(frozen=True, kw_only=True, eq=False)
class Penalty:
    """One parameter that is drawn to zero.

    Attributes:
        layer: Module path of the layer.
        parameter: Parameter (C, ...).
        channels: Mask of the penalised channels (C,), bool; None means all.
        strength: Factor of the sign that is added to the gradient.
        is_decayed: Whether the strength falls over the run.
    """

    layer: str
    parameter: Tensor
    channels: Tensor | None
    strength: float
    is_decayed: bool


def decayed(strength: float, *, epoch: int, epochs: int) -> float:
    """Return the strength at an epoch (from 0); it falls linearly to a tenth at the end of the run."""
    return strength * (1 - _DECAY * epoch / epochs)


def make_penalties(
    model: nn.Module,
    *,
    sparsity: Sparsity,
    strengths: Strengths,
    shortcuts: Shortcuts,
    is_decayed: bool,
    image_chw: tuple[int, int, int] | None = None,
) -> tuple[Penalty, ...]:
    """List the parameters that a sparsity variant draws to zero, without those of strength 0.

    Args:
        model: Network that trains.
        sparsity: "bn", "residual" (as "bn", and the branches of shortcuts with double, undecayed strength),
            "kernel" or "mixed" ("bn" and "kernel").
        strengths: Factors of the signs.
        shortcuts: "skip" leaves out the channels of shortcuts, which will not be pruned; "tied" includes them.
        is_decayed: Whether strengths fall over the run.
        image_chw: Image size, as in `ChannelGraph.of`.
    """
    graph = ChannelGraph.of(model, image_chw=image_chw)
    ids = candidate_ids(model, graph, shortcuts)
    penalties: list[Penalty] = []
    if sparsity != "kernel":
        penalties += _norm_penalties(model, graph, ids, strengths, is_decayed=is_decayed)
    if sparsity in ("kernel", "mixed"):
        penalties += _kernel_penalties(model, graph, ids, strengths.kernel, is_decayed=is_decayed)
    if sparsity == "residual":
        branches = {f"{name}.{part}.bn" for name in shortcut_bottleneck_names(model) for part in ("cv1", "cv2")}
        penalties = [penalty for penalty in penalties if penalty.layer not in branches]
        penalties += _branch_penalties(model, sorted(branches), strengths)
    return tuple(penalty for penalty in penalties if penalty.strength)


def _norm_penalties(
    model: nn.Module, graph: ChannelGraph, ids: IntArray, strengths: Strengths, *, is_decayed: bool
) -> list[Penalty]:
    """Penalise the scale and shift of every batch norm on `ids`."""
    penalties = []
    for layer in graph.layers.values():
        mask = np.isin(layer.output_ids, ids)
        if not layer.is_norm or not mask.any():
            continue
        norm = model.get_submodule(layer.name)
        assert isinstance(norm, _BatchNorm)
        channels = None if mask.all() else torch.from_numpy(mask)
        for parameter, strength, falls in (
            (norm.weight, strengths.scale, is_decayed),
            (norm.bias, strengths.shift, False),
        ):
            penalties.append(
                Penalty(layer=layer.name, parameter=parameter, channels=channels, strength=strength, is_decayed=falls)
            )
    return penalties


def _kernel_penalties(
    model: nn.Module, graph: ChannelGraph, ids: IntArray, strength: float, *, is_decayed: bool
) -> list[Penalty]:
    """Penalise the weights of every convolution all of whose outputs are among `ids`."""
    penalties = []
    for layer in graph.layers.values():
        module = model.get_submodule(layer.name)
        if isinstance(module, nn.Conv2d) and np.isin(layer.output_ids, ids).all():
            penalties.append(
                Penalty(
                    layer=layer.name,
                    parameter=module.weight,
                    channels=None,
                    strength=strength,
                    is_decayed=is_decayed,
                )
            )
    return penalties


def _branch_penalties(model: nn.Module, branches: Sequence[str], strengths: Strengths) -> list[Penalty]:
    """Penalise the batch norms inside shortcut bottlenecks, so that whole blocks become the identity."""
    penalties = []
    for layer in branches:
        norm = model.get_submodule(layer)
        assert isinstance(norm, _BatchNorm)
        for parameter, strength in ((norm.weight, _BRANCH_FACTOR * strengths.scale), (norm.bias, strengths.shift)):
            penalties.append(
                Penalty(layer=layer, parameter=parameter, channels=None, strength=strength, is_decayed=False)
            )
    return penalties


class SparsityHook(Hook):
    """Adds strength x sign to the gradients after they are unscaled and reduced.

    If added earlier, the term would be divided by the loss scale of mixed precision; later, the optimiser would not
    see it.
    """

    def __init__(self, penalties: Sequence[Penalty]) -> None:
        self.penalties = tuple(penalties)

    @torch.no_grad()
    def gradients_ready(self, trainer: Trainer) -> None:
        """Add the penalty terms, with the strength of this epoch, to the gradients."""
        by_strength: dict[float, tuple[list[Tensor], list[Tensor]]] = {}
        epoch, epochs = trainer.state.epoch, trainer.settings.epochs
        for penalty in self.penalties:
            if penalty.parameter.grad is None:
                continue  # frozen
            strength = penalty.strength
            if penalty.is_decayed:
                strength = decayed(strength, epoch=epoch, epochs=epochs)
            gradients, signs = by_strength.setdefault(strength, ([], []))
            gradients.append(penalty.parameter.grad)
            signs.append(_signs(penalty.parameter, penalty.channels))
        for strength, (gradients, signs) in by_strength.items():
            torch._foreach_add_(gradients, signs, alpha=strength)


def _signs(parameter: Tensor, channels: Tensor | None) -> Tensor:
    signs = parameter.detach().sign()
    if channels is None:
        return signs
    return signs * channels.to(signs.device).view(-1, *[1] * (signs.dim() - 1))
