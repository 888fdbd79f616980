"""Channel rules of layers that have weights per channel."""

from __future__ import annotations

import numpy as np
from torch import Tensor, nn

from pruning.channels.ids import IntArray
from pruning.channels.recording import Call, LayerRecord, UnknownOperator

CONV, DEPTHWISE, GROUPED, LINEAR, BATCH_NORM = "conv", "depthwise", "grouped", "linear", "batch_norm"


def convolution(call: Call) -> IntArray:
    """Issue new output channels; a convolution of groups gives each group's outputs the one id of its inputs.

    Groups are kept or cut whole: cutting channels inside of one would make groups unequally wide. A depthwise
    convolution has one input channel per group.
    """
    conv, ids = call.layer, call.input.ids
    assert isinstance(conv, nn.Conv2d)
    if type(conv)._conv_forward is not nn.Conv2d._conv_forward:
        raise UnknownOperator("it is a convolution with arithmetic of its own")
    if conv.groups == 1:
        return _note(call, CONV, ids, call.recording.ids.new(conv.out_channels))
    groups = ids[:: conv.in_channels // conv.groups]
    call.recording.ids.tie(np.repeat(groups, conv.in_channels // conv.groups), ids)
    kind = DEPTHWISE if conv.groups == conv.in_channels else GROUPED
    return _note(call, kind, ids, np.repeat(groups, conv.out_channels // conv.groups))


def linear(call: Call) -> IntArray:
    """Issue new output channels for a layer that reads one vector per image."""
    layer = call.layer
    assert isinstance(layer, nn.Linear)
    if call.input.ndim != 2:
        raise UnknownOperator(f"it works on {call.input.ndim} dimensions; only (images, channels) is supported")
    return _note(call, LINEAR, call.input.ids, call.recording.ids.new(layer.out_features))


def batch_norm(call: Call) -> IntArray:
    """Pass on the input channels, each of which has a scale and a shift."""
    return _note(call, BATCH_NORM, call.input.ids, call.input.ids)


def prelu(call: Call) -> IntArray:
    """Pass on the input channels if all of them share one slope."""
    slopes = call.module.weight if isinstance(call.module, nn.PReLU) else call.argument(1, "weight")
    if not isinstance(slopes, Tensor) or slopes.numel() > 1:
        raise UnknownOperator("it has a slope per channel, which cannot be cut")
    return call.input.ids


def _note(call: Call, kind: str, input_ids: IntArray, output_ids: IntArray) -> IntArray:
    layer = LayerRecord(kind=kind, module=call.layer, input_ids=input_ids, output_ids=output_ids)
    call.recording.add_layer(str(call.node.target), layer)
    return output_ids
