"""Initial weights of the networks for small images."""

from __future__ import annotations

from torch import nn


def initialise_(model: nn.Module) -> None:
    """Draw convolution weights so that gradients keep their magnitude on the way back through a ReLU network.

    He et al., "Delving Deep into Rectifiers", ICCV 2015: normal, by fan-out. Linear layers and batch norms keep
    torch's own initial values.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
