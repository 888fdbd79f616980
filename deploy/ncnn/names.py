"""Module paths as names of the layers of a `.param`, so that users can select them."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from deploy.ncnn.bin import LAYOUTS
from deploy.ncnn.param import ParamLayer

logger = logging.getLogger(__name__)

# pnnx converts a convolution of a single pixel to a linear layer, and a linear layer over rows to a matrix product.
_WITH_WEIGHTS = ("Convolution", "ConvolutionDepthWise", "InnerProduct", "Gemm")
_OF_TORCH = ("nn.Conv2d", "nn.Linear")
_WEIGHT_SHAPE = re.compile(r"@weight=\(([\d,]+)\)")


def named_by_module(
    layers: tuple[ParamLayer, ...], pnnx_param: Path, *, executed: Sequence[tuple[str, int]]
) -> tuple[ParamLayer, ...]:
    """Rename convolutions and linear layers to their module paths, such as `model.2.cv1.conv`.

    pnnx numbers them instead ("conv_2"), but keeps the paths in the file of its own format, in the same order, except
    where it folds a batch norm. If the two files do not match, all names are kept, with a warning.

    Args:
        layers: Layers of ncnn's `.param`.
        pnnx_param: Path of the `.pnnx.param` of the same conversion.
        executed: Result of `executed_layers` for the network.
    """
    wanted = [layer for layer in layers if layer.kind in _WITH_WEIGHTS]
    modules = _torch_modules(pnnx_param)
    if len(modules) == len(executed) and all(
        kept in ("", path) and count == own for (kept, count), (path, own) in zip(modules, executed, strict=True)
    ):
        modules = list(executed)
    paths = [path for path, _ in modules]
    if [count for _, count in modules] != [_num_weights(layer) for layer in wanted] or len(set(paths)) < len(paths):
        logger.warning("layers keep pnnx's names, since it split, joined or reordered some of them")
        return layers
    names = {layer.name: path for layer, path in zip(wanted, paths, strict=True)}
    return tuple(replace(layer, name=names.get(layer.name, layer.name)) for layer in layers)


def executed_layers(network: nn.Module, example: Tensor) -> list[tuple[str, int]]:
    """Run a network, and return the path and number of weights of each convolution and linear layer that it calls.

    Args:
        network: Network in a wrapper of `models.prepare`.
        example: Images (1, C, H, W).
    """
    called: list[tuple[str, int]] = []
    hooks = [
        module.register_forward_hook(partial(_note, called, _without_wrapper(name)))
        for name, module in network.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear)
    ]
    with torch.inference_mode():
        network(example)
    for hook in hooks:
        hook.remove()
    return called


def _note(called: list[tuple[str, int]], path: str, module: nn.Conv2d | nn.Linear, *_: object) -> None:
    called.append((path, module.weight.numel()))


def _without_wrapper(path: str) -> str:
    """Return a path below the only attribute of the wrappers of `models.prepare`."""
    return path.partition(".")[2]


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
            modules.append((_without_wrapper(rest[0]), math.prod(map(int, shape[1].split(",")))))
    return modules
