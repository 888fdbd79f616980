"""Module paths as names of the layers of a `.param`, so that users can select them."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from deploy.calibration import skipped_layers
from deploy.ncnn.bin import LAYOUTS
from deploy.ncnn.param import ParamLayer

logger = logging.getLogger(__name__)

CONVOLUTIONS = ("Convolution", "ConvolutionDepthWise")
# pnnx converts a convolution of a single pixel to a linear layer, and a linear layer over rows to a matrix product.
_WITH_WEIGHTS = (*CONVOLUTIONS, "InnerProduct", "Gemm")
_OF_TORCH = ("nn.Conv2d", "nn.Linear")
_WEIGHT_SHAPE = re.compile(r"@weight=\(([\d,]+)\)")


def named_by_module(layers: tuple[ParamLayer, ...], pnnx_param: Path) -> tuple[ParamLayer, ...]:
    """Rename convolutions and linear layers to their module paths, such as `model.2.cv1.conv`.

    pnnx numbers them instead ("conv_2"), but keeps the paths in the file of its own format, in the same order. If the
    two files do not match, all names are kept, with a warning.

    Args:
        layers: Layers of ncnn's `.param`.
        pnnx_param: Path of the `.pnnx.param` of the same conversion.
    """
    wanted = [layer for layer in layers if layer.kind in _WITH_WEIGHTS]
    modules = _torch_modules(pnnx_param)
    paths = [path for path, _ in modules]
    if [count for _, count in modules] != [_num_weights(layer) for layer in wanted] or len(set(paths)) < len(paths):
        logger.warning("layers keep pnnx's names, since it split, joined or reordered some of them")
        return layers
    names = {layer.name: path for layer, path in zip(wanted, paths, strict=True)}
    return tuple(replace(layer, name=names.get(layer.name, layer.name)) for layer in layers)


def _num_weights(layer: ParamLayer) -> int:
    count, _has_tag = LAYOUTS[layer.kind](layer)[0]
    return count


def _torch_modules(pnnx_param: Path) -> list[tuple[str, int]]:
    """Read the path and number of weights of each convolution and linear layer, in execution order."""
    modules = []
    for line in pnnx_param.read_text(encoding="utf-8").splitlines():
        shape = _WEIGHT_SHAPE.search(line)
        kind, *rest = line.split()
        if kind in _OF_TORCH and shape is not None:
            # The wrappers of `models.prepare` have the network as their only attribute.
            path = rest[0].partition(".")[2]
            modules.append((path, math.prod(map(int, shape[1].split(",")))))
    return modules


def matching_convolutions(layers: Sequence[ParamLayer], patterns: Sequence[str]) -> frozenset[str]:
    """Return the names of the convolutions that match a pattern, in which `*` matches any part.

    Raises:
        ConfigError: A pattern matches no convolution.
    """
    return skipped_layers([layer.name for layer in layers if layer.kind in CONVOLUTIONS], patterns)
