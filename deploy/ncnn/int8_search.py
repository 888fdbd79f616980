"""Search for the few convolutions to keep in floating point so that int8 costs little mAP or accuracy."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deploy.ncnn.int8 import Calibrated, Int8Settings, calibrate, write_int8
from deploy.ncnn.param import read_param
from deploy.ncnn.runtime import FORMAT, PARAM_NAME, load_ncnn
from deploy.outputs.metadata import folder_metadata
from deploy.settings import RuntimeOptions
from utils.errors import ConfigError

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Int8SearchSettings:
    """Settings that end the search.

    Attributes:
        tolerance: Loss of the metric that int8 may cost.
        max_skips: Maximum number of convolutions to keep in floating point.
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
        skip: Names of the convolutions kept in floating point in addition to those of the settings.
        value: Metric of the network.
        drop: Loss against fp32; negative for a gain.
    """

    skip: tuple[str, ...]
    value: float
    drop: float


@dataclass(frozen=True, kw_only=True)
class Int8Search:
    """Result of the search.

    Attributes:
        settings: Settings for `write_ncnn`: those given, with the layers found.
        best: Network with the smallest drop; the last one if its drop is within the tolerance.
        is_within: True if the drop of `best` is within the tolerance.
        trials: All networks measured, in order.
        errors: Errors of each convolution that could be int8, worst first, see `int8_errors`; empty if int8 cost so
            little that no search was needed.
    """

    settings: Int8Settings
    best: Int8Trial
    is_within: bool
    trials: tuple[Int8Trial, ...]
    errors: Mapping[str, float]


def search_int8_skips(
    folder: Path,
    *,
    images: Sequence[Tensor],
    metric_of: Callable[[Path], float],
    int8: Int8Settings | None = None,
    search: Int8SearchSettings | None = None,
) -> Int8Search:
    """Keep the worst convolutions in floating point, one more at a time, until the metric is good enough.

    The search is deterministic.

    Args:
        folder: Folder of an fp32 ncnn export.
        images: Calibration images, as for `deploy.ncnn.int8.calibrate`.
        metric_of: Function from an exported folder to its mAP or accuracy.
        int8: Fixed settings: how ranges are chosen, and layers to keep in floating point in any case.
        search: Settings that end the search.

    Returns:
        Networks measured, and the best of them.

    Raises:
        ConfigError: There are no images, or a pattern matches no layer.
        CheckpointError: The folder is not an fp32 export.
    """
    int8, search = int8 or Int8Settings(), search or Int8SearchSettings()
    settled = int8.skipped(read_param(folder / PARAM_NAME))
    source = calibrate(folder, images=images, method=int8.method)
    measured = partial(
        _measured,
        source,
        settled=settled,
        metric_of=metric_of,
        reference=metric_of(folder),
        metric=search.metric,
    )
    trials, errors = [measured(())], dict[str, float]()
    if trials[0].drop > search.tolerance:
        # Ranking takes a while, and most networks do not need it.
        errors = int8_errors(source, images=images[: search.num_images], settled=settled)
    for count in range(1, min(search.max_skips, len(errors)) + 1):
        trials.append(measured(tuple(errors)[:count]))
        if trials[-1].drop <= search.tolerance:
            break
    best = min(trials, key=lambda trial: trial.drop)
    if best.drop > search.tolerance:
        logger.warning(
            "int8 loses %.4f %s with %d layers skipped, more than allowed", best.drop, search.metric, len(best.skip)
        )
    return Int8Search(
        settings=replace(int8, skip=(*int8.skip, *best.skip)),
        best=best,
        is_within=best.drop <= search.tolerance,
        trials=tuple(trials),
        errors=errors,
    )


def _measured(
    source: Calibrated,
    skip: tuple[str, ...],
    *,
    settled: Collection[str],
    metric_of: Callable[[Path], float],
    reference: float,
    metric: str,
) -> Int8Trial:
    """Measure the metric with all convolutions in int8 except `skip` and `settled`."""
    with tempfile.TemporaryDirectory(suffix=FORMAT) as scratch:
        write_int8(source, Path(scratch), skip={*settled, *skip})
        found = metric_of(Path(scratch))
    logger.info("int8 with %d more layers skipped: %s %.4f, fp32 %.4f", len(skip), metric, found, reference)
    return Int8Trial(skip=skip, value=found, drop=reference - found)


def int8_errors(source: Calibrated, *, images: Sequence[Tensor], settled: Collection[str] = ()) -> dict[str, float]:
    """Measure how the outputs change when a single convolution is in int8 and all else in floating point.

    Args:
        source: Calibrated fp32 network.
        images: Images, each (1, C, H, W) float32, in the form of network input.
        settled: Names of convolutions to leave out.

    Returns:
        Change of the outputs, see `change` of the metadata, by name of the convolution, worst first.
    """
    batch, metadata = torch.cat(list(images)), folder_metadata(source.folder)
    expected = _outputs(source.folder, batch)
    errors: dict[str, float] = {}
    for name in (name for name in source.convolutions if name not in settled):
        with tempfile.TemporaryDirectory(suffix=FORMAT) as scratch:
            write_int8(source, Path(scratch), skip=[other for other in source.convolutions if other != name])
            errors[name] = metadata.change(_outputs(Path(scratch), batch), expected)
    return dict(sorted(errors.items(), key=lambda item: -item[1]))


def _outputs(folder: Path, images: Tensor) -> Any:
    return load_ncnn(folder, device=torch.device("cpu"), options=RuntimeOptions())(images)
