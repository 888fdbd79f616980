"""Rules of layers that have weights per channel."""

from __future__ import annotations

import numpy as np
from torch import nn

from pruning.channel_ids import IntArray
from pruning.recording import Call, LayerRecord, UnknownOperator

CONV, DEPTHWISE, GROUPED, LINEAR, BATCH_NORM = "conv", "depthwise", "grouped", "linear", "batch_norm"


def convolution(call: Call) -> IntArray:
    """New channels; those of a depthwise convolution are its input's, each as often as it multiplies."""
    conv, ids = call.layer, call.input.ids
    assert isinstance(conv, nn.Conv2d)
    if conv.groups == 1:
        return _note(call, CONV, ids, call.recording.ids.new(conv.out_channels))
    if conv.groups == conv.in_channels:
        return _note(call, DEPTHWISE, ids, np.repeat(ids, conv.out_channels // conv.in_channels))
    made = call.recording.ids.new(conv.out_channels)
    reason = f"{call.node.target} is a convolution of {conv.groups} groups, which must stay equally wide"
    for protected in (ids, made):
        call.recording.ids.protect(protected, reason)
    return _note(call, GROUPED, ids, made)


def linear(call: Call) -> IntArray:
    """New channels, from one vector per image."""
    layer = call.layer
    assert isinstance(layer, nn.Linear)
    if call.input.ndim != 2:
        raise UnknownOperator(f"it works on {call.input.ndim} dimensions; only (images, channels) is followed")
    return _note(call, LINEAR, call.input.ids, call.recording.ids.new(layer.out_features))


def batch_norm(call: Call) -> IntArray:
    """The same channels, each with its scale and shift."""
    return _note(call, BATCH_NORM, call.input.ids, call.input.ids)


def prelu(call: Call) -> IntArray:
    """The same channels, where one slope serves them all."""
    assert isinstance(call.layer, nn.PReLU)
    if call.layer.num_parameters > 1:
        raise UnknownOperator("it has a slope per channel, which is never cut")
    return call.input.ids


def _note(call: Call, kind: str, input_ids: IntArray, output_ids: IntArray) -> IntArray:
    layer = LayerRecord(kind=kind, module=call.layer, input_ids=input_ids, output_ids=output_ids)
    call.recording.add_layer(str(call.node.target), layer)
    return output_ids
