"""Evaluation of one predictor on one data set, at any image size."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass

import torch

from engine.evaluation.evaluate import EvalSettings, Evaluation, OnBatch, evaluate
from engine.evaluation.predict import Predict
from utils.config.hyp import Hyp
from utils.datasets.indexing.index import LabelIndex
from utils.datasets.loading.dataset import DetectionDataset
from utils.datasets.loading.loader import build_loader
from utils.device import memory_advice

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class EvalSession:
    """All inputs of an evaluation except the image size.

    Attributes:
        predict: Predictor, on `device`.
        index: Images and true boxes of the data set.
        settings: Thresholds and other settings.
        device: Device to compute on.
        stride: Pixels to a multiple of which image sizes are rounded up.
        batch_size: Images per step.
        workers: Number of processes that load images.
        rect: Whether to pad each image only to the next multiple of the stride, not to a square.
        frame_hw: The only height and width that the predictor takes, whatever image size is requested; None for any.
    """

    predict: Predict
    index: LabelIndex
    settings: EvalSettings
    device: torch.device
    stride: int
    batch_size: int = 32
    workers: int = 8
    rect: bool = True
    frame_hw: tuple[int, int] | None = None

    def evaluate_at(self, img_size: int, *, on_batch: OnBatch | None = None) -> Evaluation:
        """Evaluate with the longer side of each image at `img_size` pixels."""
        # Without augmentation the hyper-parameters have no effect.
        dataset = DetectionDataset(
            self.index,
            img_size=round_up(max(self.frame_hw or (img_size,)), self.stride),
            hyp=Hyp(),
            rect=self.rect,
            frame_hw=self.frame_hw,
            stride=self.stride,
        )
        loader = build_loader(dataset, batch_size=self.batch_size, workers=self.workers, shuffle=False)
        advice = f"lower --batch-size (now {self.batch_size}), --img-size (now {img_size})"
        advice += f" or --workers (now {self.workers})"
        with memory_advice(advice):
            return evaluate(
                self.predict, loader, self.index, settings=self.settings, device=self.device, on_batch=on_batch
            )


def round_up(img_size: int, stride: int) -> int:
    """Round an image size up to a multiple of the stride, with a warning if that changes it."""
    rounded = math.ceil(img_size / stride) * stride
    if rounded != img_size:
        logger.warning("image size %d is not a multiple of the stride %d; using %d", img_size, stride, rounded)
    return rounded
