"""The latency table that a command plans by: given as a file, cached, or measured now."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from pathlib import Path

from deploy.formats import FORMATS
from deploy.latency.entries import grids
from deploy.latency.measure import measure_table, runtime_version, time_reference, with_layers
from deploy.latency.networks import Subject
from pruning.channels.graph import ChannelGraph
from pruning.selection.latency import FORMAT_VERSION, Conditions, LatencyTable
from pruning.selection.latency_layers import TimedLayer, timed_layers
from utils.datasets.classes.known import default_cache
from utils.device import machine_name
from utils.errors import ConfigError

LOGGER = logging.getLogger(__name__)


def latency_table(
    subject: Subject, conditions: Conditions, *, path: str = "", cache: str | Path | None = None
) -> LatencyTable:
    """Return the latency table of a network.

    A given table is not scaled, since it may be of another machine. A cached one is scaled by the time that its
    reference layers take now, since the speed of a machine drifts. Layers that either lacks are measured and added
    if the table is of this machine.

    Args:
        subject: Network whose layers the table must contain.
        conditions: Runtime, precision, threads and image size.
        path: File of a table, perhaps of another machine; "" to take the cached one or to measure.
        cache: Folder of measured tables; None for `latency` below `default_cache`.

    Raises:
        ConfigError: The given table is no table, is of other conditions, or lacks a layer that cannot be measured
            here; or none is given and this machine cannot measure one.
    """
    layers = _layers(subject)
    if path:
        given = LatencyTable.load(path)
        given.conditions.check(conditions, where=f"--latency-table {path}")
        LOGGER.info("latency table %s, measured on %s", path, given.machine)
        return _completed(given, layers, where=f"--latency-table {path}")
    if not FORMATS[conditions.runtime].entry:
        raise ConfigError(
            f"{conditions.runtime}: layers are not timed one by one here; give --latency-table, measured on its GPU"
        )
    file = (Path(cache) if cache else default_cache() / "latency") / f"{_key(layers, conditions)}.json"
    if file.is_file() and (cached := _loaded(file)):
        table = _completed(cached, layers, where=str(file))
        if table is not cached:
            table.save(file)
        return _at_the_speed_of_now(table, file)
    LOGGER.info("measuring a latency table of %s; it is kept in %s", conditions.runtime, file)
    table = measure_table(subject, conditions)
    file.parent.mkdir(parents=True, exist_ok=True)
    table.save(file)
    return table


def _completed(table: LatencyTable, layers: Sequence[TimedLayer], *, where: str) -> LatencyTable:
    """Return the table with the times of all layers, those that it lacks being measured now.

    Raises:
        ConfigError: It lacks one and is of another machine, or layers cannot be timed on its runtime here.
    """
    lacks = {layer.kind: lack for layer in layers if (lack := _lack_of(table, layer))}
    if not lacks:
        return table
    first = next(iter(lacks.values()))
    if table.machine != (own := machine_name()):
        raise ConfigError(
            f"{where}: {first}; it was measured on {table.machine} and this is {own}: measure it there for this "
            "network, with --latency-layers"
        )
    runtime = table.conditions.runtime
    if not FORMATS[runtime].entry:
        raise ConfigError(f"{where}: {first}; {runtime} does not time layers one by one here, give another table")
    LOGGER.info("%s: %s; kinds of layers that are measured now and added: %d", where, first, len(lacks))
    return with_layers(table, [layer for layer in layers if layer.kind in lacks])


def _lack_of(table: LatencyTable, layer: TimedLayer) -> str:
    """Return why a table has no times of a layer; "" if it has them."""
    inputs, outputs = layer.inputs(len(layer.input_ids)), len(layer.output_ids)
    return table.lack_of(layer.kind, name=layer.name, inputs=inputs, outputs=outputs)


def _layers(subject: Subject) -> tuple[TimedLayer, ...]:
    graph = ChannelGraph.of(subject.model, image_chw=subject.trace_chw)
    return timed_layers(subject.model, graph, subject.image_chw)


def _loaded(file: Path) -> LatencyTable | None:
    """Read a cached table; None, with a warning, if it is damaged."""
    try:
        return LatencyTable.load(file)
    except ConfigError as error:
        LOGGER.warning("%s", error)
        return None


def _at_the_speed_of_now(table: LatencyTable, file: Path) -> LatencyTable:
    """Scale a table by the time that the reference layers take now."""
    factor = time_reference(table.conditions) / table.reference_ms
    LOGGER.info("latency table %s, scaled by %.3f: reference layers took %.3f ms", file, factor, table.reference_ms)
    return table.scaled(factor)


def _key(layers: Sequence[TimedLayer], conditions: Conditions) -> str:
    """Return a digest of everything that the times depend on."""
    kinds = sorted(map(repr, grids(layers).items()))
    facts = [FORMAT_VERSION, machine_name(), runtime_version(conditions.runtime), conditions, *kinds]
    return hashlib.sha256("\n".join(map(str, facts)).encode()).hexdigest()[:24]
