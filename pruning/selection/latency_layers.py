"""Layers of a network as a latency table lists them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import fx, nn

from models.blocks.conv import Focus
from models.complexity import layer_shapes
from models.copies import twin_that_shares
from models.operators import IDENTITIES, module_operator, traced_operator
from pruning.channels.graph import ChannelGraph
from pruning.channels.groups import LayerChannels
from pruning.channels.ids import IntArray
from pruning.channels.layer_rules import DEPTHWISE, GROUPED
from pruning.channels.trace import traced
from pruning.selection.latency import LayerKind, Pair

# Activations that entries of a table are measured with; any other one belongs to the rest of the network.
ACTIVATIONS = ("relu", "relu6", "silu", "hardswish", "sigmoid", "leaky_relu")
# Focus makes four channels of each channel of the image.
_FOCUS = 4


@dataclass(frozen=True, kw_only=True, eq=False)
class TimedLayer:
    """One call of a layer.

    Attributes:
        name: Module path.
        kind: Kind by which a table lists it.
        input_ids: Id of each input channel (C_in,).
        output_ids: Id of each output channel (C_out,).
        ids_per_input: Ids per input channel of the exported layer: four where Focus is folded into it, else one.
        positions: Values that one output channel has for an image.
    """

    name: str
    kind: LayerKind
    input_ids: IntArray
    output_ids: IntArray
    ids_per_input: int
    positions: int

    def inputs(self, kept: int) -> int:
        """Return the input width with this many input ids; that of one group where a layer has groups."""
        return self.kind.group[0] or kept // self.ids_per_input


def timed_layers(model: nn.Module, graph: ChannelGraph, image_chw: tuple[int, int, int]) -> tuple[TimedLayer, ...]:
    """List every call of the layers of a network, in the form in which they are exported.

    Args:
        model: Network that takes one batch of images; it is not changed.
        graph: Channels of the network.
        image_chw: Channels, height and width of the image.
    """
    activations = _activations(model)
    shapes = layer_shapes(model, image_chw)
    weighted = [layer for layer in graph.layers.values() if not layer.is_norm]
    made = {int(channel) for layer in weighted for channel in layer.output_ids}
    read = {int(channel) for layer in weighted for channel in layer.input_ids}
    found = []
    for layer in weighted:
        end: Literal["", "first", "last"] = ""
        if made.isdisjoint(layer.input_ids.tolist()):
            end = "first"
        elif read.isdisjoint(layer.output_ids.tolist()):
            end = "last"
        for shape_in, shape_out in shapes.get(layer.name, []):
            is_map = len(shape_in) == 4
            input_hw = (shape_in[2], shape_in[3]) if is_map else (shape_in[:-1].numel(), 1)
            positions = shape_out[2:].numel() if is_map else shape_out[:-1].numel()
            kind = _kind(layer, model, input_hw=input_hw, activation=activations.get(layer.name, "none"), end=end)
            found.append(_timed(layer, kind, positions=positions, is_folded=_is_focus(layer.name, model)))
    return tuple(found)


def _timed(layer: LayerChannels, kind: LayerKind, *, positions: int, is_folded: bool) -> TimedLayer:
    return TimedLayer(
        name=layer.name,
        kind=_folded(kind) if is_folded else kind,
        input_ids=layer.input_ids,
        output_ids=layer.output_ids,
        ids_per_input=_FOCUS if is_folded else 1,
        positions=positions,
    )


def _kind(
    layer: LayerChannels,
    model: nn.Module,
    *,
    input_hw: Pair,
    activation: str,
    end: Literal["", "first", "last"],
) -> LayerKind:
    module = model.get_submodule(layer.name)
    if not isinstance(module, nn.Conv2d):
        return LayerKind(kind=layer.kind, input_hw=input_hw, activation=activation, end=end)
    is_split = layer.kind in (DEPTHWISE, GROUPED)
    widths = (module.in_channels // module.groups, module.out_channels // module.groups)
    padding = (0, 0) if isinstance(module.padding, str) else module.padding
    return LayerKind(
        kind=layer.kind,
        kernel=_pair(module.kernel_size),
        stride=_pair(module.stride),
        padding=_same(module) if module.padding == "same" else _pair(padding),
        dilation=_pair(module.dilation),
        group=widths if is_split else (0, 0),
        activation=activation,
        input_hw=input_hw,
        end=end,
    )


def _pair(values: tuple[int, ...]) -> Pair:
    first, last = values
    return int(first), int(last)


def _same(module: nn.Conv2d) -> Pair:
    """Return the padding with which the output is as large as the input."""
    height, width = (
        dilation * (side - 1) // 2 for side, dilation in zip(module.kernel_size, module.dilation, strict=True)
    )
    return height, width


def _is_focus(name: str, model: nn.Module) -> bool:
    """Return whether a layer is the convolution inside of Focus."""
    parts = name.split(".")
    return len(parts) > 2 and isinstance(model.get_submodule(".".join(parts[:-2])), Focus)


def _folded(kind: LayerKind) -> LayerKind:
    """Return the convolution of stride 2 that exporters make of Focus; see `models.prepare.fold_focus`."""

    def twice(pair: Pair) -> Pair:
        return 2 * pair[0], 2 * pair[1]

    return LayerKind(
        kind=kind.kind,
        kernel=twice(kind.kernel),
        stride=(2, 2),
        padding=twice(kind.padding),
        activation=kind.activation,
        input_hw=twice(kind.input_hw),
        end=kind.end,
    )


def _activations(model: nn.Module) -> dict[str, str]:
    """Return the activation that follows each layer, by path, where entries can contain it."""
    network = twin_that_shares(model)
    modules = dict(network.named_modules())
    found: dict[str, str] = {}
    for node in traced(network).nodes:
        if node.op == "call_module" and isinstance(modules[str(node.target)], nn.Conv2d | nn.Linear):
            found.setdefault(str(node.target), _activation_after(node, modules))
    return found


def _activation_after(node: fx.Node, modules: dict[str, nn.Module]) -> str:
    """Follow the only user of a node through batch norms to an activation."""
    while len(node.users) == 1:
        node = next(iter(node.users))
        is_module = node.op == "call_module"
        name = module_operator(type(modules[str(node.target)])) if is_module else traced_operator(node)
        if name in ACTIVATIONS:
            return name
        if name != "batch_norm" and name not in IDENTITIES:
            break
    return "none"
