"""Measure a latency table: single layers on their runtime, and whole networks for what layers leave over."""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import nn

from deploy.artefact.packages import optional_package
from deploy.choices import Precision
from deploy.formats import FORMATS, load_runtime, resolve
from deploy.latency.entries import Entry, EntrySettings, OpenEntry, RunEntry, entries_of, grids
from deploy.latency.networks import Subject, cut_networks, export_network
from deploy.settings import RuntimeOptions
from deploy.verification.latency import clock_for, time_in_turns
from pruning.channels.graph import ChannelGraph
from pruning.channels.ids import IntArray
from pruning.selection.latency import Conditions, LatencyTable, LayerKind, LayerTimes
from pruning.selection.latency_cost import LatencyCost
from pruning.selection.latency_layers import TimedLayer, timed_layers
from utils.device import machine_name
from utils.progress import progress

LOGGER = logging.getLogger(__name__)

# Layers whose times together are the reference: they bring layers that are measured later to the speed of a table.
REFERENCE = (
    Entry(kind=LayerKind(kind="conv", kernel=(3, 3), padding=(1, 1), input_hw=(40, 40)), inputs=64, outputs=64),
    Entry(kind=LayerKind(kind="conv", input_hw=(40, 40)), inputs=128, outputs=128),
)
# Timed calls of each layer, where only the layers of one network are timed.
_LAYER_RUNS = 40
# A layer that computes next to nothing: what a call costs that a layer inside a network does not.
CALL = Entry(kind=LayerKind(kind="conv"), inputs=1, outputs=1)


@dataclass(frozen=True, kw_only=True)
class MeasureSettings:
    """How a table is measured, here and by the C++ program.

    Attributes:
        at_once: Layers opened at a time, and called in turns.
        runs: Timed calls of each layer.
        network_runs: Timed calls of each whole network.
        reference_runs: Timed calls of the reference layers, where they are timed alone.
        ridge: Weight of the penalty on the fitted rest, against one network.
    """

    at_once: int = 48
    runs: int = 12
    network_runs: int = 150
    reference_runs: int = 40
    ridge: float = 0.3


SETTINGS = MeasureSettings()


