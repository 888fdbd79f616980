"""Search for the few convolutions to keep in floating point so that int8 costs little mAP."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from deploy.ncnn.int8 import Calibrated, Int8Settings, calibrate, write_int8
from deploy.ncnn.param import read_param
from deploy.ncnn.runtime import FORMAT, PARAM_NAME, load_ncnn
from deploy.settings import RuntimeOptions
from utils.errors import ConfigError

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Int8SearchSettings:
    """Settings that end the search.

    Attributes:
        tolerance: Loss of mAP that int8 may cost.
        max_skips: Maximum number of convolutions to keep in floating point.
        num_images: Number of calibration images on which layers are compared.
    """

    tolerance: float = 0.01
    max_skips: int = 8
    num_images: int = 4

    def __post_init__(self) -> None:
        for name, least in (("tolerance", 0), ("max_skips", 0), ("num_images", 1)):
            if getattr(self, name) < least:
                raise ConfigError(f"int8 search: {name} is {getattr(self, name)}, expected at least {least}")


@dataclass(frozen=True, kw_only=True)
class Int8Trial:
    """An int8 network that the search measured.

    Attributes:
        skip: Names of the convolutions kept in floating point in addition to those of the settings.
        map: mAP of the network.
        drop: Loss of mAP against fp32; negative for a gain.
    """

    skip: tuple[str, ...]
    map: float
    drop: float


@dataclass(frozen=True, kw_only=True)
class Int8Search:
    """Result of the search.

    Attributes:
        settings: Settings for `export_ncnn`: those given, with the layers found.
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
    map_of: Callable[[Path], float],
    int8: Int8Settings | None = None,
    search: Int8SearchSettings | None = None,
) -> Int8Search:
    """Keep the worst convolutions in floating point, one more at a time, until the mAP is good enough.

    The search is deterministic.

    Args:
        folder: Folder of an fp32 ncnn export.
        images: Calibration images, as for `deploy.ncnn.int8.calibrate`.
        map_of: Function from an exported folder to its mAP.
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
    measured = partial(_measured, source, settled=settled, map_of=map_of, reference=map_of(folder))
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
        logger.warning("int8 loses %.4f mAP with %d layers skipped, more than allowed", best.drop, len(best.skip))
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
    map_of: Callable[[Path], float],
    reference: float,
) -> Int8Trial:
    """Measure the mAP with all convolutions in int8 except `skip` and `settled`."""
    with tempfile.TemporaryDirectory(suffix=FORMAT) as scratch:
        write_int8(source, Path(scratch), skip={*settled, *skip})
        found = map_of(Path(scratch))
    logger.info("int8 with %d more layers skipped: mAP %.4f, fp32 %.4f", len(skip), found, reference)
    return Int8Trial(skip=skip, map=found, drop=reference - found)


def int8_errors(source: Calibrated, *, images: Sequence[Tensor], settled: Collection[str] = ()) -> dict[str, float]:
    """Measure how the heads change when a single convolution is in int8 and all else in floating point.

    Args:
        source: Calibrated fp32 network.
        images: Images, each (1, 3, H, W) float32, RGB in [0, 1].
        settled: Names of convolutions to leave out.

    Returns:
        `head_change` averaged over the heads, by name of the convolution, worst first.
    """
    batch = torch.cat(list(images))
    expected = _heads(source.folder, batch)
    errors: dict[str, float] = {}
    for name in (name for name in source.convolutions if name not in settled):
        with tempfile.TemporaryDirectory(suffix=FORMAT) as scratch:
            write_int8(source, Path(scratch), skip=[other for other in source.convolutions if other != name])
            heads = _heads(Path(scratch), batch)
        changes = [head_change(head, exact) for head, exact in zip(heads, expected, strict=True)]
        errors[name] = sum(changes) / len(changes)
    return dict(sorted(errors.items(), key=lambda item: -item[1]))


def head_change(head: Tensor, exact: Tensor) -> float:
    """Measure how much a raw head differs where there are objects.

    Nearly all cells are background, with large negative values whose exact size is irrelevant. So values are compared
    after the sigmoid, and each cell is weighted by its exact objectness.

    Args:
        head: Raw head (B, A, H, W, 5 + nc), before the sigmoid.
        exact: Raw head of the fp32 network, of the same shape.

    Returns:
        Mean absolute difference over all outputs, in [0, 1].
    """
    found, wanted = head.sigmoid(), exact.sigmoid()
    weights = wanted[..., 4]
    return float(((found - wanted).abs().mean(-1) * weights).sum() / weights.sum())


def _heads(folder: Path, images: Tensor) -> list[Tensor]:
    return load_ncnn(folder, device=torch.device("cpu"), options=RuntimeOptions())(images)
