"""Batch norms folded into the convolutions before them: the same numbers, fewer operations."""

from __future__ import annotations

import copy

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from models.conv import Conv
from models.detector import Detector


def fuse(model: Detector) -> Detector:
    """A copy of `model` in evaluation mode whose convolutions carry their batch norms.

    The batch norm of a BottleneckCSP stands behind a join and stays.
    """
    fused = copy.deepcopy(model).eval()
    for module in fused.modules():
        if isinstance(module, Conv) and isinstance(module.bn, nn.BatchNorm2d):
            module.conv = fuse_conv_bn_eval(module.conv, module.bn)
            module.bn = nn.Identity()
    return fused
