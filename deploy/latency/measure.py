"""Measure a latency table: single layers on their runtime, and whole networks for what layers leave over."""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
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
from deploy.job import ExportJob
from deploy.latency.entries import Entry, EntrySettings, OpenEntry, RunEntry, entries_of, grids
from deploy.outputs.outputs import Source
from deploy.settings import ExportSettings, RuntimeOptions
from deploy.verification.latency import clock_for, time_in_turns
from pruning.channels.graph import ChannelGraph
from pruning.channels.ids import IntArray
from pruning.selection.latency import Conditions, LatencyTable, LayerKind, LayerTimes
from pruning.selection.latency_cost import LatencyCost
from pruning.selection.latency_layers import TimedLayer, timed_layers
from pruning.selection.planner import Planner
from pruning.selection.rounding import Rounding
from pruning.selection.settings import PlanSettings
from pruning.surgery.cut import cut
from utils.device import machine_name
from utils.progress import progress

LOGGER = logging.getLogger(__name__)

# Entries opened at a time, and turns in which they are called.
_AT_ONCE, _RUNS = 48, 12
# Networks whose time decides what layers leave over: shares of their channels that are cut.
_CUT_SHARES = (0.0, 0.25, 0.5, 0.7)
_ALIGNED = 8
_NETWORK_RUNS = 150
_NUM_CALIBRATION = 2
# Layers whose times together are the reference.
_REFERENCE = (
    Entry(kind=LayerKind(kind="conv", kernel=(3, 3), padding=(1, 1), input_hw=(40, 40)), inputs=64, outputs=64),
    Entry(kind=LayerKind(kind="conv", input_hw=(40, 40)), inputs=128, outputs=128),
)
_REFERENCE_RUNS = 40
# Weight of the penalty on the fitted rest, against one network.
_RIDGE = 0.3
# A layer that computes next to nothing: what a call costs that a layer inside a network does not.
_CALL = Entry(kind=LayerKind(kind="conv"), inputs=1, outputs=1)


@dataclass(frozen=True, kw_only=True, eq=False)
class Subject:
    """A network whose layers are timed.

    Attributes:
        model: The network.
        image_chw: Channels, height and width of the image.
        trace_chw: Image size to trace it with, as in `ChannelGraph.of`.
        source_of: Function that makes a source of artefacts of it, and of it when cut.
    """

    model: nn.Module
    image_chw: tuple[int, int, int]
    trace_chw: tuple[int, int, int] | None
    source_of: Callable[[nn.Module], Source]


