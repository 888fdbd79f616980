"""Folding of batch norms into the convolutions before them: same outputs, fewer operations."""

from __future__ import annotations

import copy

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from models.blocks.conv import Conv
from models.detector import Detector


def fuse(model: Detector) -> Detector:
    """Copy `model` in evaluation mode and fold its batch norms into the convolutions before them.

    The batch norm of a BottleneckCSP follows a concatenation and is kept.
    """
    fused = copy.deepcopy(model).eval()
    for module in fused.modules():
        if isinstance(module, Conv) and isinstance(module.bn, nn.BatchNorm2d):
            module.conv = fuse_conv_bn_eval(module.conv, module.bn)
            module.bn = nn.Identity()
    return fused
