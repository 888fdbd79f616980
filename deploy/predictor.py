"""Detection on images of any kind: letterbox, network, decoding, NMS, and boxes in pixels of the original."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias, overload

import numpy as np
import torch
from torch import Tensor

from deploy.artefact.frame import DEFAULT_IMG_SIZE, FixedFrame
from deploy.artefact.runtime import DetectorRuntime
from deploy.formats import load_detector
from deploy.pictures import Picture, as_rgb
from deploy.settings import RuntimeOptions
from engine.evaluation.predict import augmented, ensemble, predictor
from utils.boxes.boxes import unletterbox
from utils.boxes.nms import check_thresholds, non_max_suppression
from utils.boxes.torchvision_compat import compiled_nms
from utils.datasets.augmenting.letterbox import letterbox, letterbox_hw
from utils.detections.detections import Detections, class_ids_of
from utils.device import memory_advice, select_device
from utils.errors import ConfigError

logger = logging.getLogger(__name__)

# Not Sequence, since a path given as str is one.
Pictures: TypeAlias = list[Any] | tuple[Any, ...]
Array: TypeAlias = np.ndarray[Any, Any]
# Stages of a call; COMPUTING are those after reading the images.
COMPUTING = ("preprocess", "inference", "nms")
STAGES = ("read", *COMPUTING)


@dataclass(frozen=True, kw_only=True)
class PredictSettings:
    """Settings of detection.

    Attributes:
        conf: Minimum score, in [0, 1].
        iou: IoU above which the weaker of two boxes is dropped, in [0, 1].
        max_det: Maximum number of boxes per image.
        classes: Class ids or names to keep, None for all.
        agnostic_nms: Whether NMS compares boxes of different classes.
        img_size: Longer side of the letterboxed image in pixels, rounded up to a multiple of the stride. None takes
            640, or the only size of an exported network.
        augment: Whether to use test-time augmentation: three scales and a flip.
        batch_size: Maximum number of images of one shape per batch.
    """

    conf: float = 0.25
    iou: float = 0.45
    max_det: int = 300
    classes: tuple[int | str, ...] | None = None
    agnostic_nms: bool = False
    img_size: int | None = None
    augment: bool = False
    batch_size: int = 16

    def __post_init__(self) -> None:
        check_thresholds(conf=self.conf, iou=self.iou, max_det=self.max_det)
        for name in ("img_size", "batch_size"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ConfigError(f"{name}: got {value}, expected at least 1")


def _setting(name: str) -> property:
    """Build a property that reads and replaces one field of `Predictor.settings`, as YOLOv5's hub models have."""

    def get(self: Predictor) -> Any:
        return getattr(self.settings, name)

    def replace_in_settings(self: Predictor, value: Any) -> None:
        self.settings = replace(self.settings, **{name: value})

    return property(get, replace_in_settings)