def measure_table(subject: Subject, conditions: Conditions) -> LatencyTable:
    """Measure every kind of layer of a network, and what is left over.

    Whole networks and the reference layers are called between the layers, all the time: a call that other programs
    leave alone is rarer the longer it takes.

    Raises:
        ConfigError: A package is missing, or the network cannot be exported.
    """
    start = time.monotonic()
    graph = ChannelGraph.of(subject.model, image_chw=subject.trace_chw)
    layers = timed_layers(subject.model, graph, subject.image_chw)
    networks = list(_networks(subject, graph))
    with tempfile.TemporaryDirectory() as scratch:
        calls = _opened_networks([model for model, _ in networks], subject, conditions, Path(scratch))
        beside = _Fastest(calls=[*calls, *_reference_calls(conditions)], threads=conditions.threads)
        times = _timed(layers, conditions, beside)
        beside.run(_NETWORK_RUNS // 3)
    table = LatencyTable(
        conditions=conditions,
        version=runtime_version(conditions.runtime),
        machine=machine_name(),
        layers=times,
        reference_ms=sum(beside.ms[len(calls) :]),
    )
    cost = LatencyCost.of(subject.model, graph, subject.image_chw, table)
    table = _with_rest(cost, [dropped for _, dropped in networks], beside.ms[: len(calls)])
    LOGGER.info("latency table: %d kinds of layers in %.0f s", len(times), time.monotonic() - start)
    return table


def times_of(models: Sequence[nn.Module], subject: Subject, conditions: Conditions) -> list[float]:
    """Export networks and return the milliseconds of each, timed side by side."""
    with tempfile.TemporaryDirectory() as scratch:
        fastest = _Fastest(
            calls=_opened_networks(models, subject, conditions, Path(scratch)), threads=conditions.threads
        )
        fastest.run(_NETWORK_RUNS)
    return fastest.ms


def time_reference(conditions: Conditions) -> float:
    """Return the milliseconds of the layers that show whether the machine has become faster or slower."""
    fastest = _Fastest(calls=_reference_calls(conditions), threads=conditions.threads)
    fastest.run(_REFERENCE_RUNS)
    return sum(fastest.ms)


def runtime_version(runtime: str) -> str:
    """Return the version of the package that runs artefacts of a format.

    Raises:
        ConfigError: The package is not installed.
    """
    package = FORMATS[runtime].engine
    return str(optional_package(package, purpose=f"a latency table of {runtime}").__version__)


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
    return [open_entry(entry, settings) for entry in _REFERENCE]


def _timed(layers: Sequence[TimedLayer], conditions: Conditions, beside: _Fastest) -> dict[LayerKind, LayerTimes]:
    """Time each kind of layer at its grid of widths, and run what is to be timed beside them."""
    open_entry, settings = _opener(conditions)
    wanted = grids(layers)
    entries = [entry for kind, (rows, columns) in wanted.items() for entry in entries_of(kind, rows, columns)]
    chunks = [entries[start : start + _AT_ONCE] for start in range(0, len(entries), _AT_ONCE)]
    call = _Fastest(calls=[open_entry(_CALL, settings)], threads=settings.threads)
    call.run(_REFERENCE_RUNS)
    times: list[float] = []
    for chunk in progress(chunks, description="timing layers"):
        fastest = _Fastest(calls=[open_entry(entry, settings) for entry in chunk], threads=settings.threads)
        fastest.run(_RUNS)
        times += [max(ms - call.ms[0], 0.0) for ms in fastest.ms]
        beside.run(-(-_NETWORK_RUNS // len(chunks)))
    found, position = {}, iter(times)
    for kind, (rows, columns) in wanted.items():
        ms = tuple(tuple(next(position) for _ in columns) for _ in rows)
        found[kind] = LayerTimes(inputs=rows, outputs=columns, ms=ms)
    return found


def _with_rest(cost: LatencyCost, cuts: Sequence[IntArray], measured_ms: Sequence[float]) -> LatencyTable:
    """Fit `fixed_ms` and `ms_per_value` to whole networks of several widths, by least squares of relative errors.

    Wider networks also write more values, so one disturbed measurement would turn one part large and the other
    negative; a small penalty on both (ridge regression) prevents that.

    Args:
        cost: Prediction by layers alone.
        cuts: Channels that each network lacks.
        measured_ms: Time of each network.
    """
    measured = np.array(measured_ms)
    layers = np.array([cost.milliseconds(dropped) for dropped in cuts])
    values = np.array([cost.values(dropped) for dropped in cuts])
    factors = np.stack([np.ones(len(values)), values], axis=1) / measured[:, None]
    penalties = _RIDGE**0.5 * np.diag(factors.mean(axis=0))
    left = np.concatenate([(measured - layers) / measured, np.zeros(2)])
    (fixed, per_value), *_ = np.linalg.lstsq(np.concatenate([factors, penalties]), left, rcond=None)
    return replace(cost.table, fixed_ms=float(fixed), ms_per_value=float(per_value))


def _networks(subject: Subject, graph: ChannelGraph) -> Iterator[tuple[nn.Module, IntArray]]:
    """Yield networks of several widths, with the channels that they lack."""
    widest = max(len(group.ids) for group in graph.groups)
    for share in _CUT_SHARES:
        settings = PlanSettings(
            criterion="random",
            percent=share,
            shortcuts="tied",
            rounding=Rounding(unit=min(_ALIGNED, widest)),
            trace_chw=subject.trace_chw,
        )
        dropped = Planner.of(subject.model, settings).decide().dropped
        yield cut(subject.model, graph, dropped, carry=False) if len(dropped) else subject.model, dropped


def _opened_networks(
    models: Sequence[nn.Module], subject: Subject, conditions: Conditions, folder: Path
) -> list[Callable[[], object]]:
    """Export networks into a folder, and return a function for each that runs it on one image."""
    form, precision = FORMATS[conditions.runtime], cast(Precision, conditions.precision)
    _, height, width = subject.image_chw
    options = RuntimeOptions(threads=conditions.threads, half=precision == "fp16")
    calls: list[Callable[[], object]] = []
    for index, model in enumerate(models):
        source = subject.source_of(model)
        images = source.noise(_NUM_CALIBRATION, subject.image_chw)
        job = ExportJob(
            source=source,
            settings=ExportSettings(image_hw=(height, width), precision=precision),
            calibration=[image[None] for image in images] if precision == "int8" else (),
        )
        path = folder / f"{index}{form.suffix}"
        resolve(form.write)(job, path)
        calls.append(partial(load_runtime(path, device=torch.device("cpu"), options=options), images[:1]))
    return calls
