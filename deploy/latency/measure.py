"""Measure a latency table: single layers on their runtime, and whole networks for what layers leave over."""

from __future__ import annotations

import logging
import platform
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import nn

from deploy.artefact.packages import optional_package
from deploy.choices import Precision
from deploy.formats import FORMATS, load_runtime, resolve
from deploy.job import ExportJob
from deploy.latency.entries import Entry, EntrySettings, OpenEntry, entries_of, grids
from deploy.outputs.outputs import Source
from deploy.settings import ExportSettings, RuntimeOptions
from deploy.verification.latency import clock_for, measure_latencies, time_in_turns
from pruning.channels.graph import ChannelGraph
from pruning.selection.latency import Conditions, LatencyTable, LayerKind, LayerTimes
from pruning.selection.latency_cost import LatencyCost
from pruning.selection.latency_layers import TimedLayer, timed_layers
from pruning.selection.planner import Planner
from pruning.selection.rounding import Rounding
from pruning.selection.settings import PlanSettings
from pruning.surgery.cut import cut
from utils.progress import progress

LOGGER = logging.getLogger(__name__)

# Entries opened at a time, and turns in which they are called.
_AT_ONCE, _RUNS = 48, 12
# Networks whose time decides what layers leave over: shares of their channels that are cut.
_CUT_SHARES = (0.0, 0.25, 0.5, 0.7)
_ALIGNED = 8
_NETWORK_RUNS = 20
_NUM_CALIBRATION = 2
# Layers whose times together are the reference.
_REFERENCE = (
    Entry(kind=LayerKind(kind="conv", kernel=(3, 3), padding=(1, 1), input_hw=(40, 40)), inputs=64, outputs=64),
    Entry(kind=LayerKind(kind="conv", input_hw=(40, 40)), inputs=128, outputs=128),
)
_REFERENCE_RUNS = 40


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

    Raises:
        ConfigError: A package is missing, or the network cannot be exported.
    """
    start = time.monotonic()
    graph = ChannelGraph.of(subject.model, image_chw=subject.trace_chw)
    settings = _entry_settings(conditions)
    open_entry: OpenEntry = resolve(FORMATS[conditions.runtime].entry)
    layers = _timed(timed_layers(subject.model, graph, subject.image_chw), open_entry, settings)
    table = LatencyTable(
        conditions=conditions,
        version=runtime_version(conditions.runtime),
        machine=machine_name(),
        layers=layers,
        reference_ms=time_reference(conditions),
    )
    table = _with_rest(table, subject, graph)
    LOGGER.info("latency table: %d layers in %.0f s", len(layers), time.monotonic() - start)
    return table


def time_reference(conditions: Conditions) -> float:
    """Return the milliseconds of the layers that show whether the machine has become faster or slower."""
    open_entry: OpenEntry = resolve(FORMATS[conditions.runtime].entry)
    settings = _entry_settings(conditions)
    return sum(_fastest([open_entry(entry, settings) for entry in _REFERENCE], settings, runs=_REFERENCE_RUNS))


def machine_name() -> str:
    """Return the name of the CPU."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8", errors="replace").splitlines() if info.is_file() else []
    named = (line.partition(":")[2].strip() for line in lines if line.lower().startswith("model name"))
    return next(named, "") or platform.processor() or platform.machine()


def runtime_version(runtime: str) -> str:
    """Return the version of the package that runs artefacts of a format.

    Raises:
        ConfigError: The package is not installed.
    """
    package = FORMATS[runtime].engine
    return str(optional_package(package, purpose=f"a latency table of {runtime}").__version__)


def _entry_settings(conditions: Conditions) -> EntrySettings:
    return EntrySettings(precision=cast(Precision, conditions.precision), threads=conditions.threads)


def _fastest(calls: Sequence[Callable[[], object]], settings: EntrySettings, *, runs: int) -> list[float]:
    """Return the fastest call of each in milliseconds, calling each in turn, as a network calls its layers."""
    clock = clock_for(settings.threads)
    return [latency.fastest for latency in time_in_turns(calls, threads=settings.threads, runs=runs, clock=clock)]


def _timed(
    layers: Sequence[TimedLayer], open_entry: OpenEntry, settings: EntrySettings
) -> dict[LayerKind, LayerTimes]:
    """Time each kind of layer at its grid of widths."""
    wanted = grids(layers)
    entries = [entry for kind, (rows, columns) in wanted.items() for entry in entries_of(kind, rows, columns)]
    times: list[float] = []
    chunks = [entries[start : start + _AT_ONCE] for start in range(0, len(entries), _AT_ONCE)]
    for chunk in progress(chunks, description="timing layers"):
        times += _fastest([open_entry(entry, settings) for entry in chunk], settings, runs=_RUNS)
    found, position = {}, iter(times)
    for kind, (rows, columns) in wanted.items():
        ms = tuple(tuple(next(position) for _ in columns) for _ in rows)
        found[kind] = LayerTimes(inputs=rows, outputs=columns, ms=ms)
    return found


def _with_rest(table: LatencyTable, subject: Subject, graph: ChannelGraph) -> LatencyTable:
    """Fit `fixed_ms` and `ms_per_value` to whole networks of several widths, by least squares of relative errors."""
    cost = LatencyCost.of(subject.model, graph, subject.image_chw, table)
    models, rows = [], []
    for model, dropped in _networks(subject, graph):
        models.append(model)
        rows.append((cost.milliseconds(dropped), cost.values(dropped)))
    measured = np.array(times_of(models, subject, table.conditions))
    layers, values = np.array(rows).T
    factors = np.stack([np.ones(len(values)), values], axis=1) / measured[:, None]
    (fixed, per_value), *_ = np.linalg.lstsq(factors, (measured - layers) / measured, rcond=None)
    return replace(table, fixed_ms=float(fixed), ms_per_value=float(per_value))


def _networks(subject: Subject, graph: ChannelGraph) -> Iterator[tuple[nn.Module, np.ndarray]]:
    """Yield networks of several widths, with the channels that they lack."""
    widest = max(len(group.ids) for group in graph.groups)
    for share in _CUT_SHARES:
        planner = Planner.of(
            subject.model,
            PlanSettings(
                criterion="random",
                percent=share,
                shortcuts="tied",
                rounding=Rounding(unit=min(_ALIGNED, widest)),
                trace_chw=subject.trace_chw,
            ),
        )
        dropped = planner.decide().dropped
        yield cut(subject.model, graph, dropped, carry=False) if len(dropped) else subject.model, dropped


def times_of(models: Sequence[nn.Module], subject: Subject, conditions: Conditions) -> list[float]:
    """Export networks and time them side by side."""
    form = FORMATS[conditions.runtime]
    precision = cast(Precision, conditions.precision)
    _, height, width = subject.image_chw
    options = RuntimeOptions(threads=conditions.threads, half=precision == "fp16")
    runtimes = []
    with tempfile.TemporaryDirectory() as scratch:
        for index, model in enumerate(models):
            source = subject.source_of(model)
            images = source.noise(_NUM_CALIBRATION, subject.image_chw)
            job = ExportJob(
                source=source,
                settings=ExportSettings(image_hw=(height, width), precision=precision),
                calibration=[image[None] for image in images] if precision == "int8" else (),
            )
            path = Path(scratch, f"{index}{form.suffix}")
            resolve(form.write)(job, path)
            runtimes.append(load_runtime(path, device=torch.device("cpu"), options=options))
        times = measure_latencies(
            runtimes, images[:1], threads=conditions.threads, runs=_NETWORK_RUNS, clock=clock_for(conditions.threads)
        )
    return [latency.fastest for latency in times]
