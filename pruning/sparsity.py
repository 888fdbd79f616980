"""Sparsity training: a gradient that draws what shall be pruned towards zero, as a hook.

Batch-norm scales: Liu et al., "Learning Efficient Convolutional Networks through Network Slimming", ICCV 2017
(arXiv 1708.06519). Filters: Li et al., "Pruning Filters for Efficient ConvNets", ICLR 2017 (arXiv 1608.08710).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from engine.hooks import Hook
from engine.trainer import Trainer
from pruning.channel_ids import IntArray
from pruning.graph import ChannelGraph
from pruning.shortcuts import Shortcuts, candidate_ids, shortcut_bottleneck_names

Sparsity = Literal["bn", "residual", "kernel", "mixed"]

# A decaying strength ends at a tenth of its start.
_DECAY = 0.9
# The branch of a shortcut is drawn to zero with more force than the rest.
_BRANCH_FACTOR = 2.0


@dataclass(frozen=True, kw_only=True)
class Strengths:
    """How hard to draw.

    Attributes:
        scale: On batch-norm scales (gamma).
        shift: On batch-norm shifts (beta), never decayed.
        kernel: On convolution weights.
    """

    scale: float = 0.0
    shift: float = 0.0
    kernel: float = 0.0


@dataclass(frozen=True, kw_only=True, eq=False)
class Penalty:
    """One parameter that is drawn to zero.

    Attributes:
        layer: Module path.
        parameter: (C, ...).
        channels: (C,) bool, those it is for; None where all are.
        strength: Factor of the sign.
        is_decayed: Whether the strength falls over the run.
    """

    layer: str
    parameter: Tensor
    channels: Tensor | None
    strength: float
    is_decayed: bool


def decayed(strength: float, *, epoch: int, epochs: int) -> float:
    """The strength at an epoch (from 0): it falls in a line, to a tenth at the end of the run."""
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
    """What a variant draws to zero; parameters without strength are left out.

    Args:
        model: The network that trains.
        sparsity: "bn", "residual" (as "bn", and the branches of shortcuts with double, undecayed strength),
            "kernel" or "mixed" ("bn" and "kernel").
        strengths: Factors of the signs.
        shortcuts: "skip" leaves out what shortcuts hold, which will not be pruned; "tied" does not.
        is_decayed: Whether strengths fall over the run.
        image_chw: As for `ChannelGraph.of`.
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
    """Scale and shift of every batch norm on `ids`."""
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
    """The weights of every convolution all of whose outputs are among `ids`."""
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
    """The batch norms inside shortcut bottlenecks, so that whole blocks fall to the identity."""
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
    """Adds strength x sign to the gradients, once they are unscaled and reduced.

    Earlier, mixed precision's unscaling would divide the term away; later, the optimiser would not see it.
    """

    def __init__(self, penalties: Sequence[Penalty]) -> None:
        self.penalties = tuple(penalties)

    @torch.no_grad()
    def gradients_ready(self, trainer: Trainer) -> None:
        """Add the terms of this epoch."""
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
