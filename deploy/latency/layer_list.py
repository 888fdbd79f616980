"""The list of layers that a program on another device times, `layers.json`, with the networks that it times beside.

`deploy/cpp/latency` reads the folder on a phone or board and writes the table that `--latency-table` takes.
"""

from __future__ import annotations

import shutil
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from deploy.artefact.folder import replaced_folder
from deploy.formats import FORMATS
from deploy.latency.entries import Entry, grids
from deploy.latency.measure import CALL, REFERENCE, SETTINGS, MeasureSettings
from deploy.latency.ncnn_entries import entry_param, entry_storage
from deploy.latency.networks import Subject, cut_networks, export_network
from deploy.ncnn.runtime import BIN_NAME, PARAM_NAME
from pruning.channels.graph import ChannelGraph
from pruning.channels.ids import IntArray
from pruning.selection.latency import FORMAT_VERSION, Conditions, LatencyTable, LayerKind, LayerTimes
from pruning.selection.latency_cost import LatencyCost
from pruning.selection.latency_layers import timed_layers
from utils.progress import progress
from utils.storage.files import write_json

LIST_NAME = "layers.json"
# The only runtime that the program has.
_RUNTIME = "ncnn"


def write_layer_list(
    subject: Subject, conditions: Conditions, folder: Path, settings: MeasureSettings = SETTINGS
) -> None:
    """Write a folder with all that another device needs to time the layers of a network.

    Args:
        subject: Network whose layers are to be timed.
        conditions: Runtime, which is ncnn, precision, threads and image size.
        folder: Folder to write; an earlier one of this kind is replaced.
        settings: How they are measured there.

    Raises:
        ConfigError: The network cannot be exported, or the folder contains something else.
    """
    assert conditions.runtime == _RUNTIME
    graph = ChannelGraph.of(subject.model, image_chw=subject.trace_chw)
    table = _untimed(subject, graph, conditions)
    cost = LatencyCost.of(subject.model, graph, subject.image_chw, table)
    networks, precision = list(cut_networks(subject, graph)), conditions.precision
    with replaced_folder(folder, marker=LIST_NAME) as new:
        listed = []
        for index, (model, dropped) in enumerate(progress(networks, description="exporting")):
            name = f"network{index}"
            _export(model, subject, conditions, new / name)
            listed.append({"name": name, "values": cost.values(dropped), "terms": _terms(cost, dropped)})
        content = {
            "format_version": FORMAT_VERSION,
            "conditions": asdict(conditions),
            "settings": asdict(settings),
            "layers": [listed_layer(kind, precision, own.inputs, own.outputs) for kind, own in table.layers.items()],
            "call": _listed_entry(CALL, precision),
            "reference": [_listed_entry(entry, precision) for entry in REFERENCE],
            "networks": listed,
        }
        write_json(new / LIST_NAME, content)


def _untimed(subject: Subject, graph: ChannelGraph, conditions: Conditions) -> LatencyTable:
    """Return the table that the device will fill in, with zeros as times."""
    axes = grids(timed_layers(subject.model, graph, subject.image_chw))
    layers = {
        kind: LayerTimes(inputs=rows, outputs=columns, ms=((0.0,) * len(columns),) * len(rows))
        for kind, (rows, columns) in axes.items()
    }
    return LatencyTable(conditions=conditions, version="", machine="", layers=layers)


def _export(model: nn.Module, subject: Subject, conditions: Conditions, stem: Path) -> None:
    """Write a network as `stem`.param and `stem`.bin, all that the program reads of an artefact."""
    with tempfile.TemporaryDirectory() as scratch:
        artefact = Path(scratch) / f"network{FORMATS[_RUNTIME].suffix}"
        export_network(model, subject, conditions, artefact)
        for name in (PARAM_NAME, BIN_NAME):
            shutil.move(artefact / name, stem.with_suffix(Path(name).suffix))


def _listed_entry(entry: Entry, precision: str) -> dict[str, Any]:
    return listed_layer(entry.kind, precision, (entry.inputs,), (entry.outputs,))


def listed_layer(
    kind: LayerKind, precision: str, inputs: tuple[int, ...], outputs: tuple[int, ...]
) -> dict[str, Any]:
    """Return a kind of layer with its network for any width, see `entry_param`, and the widths to time it at."""
    return {
        "kind": asdict(kind),
        "param": entry_param(kind, precision),
        "storage": entry_storage(kind, precision),
        "inputs": inputs,
        "outputs": outputs,
    }


def _terms(cost: LatencyCost, dropped: IntArray) -> list[tuple[int, float]]:
    """Return what the layers of a cut network add up to, as a sum over entries.

    Interpolation is linear in the times: the program multiplies and adds, and need not know how it is done.

    Returns:
        Positions in the list of all entries, row by row and kind by kind, and their factors.
    """
    kinds = cost.table.layers
    sizes = [len(times.inputs) * len(times.outputs) for times in kinds.values()]
    starts = dict(zip(kinds, accumulate(sizes, initial=0), strict=False))
    factors: dict[int, float] = defaultdict(float)
    for layer, times, inputs, outputs in zip(cost.layers, cost.times, *cost.widths(dropped), strict=True):
        for row, by_row in _neighbours(times.inputs, inputs):
            for column, by_column in _neighbours(times.outputs, outputs):
                factors[starts[layer.kind] + row * len(times.outputs) + column] += by_row * by_column
    return sorted(factors.items())


def _neighbours(axis: tuple[int, ...], width: int) -> Iterator[tuple[int, float]]:
    """Yield the positions of the measured widths beside a width, and the factors with which they count."""
    for index, unit in enumerate(np.eye(len(axis))):
        factor = float(np.interp(width, axis, unit))
        if factor > 0:
            yield index, factor