class Predictor:
    """Detector with one runtime, or an ensemble of several whose boxes are pooled before NMS.

    Attributes:
        names: Class names by id.
        settings: Settings of detection; replaced as a whole, or by `conf`, `iou`, `max_det`, `classes`.
        img_size: Longer side of the letterboxed image in pixels, as used.
        seconds: Time of each of `STAGES` in the last call.

    Args:
        *runtimes: Loaded detectors.
        settings: Settings of detection; None for the defaults.
        paths: Files of the runtimes, for messages.

    Raises:
        ConfigError: No runtime, members of different classes or image sizes, or an unsupported image size.
    """

    def __init__(
        self, *runtimes: DetectorRuntime, settings: PredictSettings | None = None, paths: Sequence[str | Path] = ()
    ) -> None:
        if not runtimes:
            raise ConfigError("no weights; give at least one checkpoint")
        names = runtimes[0].names
        if any(runtime.names != names for runtime in runtimes):
            raise ConfigError(
                "the checkpoints of an ensemble have different classes; give checkpoints of one data set"
            )
        self.names = names
        self.max_stride = max(max(runtime.strides) for runtime in runtimes)
        self.seconds = dict.fromkeys(STAGES, 0.0)
        self._runtimes = runtimes
        self._frame = FixedFrame.of(runtimes, paths)
        self.settings = settings or PredictSettings()

    @property
    def settings(self) -> PredictSettings:
        """Settings of detection."""
        return self._settings

    @settings.setter
    def settings(self, settings: PredictSettings) -> None:
        wanted = settings.classes
        self._class_ids = None if wanted is None else class_ids_of(wanted, names=self.names)
        self.img_size = self._decided(settings.img_size)
        self._settings = settings if settings.img_size is None else replace(settings, img_size=self.img_size)
        members = [predictor(runtime) for runtime in self._runtimes]
        if settings.augment:
            members = [augmented(member, stride=self.max_stride) for member in members]
        self._predict = ensemble(members)

    def _decided(self, img_size: int | None) -> int:
        """Return the image size to use, rounded up to a multiple of the stride."""
        if img_size is None:
            img_size = max(self._frame.hw) if self._frame else DEFAULT_IMG_SIZE
        elif self._frame:
            self._frame.check(img_size)
        rounded = math.ceil(img_size / self.max_stride) * self.max_stride
        if rounded != img_size:
            logger.warning(
                "img_size %d is not a multiple of the stride %d; using %d", img_size, self.max_stride, rounded
            )
        return rounded

    conf = _setting("conf")
    iou = _setting("iou")
    max_det = _setting("max_det")
    classes = _setting("classes")

    @overload
    def __call__(self, pictures: Picture, *, size: int | None = None) -> Detections: ...
    @overload
    def __call__(self, pictures: Pictures, *, size: int | None = None) -> list[Detections]: ...
    def __call__(self, pictures: Picture | Pictures, *, size: int | None = None) -> Detections | list[Detections]:
        """Detect objects in one image or several, of any size.

        Args:
            pictures: Path, RGB array or PIL image (see `deploy.pictures.as_rgb`), or a list or tuple of them.
            size: New `img_size` of the settings, from this call on; None keeps it.

        Returns:
            `Detections` of one image, or a list of them in the same order for several.
        """
        if size is not None and size != self.img_size:
            self.settings = replace(self.settings, img_size=size)
        self.seconds = dict.fromkeys(STAGES, 0.0)
        if not isinstance(pictures, list | tuple):
            return self._detect([pictures])[0]
        return self._detect(pictures)

    def warm_up(self) -> None:
        """Run once on a black image, so that later times exclude loading libraries and choosing kernels."""
        compiled_nms()
        self(np.zeros((self.img_size, self.img_size, 3), np.uint8))

    def _detect(self, pictures: Sequence[Picture]) -> list[Detections]:
        with self._timed("read"):
            images = [as_rgb(picture) for picture in pictures]
        found: dict[int, Detections] = {}
        for positions, input_hw in self._batches([image for image, _ in images]):
            rows = self._rows_of([images[position][0] for position in positions], input_hw)
            for position, row in zip(positions, rows, strict=True):
                image, path = images[position]
                found[position] = Detections.from_rows(row, names=self.names, image=image, path=path)
        return [found[position] for position in range(len(images))]

    def _batches(self, images: Sequence[Array]) -> Iterator[tuple[list[int], tuple[int, int]]]:
        """Yield positions of images that share a letterboxed height and width, at most `batch_size` at a time."""
        by_hw: dict[tuple[int, int], list[int]] = {}
        for position, image in enumerate(images):
            own_hw = letterbox_hw(image.shape[:2], self.img_size, self.max_stride)
            by_hw.setdefault(self._frame.hw if self._frame else own_hw, []).append(position)
        size = self.settings.batch_size
        for input_hw, positions in by_hw.items():
            for start in range(0, len(positions), size):
                yield positions[start : start + size], input_hw

    def _rows_of(self, images: Sequence[Array], input_hw: tuple[int, int]) -> list[Array]:
        """Return, for each image, rows (n, 6) of x1, y1, x2, y2, score, class in its own pixels."""
        settings = self.settings
        with self._timed("preprocess"):
            boxed = [letterbox(image, input_hw) for image in images]
            batch = self._to_batch([image for image, _, _ in boxed])
        advice = f"lower --img-size (now {self.img_size}), or in Python img_size or batch_size"
        with self._timed("inference"), memory_advice(advice):
            decoded = self._predict(batch)
        with self._timed("nms"):
            kept = non_max_suppression(
                decoded,
                conf=settings.conf,
                iou=settings.iou,
                max_det=settings.max_det,
                agnostic=settings.agnostic_nms,
                classes=self._class_ids,
            )
            rows = [row.cpu().numpy() for row in kept]
            for row, image, (_, scale, padding) in zip(rows, images, boxed, strict=True):
                row[:, :4] = unletterbox(
                    row[:, :4], scale=scale, padding=padding, original_hw=(image.shape[0], image.shape[1])
                )
        return rows

    def _to_batch(self, images: Sequence[Array]) -> Tensor:
        """Stack images (H, W, 3) uint8 to (B, 3, H, W) float in [0, 1]; sends bytes and converts on the device."""
        device = self._runtimes[0].device
        stacked = torch.from_numpy(np.stack(images)).to(device)
        return stacked.permute(0, 3, 1, 2).float() / 255

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        for runtime in self._runtimes:
            if runtime.device.type == "cuda":
                torch.cuda.synchronize(runtime.device)
        self.seconds[stage] += time.perf_counter() - start


def load(
    weights: str | Path | Collection[str | Path],
    *,
    device: str = "",
    half: bool = False,
    threads: int | None = None,
    powersave: int = 0,
    **settings: Any,
) -> Predictor:
    """Load one checkpoint or exported artefact, or several as an ensemble.

    Args:
        weights: Path of the checkpoint or artefact, or a collection of paths.
        device: Device, such as "cpu" or "0"; "" takes a GPU if there is one.
        half: Whether to compute in 16 bits if the device supports it.
        threads: Number of threads, as in `RuntimeOptions`.
        powersave: Cores that ncnn uses, as in `RuntimeOptions`.
        **settings: Fields of `PredictSettings`, such as `conf=0.4`.

    Raises:
        CheckpointError: A file is missing or damaged.
        ConfigError: An unsupported format, a setting out of range, or an image size that an artefact does not take.
    """
    paths = [weights] if isinstance(weights, str | Path) else list(weights)
    chosen_settings = PredictSettings(**settings)
    chosen_device = select_device(device)
    options = RuntimeOptions(half=half, threads=threads, powersave=powersave)
    runtimes = [load_detector(path, device=chosen_device, options=options) for path in paths]
    return Predictor(*runtimes, settings=chosen_settings, paths=paths)
