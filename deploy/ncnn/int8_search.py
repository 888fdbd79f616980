"""Which few convolutions to leave in floating point so that int8 costs little mAP."""

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
from deploy.runtime import RuntimeOptions
from utils.errors import ConfigError

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Int8SearchSettings:
    """When the search ends.

    Attributes:
        tolerance: mAP that int8 may cost.
        max_skips: Most convolutions that may stay in floating point.
        num_images: Calibration images on which layers are compared.
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
    """One int8 network that was measured.

    Attributes:
        skip: Names of the convolutions left in floating point beside those that the settings already leave.
        map: Its mAP.
        drop: What it lost against fp32; negative where it gained.
    """

    skip: tuple[str, ...]
    map: float
    drop: float


@dataclass(frozen=True, kw_only=True)
class Int8Search:
    """What the search found.

    Attributes:
        settings: Those given, with the layers that were found: `export_ncnn` takes them.
        best: The network of the least drop; the last one if that is within the tolerance.
        is_within: Whether it is within the tolerance.
        trials: All networks measured, in order.
        errors: Of each convolution that could be int8, the worst first, see `int8_errors`; empty if int8 cost so
            little that nothing was searched.
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
    """Leave the worst convolutions in floating point, one more at a time, until the mAP is good enough.

    Args:
        folder: An fp32 ncnn export.
        images: For calibration, as `deploy.ncnn.int8.calibrate` takes them.
        map_of: From an exported folder to its mAP.
        int8: What is settled: how ranges are chosen, and what stays in floating point in any case.
        search: When to end.

    Returns:
        The same for the same arguments.

    Raises:
        ConfigError: There are no images, or a pattern that fits no layer.
        CheckpointError: The folder is no fp32 export.
    """
    int8, search = int8 or Int8Settings(), search or Int8SearchSettings()
    settled = int8.skipped(read_param(folder / PARAM_NAME))
    source = calibrate(folder, images=images, method=int8.method)
    measured = partial(_measured, source, settled=settled, map_of=map_of, reference=map_of(folder))
    trials, errors = [measured(())], dict[str, float]()
    if trials[0].drop > search.tolerance:
        # Ranking takes a while, and most networks need none.
        errors = int8_errors(source, images=images[: search.num_images], settled=settled)
    for count in range(1, min(search.max_skips, len(errors)) + 1):
        trials.append(measured(tuple(errors)[:count]))
        if trials[-1].drop <= search.tolerance:
            break
    best = min(trials, key=lambda trial: trial.drop)
    if best.drop > search.tolerance:
        logger.warning("int8 costs %.4f mAP with %d layers skipped, more than asked", best.drop, len(best.skip))
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
    """The mAP with all convolutions but these and the settled ones in int8."""
    with tempfile.TemporaryDirectory(suffix=FORMAT) as scratch:
        write_int8(source, Path(scratch), skip={*settled, *skip})
        found = map_of(Path(scratch))
    logger.info("int8 with %d more layers skipped: mAP %.4f, fp32 %.4f", len(skip), found, reference)
    return Int8Trial(skip=skip, map=found, drop=reference - found)


def int8_errors(source: Calibrated, *, images: Sequence[Tensor], settled: Collection[str] = ()) -> dict[str, float]:
    """What each convolution alone in int8, all else in floating point, changes at the heads.

    Args:
        source: The fp32 network.
        images: Each (1, 3, H, W) float32, RGB in [0, 1].
        settled: Names of convolutions that are not asked about.

    Returns:
        By name, the worst first: `head_change`, averaged over the heads.
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
    """How much a raw head differs where there are objects.

    Nearly all cells are background, with large negative numbers that mean nothing but no. So numbers are compared
    behind the sigmoid, and each cell counts as much as its exact objectness.

    Args:
        head: (B, A, H, W, 5 + nc), before the sigmoid.
        exact: The same from the fp32 network.

    Returns:
        Mean absolute difference over all outputs, in [0, 1].
    """
    found, wanted = head.sigmoid(), exact.sigmoid()
    weights = wanted[..., 4]
    return float(((found - wanted).abs().mean(-1) * weights).sum() / weights.sum())


def _heads(folder: Path, images: Tensor) -> list[Tensor]:
    return load_ncnn(folder, device=torch.device("cpu"), options=RuntimeOptions())(images)
