"""The images of a split for the evaluation of detectors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from engine.evaluation.detection_scores import Array, DetectionScorer, EvalSettings
from engine.evaluation.evaluator import StageClock
from engine.evaluation.predict import Predict, augmented, ensemble, predictor
from engine.training.sync_bn import plain_batch_norms_
from models.detector import Detector
from models.fuse import fuse
from utils.boxes.boxes import unletterbox, xyxy_to_cxcywh
from utils.config.hyp import Hyp
from utils.config.values import round_up
from utils.datasets.indexing.index import LabelIndex
from utils.datasets.loading.batch import Batch
from utils.datasets.loading.dataset import DetectionDataset
from utils.datasets.loading.loader import Loader, build_loader
from utils.datasets.spread import spread
from utils.detections.output_names import OutputNames
from utils.plots.batches import plot_labels, plot_predictions
from utils.storage.files import write_text

NUM_SAMPLE_BATCHES = 3


@dataclass(frozen=True, kw_only=True)
class DetectionSet:
    """The images and true boxes of a split, for `Evaluator`.

    Attributes:
        index: Images and true boxes.
        img_size: Longer side of an image in pixels, rounded up to a multiple of the network's stride.
        settings: Thresholds and other settings.
        batch_size: Images per step.
        workers: Number of processes that load images.
        is_cached: Whether to keep decoded images in memory.
        frame_hw: The only height and width to letterbox images to; None leaves it to the network.
    """

    index: LabelIndex
    img_size: int
    settings: EvalSettings = EvalSettings()  # noqa: RUF009 - immutable
    batch_size: int = 32
    workers: int = 8
    is_cached: bool = False
    frame_hw: tuple[int, int] | None = None
    _loaders: dict[tuple[int, tuple[int, int] | None], Loader] = field(default_factory=dict, compare=False)

    def at(self, img_size: int) -> DetectionSet:
        """Return the same images at another size."""
        return replace(self, img_size=img_size, _loaders={})

    def few(self, count: int) -> DetectionSet:
        """Return so many of the images, evenly spread; all where there are fewer, and for a count of 0."""
        if not count:
            return self
        index = self.index.select(spread(range(len(self.index)), count))
        return replace(self, index=index, _loaders={})

    def framed(self, frame_hw: tuple[int, int] | None) -> DetectionSet:
        """Return the same images letterboxed to one height and width; None leaves the size to the network."""
        return replace(self, frame_hw=frame_hw, _loaders={})

    @property
    def is_labelled(self) -> bool:
        """Whether there is a true box."""
        return bool(self.index.num_boxes)

    @property
    def advice(self) -> str:
        """Return the remedy if memory does not suffice."""
        return (
            f"lower --batch-size (now {self.batch_size}), --img-size (now {self.img_size}) "
            f"or --workers (now {self.workers})"
        )

    def start(self, network: Any, device: torch.device) -> None:
        """Start the processes that load images for a detector."""
        self.batches(network, device).start_workers()

    def batches(self, network: Any, device: torch.device) -> Loader:
        """Return the batches in the stride, and in the only size, of a detector; its loader is kept for later."""
        members = _members(network)
        stride = max(max(member.strides) for member in members)
        frames = {member.input_hw for member in members if getattr(member, "input_hw", None)}
        frame_hw = frames.pop() if frames else self.frame_hw
        if (stride, frame_hw) not in self._loaders:
            dataset = DetectionDataset(
                self.index,
                img_size=round_up(max(frame_hw or (self.img_size,)), stride),
                hyp=Hyp(),  # without augmentation the hyper-parameters have no effect
                rect=self.settings.rect,
                frame_hw=frame_hw,
                stride=stride,
                cache_images=self.is_cached,
            )
            self._loaders[stride, frame_hw] = build_loader(
                dataset,
                batch_size=self.batch_size,
                workers=self.workers,
                shuffle=False,
                pin_memory=device.type == "cuda",
            )
        return self._loaders[stride, frame_hw]

    def predictor(self, network: Any, device: torch.device) -> Predict:
        """Return the function from images to decoded boxes; a `Detector` is copied with its batch norms folded."""
        members = [_ready(member, device) for member in _members(network)]
        predict = ensemble([predictor(member) for member in members])
        stride = max(max(member.strides) for member in members)
        return augmented(predict, stride) if self.settings.augment else predict

    def scorer(self, clock: StageClock) -> DetectionScorer:
        """Return a scorer that has seen nothing yet."""
        return DetectionScorer(self.index, self.settings, clock)


def _members(network: Any) -> Sequence[Any]:
    return network if isinstance(network, list | tuple) else (network,)


def _ready(network: Any, device: torch.device) -> Any:
    """Return a runtime as it is, and a detector fused, in channels-last memory format, on the device."""
    if not isinstance(network, Detector):
        return network
    fused = fuse(network).to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    plain_batch_norms_(fused)
    return _ChannelsLast(fused)


class _ChannelsLast(nn.Module):
    """A detector that converts its images to its memory format."""

    def __init__(self, model: Detector) -> None:
        super().__init__()
        self.model, self.anchors, self.strides = model, model.anchors, model.strides

    def forward(self, images: Tensor) -> list[Tensor]:
        heads: list[Tensor] = self.model(images.contiguous(memory_format=torch.channels_last))
        return heads


@dataclass(frozen=True, kw_only=True)
class SamplePictures:
    """Draws val_batchN_labels.jpg and val_batchN_pred.jpg for the first three batches, as an `on_batch`."""

    folder: Path
    names: Sequence[str]

    def __call__(self, step: int, batch: Batch, boxes: Sequence[Array]) -> None:
        if step < NUM_SAMPLE_BATCHES:
            plot_labels(batch, self.folder / f"val_batch{step}_labels.jpg", names=self.names)
            plot_predictions(batch, boxes, self.folder / f"val_batch{step}_pred.jpg", names=self.names)


@dataclass(frozen=True, kw_only=True)
class LabelFiles:
    """Writes a txt file per image, as an `on_batch`: class, normalised cx, cy, w, h, and optionally the score.

    Attributes:
        folder: Run folder; the files are written to its `labels`.
        names: Output names of all images of the data set.
        with_score: Whether to add the score to each line.
    """

    folder: Path
    names: OutputNames
    with_score: bool = False

    def __call__(self, step: int, batch: Batch, boxes: Sequence[Array]) -> None:
        for info, own in zip(batch.infos, boxes, strict=True):
            height, width = info.original_hw
            xyxy = unletterbox(own[:, :4], scale=info.scale, padding=info.padding, original_hw=info.original_hw)
            cxcywh = xyxy_to_cxcywh(xyxy) / np.array([width, height, width, height])
            lines = [
                " ".join(
                    [f"{row[5]:.0f}", *(f"{value:.6g}" for value in place)] + [f"{row[4]:.5g}"] * self.with_score
                )
                for place, row in zip(cxcywh, own, strict=True)
            ]
            write_text(self.folder / self.names.label(info.path), "".join(line + "\n" for line in lines))
