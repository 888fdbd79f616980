"""Latency tables with invented times, for tests that plan without measuring."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import nn

from pruning.channels.graph import ChannelGraph
from pruning.selection.latency import Conditions, LatencyTable, LayerKind, LayerTimes
from pruning.selection.latency_layers import timed_layers


def aligned_ms(kind: LayerKind, inputs: int, outputs: int) -> float:
    """Return times of a runtime that computes four channels at once."""
    area = kind.input_hw[0] * kind.input_hw[1] * kind.kernel[0] * kind.kernel[1] / kind.stride[0] ** 2
    return area * -(-inputs // 4) * -(-outputs // 4) * 1e-4


def invented_table(
    model: nn.Module,
    graph: ChannelGraph,
    image_chw: tuple[int, int, int],
    *,
    ms: Callable[[LayerKind, int, int], float] = aligned_ms,
    step: int = 1,
    fixed_ms: float = 0.0,
    ms_per_value: float = 0.0,
) -> LatencyTable:
    """Return a table that covers a network: every width (or each `step`) up to its own.

    Args:
        model: Network.
        graph: Its channels.
        image_chw: Size of an image.
        ms: Time of a layer by kind, input and output width.
        step: Distance between the widths that the table lists.
        fixed_ms, ms_per_value: Times of the rest.
    """
    widest: dict[LayerKind, tuple[int, int]] = {}
    for layer in timed_layers(model, graph, image_chw):
        own = (layer.inputs(len(layer.input_ids)), len(layer.output_ids))
        inputs, outputs = widest.get(layer.kind, (0, 0))
        widest[layer.kind] = max(inputs, own[0]), max(outputs, own[1])
    return LatencyTable(
        conditions=Conditions(runtime="ncnn", precision="fp32", threads=1, image_chw=image_chw),
        version="1.0",
        machine="test",
        layers=_layers(widest, ms, step),
        fixed_ms=fixed_ms,
        ms_per_value=ms_per_value,
        reference_ms=1.0,
    )


def _layers(
    widest: Mapping[LayerKind, tuple[int, int]], ms: Callable[[LayerKind, int, int], float], step: int
) -> dict[LayerKind, LayerTimes]:
    found = {}
    for kind, (inputs, outputs) in widest.items():
        rows = (inputs,) if kind.group != (0, 0) else (*range(step, inputs, step), inputs)
        columns = (*range(step, outputs, step), outputs)
        times = tuple(tuple(ms(kind, row, column) for column in columns) for row in rows)
        found[kind] = LayerTimes(inputs=rows, outputs=columns, ms=times)
    return found
