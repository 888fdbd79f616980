"""First weights of the networks for small pictures."""

from __future__ import annotations

from torch import nn


def initialise_(model: nn.Module) -> None:
    """Draw convolutions so that a ReLU network keeps the size of what goes back through it.

    He et al., "Delving Deep into Rectifiers", ICCV 2015: normal, by the number of outputs. Linear layers and batch
    norms keep torch's own start.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