def measure_table(subject: Subject, conditions: Conditions, settings: MeasureSettings = SETTINGS) -> LatencyTable:
    """Measure every kind of layer of a network, and what is left over.

    Whole networks and the reference layers are called between the layers, all the time: a call that other programs
    leave alone is rarer the longer it takes.

    Raises:
        ConfigError: A package is missing, or the network cannot be exported.
    """
    start = time.monotonic()
    graph = ChannelGraph.of(subject.model, image_chw=subject.trace_chw)
    layers = timed_layers(subject.model, graph, subject.image_chw)
    networks = list(cut_networks(subject, graph))
    with tempfile.TemporaryDirectory() as scratch:
        calls = _opened_networks([model for model, _ in networks], subject, conditions, Path(scratch))
        beside = _Fastest(calls=[*calls, *_reference_calls(conditions)], threads=conditions.threads)
        times = _timed(layers, conditions, beside, settings)
        beside.run(settings.network_runs // 3)
    table = LatencyTable(
        conditions=conditions,
        version=runtime_version(conditions.runtime),
        machine=machine_name(),
        layers=times,
        reference_ms=sum(beside.ms[len(calls) :]),
    )
    cost = LatencyCost.of(subject.model, graph, subject.image_chw, table)
    table = with_rest(cost, [dropped for _, dropped in networks], beside.ms[: len(calls)], ridge=settings.ridge)
    LOGGER.info("latency table: %d kinds of layers in %.0f s", len(times), time.monotonic() - start)
    return table


def with_layers(
    table: LatencyTable, layers: Sequence[TimedLayer], settings: MeasureSettings = SETTINGS
) -> LatencyTable:
    """Measure further layers, and return a table that contains them too, at the speed that it is of.

    What whole networks left over remains as it is.

    Args:
        table: Table of this machine.
        layers: Layers whose kinds it lacks, or does not reach the widths of.
        settings: How they are measured.

    Raises:
        ConfigError: A package is missing.
    """
    beside = _Fastest(calls=_reference_calls(table.conditions), threads=table.conditions.threads)
    times = _timed(layers, table.conditions, beside, settings)
    beside.run(settings.reference_runs)
    factor = table.reference_ms / sum(beside.ms)
    return replace(table, layers={**table.layers, **{kind: own.scaled(factor) for kind, own in times.items()}})


def times_of(models: Sequence[nn.Module], subject: Subject, conditions: Conditions) -> list[float]:
    """Export networks and return the milliseconds of each, timed side by side."""
    return times_of_subjects([replace(subject, model=model) for model in models], conditions)


def times_of_subjects(subjects: Sequence[Subject], conditions: Conditions) -> list[float]:
    """Export networks, each at its own image size, and return the milliseconds of each, timed side by side."""
    calls: list[Callable[[], object]] = []
    with tempfile.TemporaryDirectory() as scratch:
        for index, subject in enumerate(subjects):
            own, folder = replace(conditions, image_chw=subject.image_chw), Path(scratch) / str(index)
            folder.mkdir()
            calls += _opened_networks([subject.model], subject, own, folder)
        fastest = _Fastest(calls=calls, threads=conditions.threads)
        fastest.run(SETTINGS.network_runs)
    return fastest.ms


def layer_times(
    layers: Sequence[TimedLayer], *, runtime: str, precisions: Sequence[Precision], threads: int
) -> dict[str, tuple[float, ...]]:
    """Time each layer of a network alone, at its widths.

    Args:
        layers: Every call of the layers; the calls of one layer add up.
        runtime: Name of a format whose layers are timed here.
        precisions: Precisions to time each in.
        threads: Number of threads.

    Returns:
        Milliseconds in each of the precisions, by the path of the layer.

    Raises:
        ConfigError: A package is missing.
    """
    open_entry = resolve(FORMATS[runtime].entry)
    wanted = [(layer.name, _alone(layer)) for layer in layers]
    found = {name: [0.0] * len(precisions) for name, _ in wanted}
    size = max(1, SETTINGS.at_once // len(precisions))
    for start in range(0, len(wanted), size):
        chunk = wanted[start : start + size]
        settings = [EntrySettings(precision=precision, threads=threads) for precision in precisions]
        fastest = _Fastest(calls=[open_entry(entry, own) for _, entry in chunk for own in settings], threads=threads)
        fastest.run(_LAYER_RUNS)
        times = iter(fastest.ms)
        for name, _ in chunk:
            found[name] = [total + next(times) for total in found[name]]
    return {name: tuple(times) for name, times in found.items()}


def _alone(layer: TimedLayer) -> Entry:
    """Return a layer at its widths, as one that may be in int8 wherever it is in the network."""
    kind = replace(layer.kind, end="")
    return Entry(kind=kind, inputs=layer.inputs(len(layer.input_ids)), outputs=len(layer.output_ids))


def runtime_version(runtime: str) -> str:
    """Return the version of the package that runs artefacts of a format.

    Raises:
        ConfigError: The package is not installed.
    """
    package = FORMATS[runtime].engine
    return str(optional_package(package, purpose=f"a latency table of {runtime}").__version__)


def with_rest(
    cost: LatencyCost, cuts: Sequence[IntArray], measured_ms: Sequence[float], *, ridge: float = SETTINGS.ridge
) -> LatencyTable:
    """Fit `fixed_ms` and `ms_per_value` to whole networks of several widths, by least squares of relative errors.

    Wider networks also write more values, so one disturbed measurement would turn one part large and the other
    negative; a small penalty on both (ridge regression) prevents that.

    Args:
        cost: Prediction by layers alone.
        cuts: Channels that each network lacks.
        measured_ms: Time of each network.
        ridge: Weight of the penalty, against one network.
    """
    measured = np.array(measured_ms)
    layers = np.array([cost.milliseconds(dropped) for dropped in cuts])
    values = np.array([cost.values(dropped) for dropped in cuts])
    factors = np.stack([np.ones(len(values)), values], axis=1) / measured[:, None]
    penalties = ridge**0.5 * np.diag(factors.mean(axis=0))
    left = np.concatenate([(measured - layers) / measured, np.zeros(2)])
    (fixed, per_value), *_ = np.linalg.lstsq(np.concatenate([factors, penalties]), left, rcond=None)
    return replace(cost.table, fixed_ms=float(fixed), ms_per_value=float(per_value))


class _Fastest:
    """The fastest call so far of each function, called in turn as a network calls its layers.

    Args:
        calls: Functions to time.
        threads: Number of threads that they use.
    """

    def __init__(self, *, calls: Sequence[Callable[[], object]], threads: int) -> None:
        self._calls, self._threads = calls, threads
        self.ms = [float("inf")] * len(calls)

    def run(self, runs: int) -> None:
        """Call each function this often, and twice before."""
        times = time_in_turns(self._calls, threads=self._threads, runs=runs, clock=clock_for(self._threads))
        self.ms = [min(best, latency.fastest) for best, latency in zip(self.ms, times, strict=True)]


def _opener(conditions: Conditions) -> tuple[OpenEntry, EntrySettings]:
    settings = EntrySettings(precision=cast(Precision, conditions.precision), threads=conditions.threads)
    return resolve(FORMATS[conditions.runtime].entry), settings


def _reference_calls(conditions: Conditions) -> list[RunEntry]:
    open_entry, settings = _opener(conditions)
    return [open_entry(entry, settings) for entry in REFERENCE]


def _timed(
    layers: Sequence[TimedLayer], conditions: Conditions, beside: _Fastest, settings: MeasureSettings
) -> dict[LayerKind, LayerTimes]:
    """Time each kind of layer at its grid of widths, and run what is to be timed beside them."""
    open_entry, own = _opener(conditions)
    wanted = grids(layers)
    entries = [entry for kind, (rows, columns) in wanted.items() for entry in entries_of(kind, rows, columns)]
    chunks = [entries[start : start + settings.at_once] for start in range(0, len(entries), settings.at_once)]
    call = _Fastest(calls=[open_entry(CALL, own)], threads=own.threads)
    call.run(settings.reference_runs)
    times: list[float] = []
    for chunk in progress(chunks, description="timing layers"):
        fastest = _Fastest(calls=[open_entry(entry, own) for entry in chunk], threads=own.threads)
        fastest.run(settings.runs)
        times += [max(ms - call.ms[0], 0.0) for ms in fastest.ms]
        beside.run(-(-settings.network_runs // len(chunks)))
    found, position = {}, iter(times)
    for kind, (rows, columns) in wanted.items():
        ms = tuple(tuple(next(position) for _ in columns) for _ in rows)
        found[kind] = LayerTimes(inputs=rows, outputs=columns, ms=ms)
    return found


def _opened_networks(
    models: Sequence[nn.Module], subject: Subject, conditions: Conditions, folder: Path
) -> list[Callable[[], object]]:
    """Export networks into a folder, and return a function for each that runs it on one image."""
    options = RuntimeOptions(threads=conditions.threads, half=conditions.precision == "fp16")
    calls: list[Callable[[], object]] = []
    for index, model in enumerate(models):
        path = folder / f"{index}{FORMATS[conditions.runtime].suffix}"
        images = export_network(model, subject, conditions, path)
        calls.append(partial(load_runtime(path, device=torch.device("cpu"), options=options), images[:1]))
    return calls
