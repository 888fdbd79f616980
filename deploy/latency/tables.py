"""The latency table that a command plans by: given as a file, cached, or measured now."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from pathlib import Path

from deploy.formats import FORMATS
from deploy.latency.entries import grids
from deploy.latency.measure import measure_table, runtime_version, times_of, with_layers
from deploy.latency.networks import Subject
from pruning.channels.graph import ChannelGraph
from pruning.selection.latency import FORMAT_VERSION, Conditions, LatencyTable
from pruning.selection.latency_cost import LatencyCost
from pruning.selection.latency_layers import TimedLayer, timed_layers
from utils.datasets.classes.known import default_cache
from utils.device import machine_name
from utils.errors import ConfigError

LOGGER = logging.getLogger(__name__)

# A table of a machine that is now faster or slower than this was measured while something else kept it busy, which
# slows layers by different factors: it is measured again, not scaled.
_DRIFT = 1.2


def latency_table(
    subject: Subject, conditions: Conditions, *, path: str = "", cache: str | Path | None = None
) -> LatencyTable:
    """Return the latency table of a network.

    A given table is not scaled, since it may be of another machine. A cached one is scaled by the time that the
    network takes now, since the speed of a machine drifts, and measured again if it drifted far. Layers that either
    lacks are measured and added if the table is of this machine.

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
        factor = _slowdown(table, subject)
        if 1 / _DRIFT <= factor <= _DRIFT:
            LOGGER.info("latency table %s, scaled by %.3f to the time that the network takes now", file, factor)
            return table.scaled(factor)
        LOGGER.info("the network takes %.2f times as long as by latency table %s: too far apart", factor, file)
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


def _slowdown(table: LatencyTable, subject: Subject) -> float:
    """Return how many times as long as by a table its network takes now."""
    graph = ChannelGraph.of(subject.model, image_chw=subject.trace_chw)
    predicted = LatencyCost.of(subject.model, graph, subject.image_chw, table).milliseconds()
    return times_of([subject.model], subject, table.conditions)[0] / predicted


def _key(layers: Sequence[TimedLayer], conditions: Conditions) -> str:
    """Return a digest of everything that the times depend on."""
    kinds = sorted(map(repr, grids(layers).items()))
    facts = [FORMAT_VERSION, machine_name(), runtime_version(conditions.runtime), conditions, *kinds]
    return hashlib.sha256("\n".join(map(str, facts)).encode()).hexdigest()[:24]
