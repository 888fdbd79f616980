"""Convolutions of a `.param` under the names they have in the network, so that people can point at them."""

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
# ncnn computes a convolution of a single pixel as a linear layer, and a linear one over rows as a matrix product.
_WITH_WEIGHTS = (*CONVOLUTIONS, "InnerProduct", "Gemm")
_OF_TORCH = ("nn.Conv2d", "nn.Linear")
# What `models.prepare.ExportNetwork` puts before the paths of a detector.
_PREFIX = "detector."
_WEIGHT_SHAPE = re.compile(r"@weight=\(([\d,]+)\)")


def named_by_module(layers: tuple[ParamLayer, ...], pnnx_param: Path) -> tuple[ParamLayer, ...]:
    """The same layers, convolutions and linear ones called by their module paths, such as `model.2.cv1.conv`.

    pnnx numbers them instead ("conv_2"), but keeps the paths in the file of its own format, in the same order.

    Args:
        layers: Of ncnn's `.param`.
        pnnx_param: The `.pnnx.param` of the same conversion.
    """
    wanted = [layer for layer in layers if layer.kind in _WITH_WEIGHTS]
    modules = _torch_modules(pnnx_param)
    paths = [path for path, _ in modules]
    if [count for _, count in modules] != [_num_weights(layer) for layer in wanted] or len(set(paths)) < len(paths):
        logger.warning("layers keep the names that pnnx gave them: it split, joined or reordered some")
        return layers
    names = {layer.name: path for layer, path in zip(wanted, paths, strict=True)}
    return tuple(replace(layer, name=names.get(layer.name, layer.name)) for layer in layers)


def _num_weights(layer: ParamLayer) -> int:
    count, _has_tag = LAYOUTS[layer.kind](layer)[0]
    return count


def _torch_modules(pnnx_param: Path) -> list[tuple[str, int]]:
    """Path and number of weights of each convolution and linear layer, in the order they run."""
    modules = []
    for line in pnnx_param.read_text(encoding="utf-8").splitlines():
        shape = _WEIGHT_SHAPE.search(line)
        kind, *rest = line.split()
        if kind in _OF_TORCH and shape is not None:
            modules.append((rest[0].removeprefix(_PREFIX), math.prod(map(int, shape[1].split(",")))))
    return modules


def matching_convolutions(layers: Sequence[ParamLayer], patterns: Sequence[str]) -> frozenset[str]:
    """Names of the convolutions that any of the patterns fits; `*` stands for any part.

    Raises:
        ConfigError: A pattern fits none.
    """
    return skipped_layers([layer.name for layer in layers if layer.kind in CONVOLUTIONS], patterns)
