"""A predictor and a data set, evaluated at one image size or another."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass

import torch

from engine.evaluate import EvalSettings, Evaluation, OnBatch, evaluate
from engine.predict import Predict
from utils.datasets.dataset import DetectionDataset
from utils.datasets.index import LabelIndex
from utils.datasets.loader import build_loader
from utils.device import memory_advice
from utils.hyp import Hyp

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class EvalSession:
    """Everything of an evaluation but the image size.

    Attributes:
        predict: Already on `device`.
        index: The data set.
        settings: How to evaluate.
        device: Where to compute.
        stride: Image sizes are rounded up to a multiple of it.
        batch_size: Images per step.
        workers: Processes that load images.
        rect: Pad each image only to its own least multiple of the stride, not to a square.
        frame_hw: The one height and width the predictor takes, whatever image size is asked for; None for any.
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
        # Nothing is augmented, so any hyper-parameters will do.
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
    """The least multiple of the stride that is not smaller; says so when it differs."""
    rounded = math.ceil(img_size / stride) * stride
    if rounded != img_size:
        logger.warning("image size %d is no multiple of the stride %d; using %d", img_size, stride, rounded)
    return rounded
