"""The layers of a network in int8 for a runtime: one calibration serves every exporter."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from typing import Any

import torch
from numpy.typing import NDArray

from deploy.int8.calibration import Arithmetic, Int8Calibration, Layers, calibrated, trained_layers
from deploy.int8.mix_timing import RunLayers, within_budget
from deploy.int8.search import Int8SearchSettings, search_int8_skips
from deploy.job import ExportJob
from deploy.outputs.metadata import Metadata
from deploy.settings import RuntimeOptions

logger = logging.getLogger(__name__)


def int8_layers(
    job: ExportJob,
    arithmetic: Arithmetic,
    *,
    metadata: Metadata,
    stored: Mapping[str, NDArray[Any]],
    run: RunLayers,
    floats: Collection[str] = (),
) -> Layers:
    """Calibrate a network for a runtime, choose what stays in floating point, and round the weights.

    Args:
        job: Network, calibration images, patterns of layers to leave out, and whether to search for further ones.
        arithmetic: How the runtime computes.
        metadata: Metadata of the artefact.
        stored: Weight of each layer that can be replaced, as the artefact in floating point has it.
        run: Function that writes and loads an artefact with given layers, for the search and for a budget.
        floats: Layers that the runtime has in floating point alone.

    Raises:
        ConfigError: There are no images, some are of another size, a pattern matches no layer, or no choice of layers
            is within the budget.
    """
    if job.rounded is not None:
        return trained_layers(job.rounded, job.source.model, stored=stored, floats=floats)
    calibration = calibrated(job, arithmetic, metadata=metadata, stored=stored, floats=floats)
    layers = _chosen(job, calibration, metadata, run)
    if job.tell is not None:
        job.tell(calibration.errors(layers))
    return layers


def _chosen(job: ExportJob, calibration: Int8Calibration, metadata: Metadata, run: RunLayers) -> Layers:
    """Choose what stays in floating point, in addition to what does so in any case, and round the weights."""
    if job.special.int8_search:
        return _searched(job, calibration, metadata, run)
    if job.special.int8_budget is None:
        return calibration.layers()
    layers, mix = within_budget(job, calibration, job.special.int8_budget, metadata=metadata, run=run)
    if job.tell_mix is not None:
        job.tell_mix(mix)
    return layers


def _searched(job: ExportJob, calibration: Int8Calibration, metadata: Metadata, run: RunLayers) -> Layers:
    """Search for layers to keep in floating point; see `search_int8_skips`."""
    assert job.measure is not None, "searching needs data, which the settings have checked"
    measure = job.measure

    def metric_of(layers: Layers) -> float:
        runtime = run(layers, RuntimeOptions())
        return measure(runtime, runtime.input_hw)

    found = search_int8_skips(
        calibration,
        metric_of=metric_of,
        reference=measure(job.source.runtime(torch.device("cpu")), metadata.input_hw),
        metadata=metadata,
        search=Int8SearchSettings(metric=job.source.metric),
    )
    logger.info("kept in floating point: %s", ", ".join(found.best.skip) or "no further layers")
    return found.layers
