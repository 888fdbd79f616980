"""Strengths of the penalties of sparsity training."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Strengths:
    """Strengths with which parameters are drawn to zero.

    Attributes:
        scale: Strength on batch-norm scales (gamma).
        shift: Strength on batch-norm shifts (beta), never decayed.
        kernel: Strength on convolution weights.
    """

    scale: float = 0.0
    shift: float = 0.0
    kernel: float = 0.0
