"""Search for the few layers to keep in floating point so that int8 costs little mAP or accuracy."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from deploy.int8.calibration import Int8Calibration, Layers
from deploy.outputs.metadata import Metadata
from utils.errors import ConfigError

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Int8SearchSettings:
    """Settings that end the search.

    Attributes:
        tolerance: Loss of the metric that int8 may cost.
        max_skips: Maximum number of layers to keep in floating point.
        num_images: Number of calibration images on which layers are compared.
        metric: Name of the metric, for messages.
    """

    tolerance: float = 0.01
    max_skips: int = 8
    num_images: int = 4
    metric: str = "mAP"

    def __post_init__(self) -> None:
        for name, least in (("tolerance", 0), ("max_skips", 0), ("num_images", 1)):
            if getattr(self, name) < least:
                raise ConfigError(f"int8 search: {name} is {getattr(self, name)}, expected at least {least}")


@dataclass(frozen=True, kw_only=True)
class Int8Trial:
    """An int8 network that the search measured.

    Attributes:
        skip: Names of the layers kept in floating point in addition to those of the calibration.
        value: Metric of the network.
        drop: Loss against fp32; negative for a gain.
    """

    skip: tuple[str, ...]
    value: float
    drop: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Int8Search:
    """Result of the search.

    Attributes:
        layers: Layers of the best network.
        best: Network with the smallest drop; the last one if its drop is within the tolerance.
        is_within: True if the drop of `best` is within the tolerance.
        trials: All networks measured, in order.
        errors: Errors of each layer that could be int8, worst first, see `int8_errors`; empty if int8 cost so little
            that no search was needed.
    """

    layers: Layers
    best: Int8Trial
    is_within: bool
    trials: tuple[Int8Trial, ...]
    errors: Mapping[str, float]


def search_int8_skips(
    calibration: Int8Calibration,
    *,
    metric_of: Callable[[Layers], float],
    reference: float,
    metadata: Metadata,
    search: Int8SearchSettings | None = None,
) -> Int8Search:
    """Keep the worst layers in floating point, one more at a time, until the metric is good enough.

    The search is deterministic.

    Args:
        calibration: Network to search in.
        metric_of: Function from layers to the mAP or accuracy of an artefact with them.
        reference: Metric in floating point.
        metadata: Metadata of the artefact, which compare outputs.
        search: Settings that end the search.
    """
    search = search or Int8SearchSettings()
    trials: list[Int8Trial] = []
    errors: dict[str, float] = {}
    best: Layers = {}
    for count in range(search.max_skips + 1):
        if count == 1:
            # Ranking takes a while, and most networks do not need it.
            errors = int8_errors(calibration, images=calibration.images[: search.num_images], metadata=metadata)
        if count > len(errors):
            break
        layers = calibration.layers(skip=tuple(errors)[:count])
        trials.append(_measured(tuple(errors)[:count], metric_of(layers), reference, metric=search.metric))
        if trials[-1].drop == min(trial.drop for trial in trials):
            best = layers
        if trials[-1].drop <= search.tolerance:
            break
    found = min(trials, key=lambda trial: trial.drop)
    if found.drop > search.tolerance:
        logger.warning(
            "int8 loses %.4f %s with %d layers skipped, more than allowed", found.drop, search.metric, len(found.skip)
        )
    return Int8Search(
        layers=best,
        best=found,
        is_within=found.drop <= search.tolerance,
        trials=tuple(trials),
        errors=errors,
    )


def _measured(skip: tuple[str, ...], value: float, reference: float, *, metric: str) -> Int8Trial:
    logger.info("int8 with %d more layers skipped: %s %.4f, fp32 %.4f", len(skip), metric, value, reference)
    return Int8Trial(skip=skip, value=value, drop=reference - value)


@torch.no_grad()
def int8_errors(calibration: Int8Calibration, *, images: Sequence[Tensor], metadata: Metadata) -> dict[str, float]:
    """Measure how the outputs change when a single layer is in int8, rounded to the nearest, and all else is not.

    Args:
        calibration: Network to measure in.
        images: Images, each (1, C, H, W) float32, in the form of network input.
        metadata: Metadata of the artefact, which compare outputs.

    Returns:
        Change of the outputs, see `change` of the metadata, by name of the layer, worst first.
    """
    network, batch = calibration.network, torch.cat(list(images))

    def run(images: Tensor) -> list[Tensor]:
        found = network(images)
        return [found] if isinstance(found, Tensor) else list(found)

    runtime = metadata.runtime(run, path="the network in int8", device=batch.device)

    def outputs_with(name: str | None) -> Any:
        calibration.keep_([other for other in calibration.choosable if other != name])
        return runtime(batch)

    exact = outputs_with(None)
    errors = {name: metadata.change(outputs_with(name), exact) for name in calibration.choosable}
    calibration.keep_(())
    return dict(sorted(errors.items(), key=lambda item: -item[1]))
