"""A pruned detector, built from the description of itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from models.conv import Conv
from models.detector import Detector, build_model
from models.layer_table import LayerSpec
from models.mobilenet import InvertedResidual, SqueezeExcite
from models.spec import ModelSpec
from pruning.channel_ids import BoolArray
from pruning.graph import ChannelGraph
from pruning.groups import LayerChannels
from pruning.layer_rules import DEPTHWISE
from pruning.slicing import kept_positions
from utils.errors import ConfigError, PruningError

# Place of the groups among the arguments of a Conv row: channels, kernel, stride, padding, groups.
_GROUPS = 4


def pruned_spec(model: Detector, graph: ChannelGraph, stays: BoolArray) -> ModelSpec:
    """The description of a detector with the channels that stay.

    Args:
        model: The network before.
        graph: Its channels.
        stays: By id, whether it is kept (n,).

    Raises:
        PruningError: A depthwise convolution whose groups the layer list gives for several convolutions at once.
    """
    widths = dict(model.spec.widths)
    rows = list(model.spec.layers)
    for layer in graph.layers.values():
        kept = len(kept_positions(layer.output_ids, stays))
        if layer.is_norm or kept == len(layer.output_ids) or _follows(model, layer):
            continue
        path = layer.name.rpartition(".")[0]
        widths[path if isinstance(model.get_submodule(path), Conv) else layer.name] = kept
        if layer.kind == DEPTHWISE:
            # model.4.cv1 is part of row 4.
            index = int(layer.name.split(".")[1])
            groups = len(kept_positions(layer.input_ids, stays))
            rows[index] = _with_groups(rows[index], groups, name=layer.name)
    return replace(model.spec, widths=widths, layers=tuple(rows))


def rebuilt(
    spec: ModelSpec, tensors: Mapping[str, Tensor], *, like: Detector, origin: Callable[[str], str] = str
) -> Detector:
    """A detector of `spec` with these tensors, in all else as another one.

    Args:
        spec: What to build; nothing is initialised.
        tensors: Every parameter and buffer, which it will own.
        like: Where training modes, gradients wanted, and constants of batch norms come from.
        origin: From a path in the new network to the path in `like`.

    Raises:
        PruningError: `like` is not the network that its own description tells.
    """
    try:
        with torch.device("meta"), _NoInitialisation():
            detector = build_model(spec)
        detector.load_state_dict(tensors, strict=True, assign=True)
    except (ConfigError, RuntimeError) as error:
        cause = " ".join(str(error).split())[:200]
        raise PruningError(
            f"the network is not the one its layer list describes ({cause}); prune it before it is fused or changed"
        ) from error
    for name, module in detector.named_modules():
        before = like.get_submodule(origin(name))
        module.training = before.training
        if isinstance(module, nn.BatchNorm2d):
            module.eps, module.momentum = before.eps, before.momentum  # type: ignore[assignment]
    for name, parameter in detector.named_parameters():
        parameter.requires_grad_(like.get_parameter(origin(name)).requires_grad)
    return detector


class _NoInitialisation(TorchFunctionMode):
    """Layers are made without drawing their numbers."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Leave a tensor as it is where `torch.nn.init` would fill it."""
        if getattr(func, "__module__", "") == nn.init.__name__:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))


def _follows(model: Detector, layer: LayerChannels) -> bool:
    """Whether a spec names no width of a convolution because it is always that of another one."""
    path, _, last = layer.name.rpartition(".")
    if last == "fc2":
        return isinstance(model.get_submodule(path), SqueezeExcite)
    block = model.get_submodule(path.rpartition(".")[0])
    return layer.kind == DEPTHWISE and isinstance(block, InvertedResidual)


def _with_groups(row: LayerSpec, groups: int, *, name: str) -> LayerSpec:
    """A row with other groups.

    Raises:
        PruningError: It is not the row of a plain convolution.
    """
    if row.module != "Conv":
        raise PruningError(
            f"layer {name}: {row.module} takes the groups of its convolutions from the layer list, which holds one "
            "number for all of them; protect this layer"
        )
    return replace(row, args=(*row.args[:_GROUPS], groups, *row.args[_GROUPS + 1 :]))
