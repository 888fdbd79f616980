"""Frame after frame through a detector: write, show, log and sum up."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from deploy.predictor import COMPUTING, STAGES, Predictor
from utils.detection_files import DetectionWriter, WriteOptions
from utils.detections import Detections
from utils.output_names import OutputNames
from utils.sources import Frame, LiveSource, Source
from utils.window import show

logger = logging.getLogger(__name__)

Draw: TypeAlias = Callable[[Detections], np.ndarray[Any, Any]]


@dataclass(frozen=True, kw_only=True)
class DetectResult:
    """What a run did; its result.json holds the same.

    Attributes:
        folder: The run folder.
        images: Pictures and frames looked at.
        skipped: Files that could not be read.
        detections: Boxes per class name.
        seconds: Spent in each stage.
        ms_per_image: Preprocessing, inference and NMS together.
    """

    folder: Path
    images: int
    skipped: int
    detections: dict[str, int]
    seconds: dict[str, float]
    ms_per_image: float


@dataclass(kw_only=True)
class _Tally:
    """Sums over the frames of a run."""

    images: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys((*STAGES, "write"), 0.0))


def run_detection(
    source: Source,
    *,
    model: Predictor,
    folder: Path,
    options: WriteOptions,
    draw: Draw = Detections.draw,
    view: bool = False,
) -> DetectResult:
    """Detect in every frame until the source or the user ends it.

    Args:
        source: See `utils.sources.open_source`.
        model: The detector.
        folder: Where to write.
        options: What to write.
        draw: From detections to the picture that is written and shown.
        view: Show each picture; q or Escape ends the run.

    Raises:
        DataError: The source gives no picture at all.
    """
    tally = _Tally()
    with DetectionWriter(folder, options, OutputNames(source.inputs)) as writer:
        try:
            for frame, found in _detected(source, model=model, tally=tally):
                start = time.perf_counter()
                drawn = draw(found) if options.pictures or view else None
                writer.write(frame, found, drawn)
                tally.seconds["write"] += time.perf_counter() - start
                if view and drawn is not None and not show(drawn, frame.name, is_still=frame.kind == "image"):
                    break
        except KeyboardInterrupt:
            # The usual end of a camera; anything that has an end of its own was cut short.
            if not isinstance(source, LiveSource):
                raise
            logger.info("stopped by the user")
    result = _result(tally, folder=folder, skipped=source.skipped)
    _log_result(result)
    return result


def _detected(source: Source, *, model: Predictor, tally: _Tally) -> Iterator[tuple[Frame, Detections]]:
    """Each frame with what is in it, logged and added to the tally."""
    start = time.perf_counter()
    for frame in source:
        tally.seconds["read"] += time.perf_counter() - start
        found = replace(model(frame.image), path=frame.name)
        tally.images += 1
        tally.counts.update(found.counts())
        for stage in COMPUTING:
            tally.seconds[stage] += model.seconds[stage]
        _log_frame(frame, found, 1000 * sum(model.seconds[stage] for stage in COMPUTING))
        yield frame, found
        start = time.perf_counter()


def _log_frame(frame: Frame, found: Detections, milliseconds: float) -> None:
    height, width = found.image_hw
    place = f"{frame.index + 1}/{frame.count}" if frame.count else f"{frame.index + 1}"
    logger.info("%s %s: %dx%d %s, %.1f ms", place, frame.name, width, height, found, milliseconds)


def _result(tally: _Tally, *, folder: Path, skipped: int) -> DetectResult:
    computing = sum(tally.seconds[stage] for stage in COMPUTING)
    return DetectResult(
        folder=folder,
        images=tally.images,
        skipped=skipped,
        detections=dict(tally.counts),
        seconds={stage: round(value, 4) for stage, value in tally.seconds.items()},
        ms_per_image=round(1000 * computing / max(tally.images, 1), 2),
    )


def _log_result(result: DetectResult) -> None:
    found = ", ".join(f"{count} {name}" for name, count in result.detections.items()) or "no detections"
    skipped = f" ({result.skipped} files skipped)" if result.skipped else ""
    logger.info("images: %d%s, found: %s", result.images, skipped, found)
    per_image = (f"{stage} {1000 * value / max(result.images, 1):.1f}" for stage, value in result.seconds.items())
    logger.info("ms per image: %s", ", ".join(per_image))
