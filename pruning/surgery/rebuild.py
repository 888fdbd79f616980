"""Build a pruned detector from its pruned description."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from models.blocks.conv import Conv
from models.blocks.mobilenet import InvertedResidual, SqueezeExcite
from models.detector import Detector, build_model
from models.layer_table import LayerSpec
from models.spec import ModelSpec
from pruning.channels.graph import ChannelGraph
from pruning.channels.groups import LayerChannels
from pruning.channels.ids import BoolArray
from pruning.channels.layer_rules import DEPTHWISE
from pruning.surgery.slicing import kept_positions
from utils.errors import ConfigError, PruningError

# Index of the groups among the arguments of a Conv row: channels, kernel, stride, padding, groups.
_GROUPS = 4


def pruned_spec(model: Detector, graph: ChannelGraph, stays: BoolArray) -> ModelSpec:
    """Return the description of a detector reduced to the kept channels.

    Args:
        model: Network before the cut.
        graph: Channels of the network.
        stays: Mask of the kept channels by id (n,).

    Raises:
        PruningError: The layer list gives the groups of a cut depthwise convolution for several convolutions at once.
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
    """Build `spec`, load `tensors`, and copy modes, `requires_grad` and batch-norm constants from `like`.

    Args:
        spec: Description of the new network; its weights are not initialised.
        tensors: Every parameter and buffer by name; the new network owns them.
        like: Detector to copy training modes, `requires_grad`, and `eps` and `momentum` of batch norms from.
        origin: Function from a path in the new network to the path in `like`.

    Raises:
        PruningError: `like` is not the network that its own description describes.
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
    """Mode in which layers are built without initialising their weights."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Return a tensor unchanged where `torch.nn.init` would fill it; call any other function."""
        if getattr(func, "__module__", "") == nn.init.__name__:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))


def _follows(model: Detector, layer: LayerChannels) -> bool:
    """Return whether a spec has no width for a convolution because it always equals that of another one."""
    path, _, last = layer.name.rpartition(".")
    if last == "fc2":
        return isinstance(model.get_submodule(path), SqueezeExcite)
    block = model.get_submodule(path.rpartition(".")[0])
    return layer.kind == DEPTHWISE and isinstance(block, InvertedResidual)


def _with_groups(row: LayerSpec, groups: int, *, name: str) -> LayerSpec:
    """Return a copy of a row with other groups.

    Raises:
        PruningError: The row is not that of a plain convolution.
    """
    if row.module != "Conv":
        raise PruningError(
            f"layer {name}: {row.module} takes the groups of its convolutions from the layer list, which has one "
            "value for all of them; protect this layer"
        )
    return replace(row, args=(*row.args[:_GROUPS], groups, *row.args[_GROUPS + 1 :]))
