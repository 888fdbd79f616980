"""The latency table that a command plans by: given as a file, cached, or measured now."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path

from deploy.formats import FORMATS
from deploy.latency.entries import grids
from deploy.latency.measure import Subject, measure_table, runtime_version, time_reference
from pruning.channels.graph import ChannelGraph
from pruning.selection.latency import FORMAT_VERSION, Conditions, LatencyTable
from pruning.selection.latency_layers import timed_layers
from utils.datasets.classes.known import default_cache
from utils.device import machine_name
from utils.errors import ConfigError

LOGGER = logging.getLogger(__name__)


def latency_table(
    subject: Subject, conditions: Conditions, *, path: str = "", cache: str | Path | None = None
) -> LatencyTable:
    """Return the latency table of a network.

    A given table is taken as it is. A cached one is scaled by the time that its reference layers take now, since the
    speed of a machine drifts.

    Args:
        subject: Network whose layers the table must contain.
        conditions: Runtime, precision, threads and image size.
        path: File of a table, perhaps of another machine; "" to take the cached one or to measure.
        cache: Folder of measured tables; None for `latency` below `default_cache`.

    Raises:
        ConfigError: The given table is of other conditions or no table, or this machine cannot measure one.
    """
    if path:
        given = LatencyTable.load(path)
        given.conditions.check(conditions, where=f"--latency-table {path}")
        return given
    if not FORMATS[conditions.runtime].entry:
        raise ConfigError(
            f"{conditions.runtime}: layers are not timed one by one here; give --latency-table, measured on its GPU"
        )
    file = (Path(cache) if cache else default_cache() / "latency") / f"{_key(subject, conditions)}.json"
    if file.is_file() and (cached := _loaded(file)):
        return _at_the_speed_of_now(cached, file)
    LOGGER.info("measuring a latency table of %s; it is kept in %s", conditions.runtime, file)
    table = measure_table(subject, conditions)
    file.parent.mkdir(parents=True, exist_ok=True)
    table.save(file)
    return table


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


def _key(subject: Subject, conditions: Conditions) -> str:
    """Return a digest of everything that the times depend on."""
    graph = ChannelGraph.of(subject.model, image_chw=subject.trace_chw)
    layers = sorted(map(repr, grids(timed_layers(subject.model, graph, subject.image_chw)).items()))
    facts = [FORMAT_VERSION, machine_name(), runtime_version(conditions.runtime), conditions, *layers]
    return hashlib.sha256("\n".join(map(str, facts)).encode()).hexdigest()[:24]
