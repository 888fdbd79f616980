"""Detect objects in every frame of a source: write, show, log and sum up."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import cv2
import numpy as np

from commands.detect_config import DetectConfig
from deploy.predictor import COMPUTING, STAGES, Predictor, load
from utils.detections.detections import Detections
from utils.detections.files import DetectionWriter, WriteOptions
from utils.detections.output_names import OutputNames
from utils.errors import ConfigError
from utils.sources import Frame, LiveSource, Source, open_source
from utils.storage.run_folder import RunFolder, plain

_STOP_KEYS = {ord("q"), 27}


def check_window_system() -> None:
    """Make sure that windows can be opened, before any work is done.

    Raises:
        ConfigError: OpenCV was built without windows, or there is no display.
    """
    gui = next((line for line in cv2.getBuildInformation().splitlines() if line.strip().startswith("GUI:")), "")
    if "NONE" in gui:
        raise ConfigError(
            "--view-img: opencv-python-headless opens no windows; run "
            "pip uninstall -y opencv-python-headless && pip install opencv-python"
        )
    if sys.platform == "linux" and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        raise ConfigError("--view-img: there is no display; leave it out and look at the run folder's images")


def show(image: np.ndarray[Any, Any], title: str, *, is_still: bool) -> bool:
    """Show an (H, W, 3) uint8 RGB image; False when the user pressed q or Escape.

    Args:
        image: The image.
        title: Title of the window; one window per title.
        is_still: Wait for a key, instead of going on after a millisecond.
    """
    cv2.imshow(title, cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    return (cv2.waitKey(0 if is_still else 1) & 0xFF) not in _STOP_KEYS


logger = logging.getLogger(__name__)


def detect(config: DetectConfig) -> DetectResult:
    """Look at every frame of the source and write what was found to a new run folder.

    Raises:
        UserError: Weights, source or settings cannot be used; nothing has been written then.
    """
    if config.view_img:
        check_window_system()
    model = load(
        config.weights,
        device=config.device,
        half=config.half,
        threads=config.threads,
        powersave=config.powersave,
        conf=config.conf_thres,
        iou=config.iou_thres,
        max_det=config.max_det,
        classes=config.classes,
        agnostic_nms=config.agnostic_nms,
        img_size=config.img_size,
        augment=config.augment,
    )
    source = open_source(config.source)
    model.warm_up()
    run = RunFolder.begin(config)
    logger.info("run folder: %s", run.path)
    options = WriteOptions(
        pictures=not config.nosave,
        txt=config.save_txt,
        conf=config.save_conf,
        crops=config.save_crop,
        json=config.save_json,
    )
    draw = partial(
        Detections.draw,
        hide_labels=config.hide_labels,
        hide_conf=config.hide_conf,
        line_thickness=config.line_thickness,
    )
    result = run_detection(source, model=model, folder=run.path, options=options, draw=draw, view=config.view_img)
    run.write_result(plain(result))
    logger.info("results: %s", run.path)
    return result


Draw: TypeAlias = Callable[[Detections], np.ndarray[Any, Any]]


@dataclass(frozen=True, kw_only=True)
class DetectResult:
    """Summary of a run; its result.json contains the same.

    Attributes:
        folder: The run folder.
        images: Images and frames looked at.
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
        options: Files to write.
        draw: From detections to the image that is written and shown.
        view: Show each image; q or Escape ends the run.

    Raises:
        DataError: The source gives no image at all.
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
