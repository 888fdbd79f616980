"""Evaluation of several networks on the same data, such as one before and after pruning."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from engine.evaluation.evaluate import EvalSettings, Evaluation
from engine.evaluation.predict import Predict, predictor
from engine.evaluation.session import EvalSession
from models.detector import Detector
from models.fuse import fuse
from utils.datasets.indexing.config import load_data_config
from utils.datasets.indexing.index import LabelIndex, build_label_index
from utils.errors import ConfigError, DataError


@dataclass(frozen=True, kw_only=True)
class Measure:
    """Evaluates detectors on one split.

    Attributes:
        index: Images and true boxes of the split.
        img_size: Longer side of an image in pixels.
        batch_size: Images per step.
        device: Device to compute on.
        workers: Number of processes that load images.
    """

    index: LabelIndex
    img_size: int
    batch_size: int
    device: torch.device
    workers: int

    @classmethod
    def on_split(
        cls,
        data: str,
        split: str,
        *,
        names: Sequence[str] = (),
        img_size: int,
        batch_size: int,
        device: torch.device,
        workers: int,
    ) -> Measure:
        """Read the data set YAML and index one of its splits.

        Args:
            data: Path of the data set YAML.
            split: "train", "val" or "test".
            names: Class names of the networks, in whose order the index puts its own; empty keeps the data's order.
            img_size, batch_size, device, workers: As in the class.

        Raises:
            ConfigError: The networks have other classes than the data.
            DataError: The split has no boxes, so nothing can be measured.
        """
        config = load_data_config(data)
        if names:
            config = config.in_order_of(names, weights="the network")
        index = build_label_index(config, split, workers=workers)
        if not index.num_boxes:
            raise DataError(f"{data}: {split} has no boxes, so nothing can be measured on it; give labelled data")
        return cls(index=index, img_size=img_size, batch_size=batch_size, device=device, workers=workers)

    def __call__(self, model: Detector) -> Evaluation:
        """Evaluate a network in float32, without changing it.

        Raises:
            ConfigError: The network has another number of classes than the data.
        """
        self.check_classes(model)
        return self.evaluate(ready_predictor(model, self.device), stride=model.max_stride, channels_last=True)

    def check_classes(self, model: Detector) -> None:
        """Refuse a network whose number of classes differs from the data's.

        Raises:
            ConfigError: The numbers differ.
        """
        if model.spec.num_classes != len(self.index.names):
            raise ConfigError(
                f"the network has {model.spec.num_classes} classes but the data has {len(self.index.names)}; "
                "use the data it was trained on"
            )

    def evaluate(
        self,
        predict: Predict,
        *,
        stride: int,
        frame_hw: tuple[int, int] | None = None,
        channels_last: bool = False,
    ) -> Evaluation:
        """Evaluate a predictor at v5.0's thresholds.

        Args:
            predict: Predictor, on the device.
            stride: Pixels to a multiple of which images are padded.
            frame_hw: The only height and width that the predictor takes, None for any.
            channels_last: Whether images are in channels-last memory format.
        """
        session = EvalSession(
            predict=predict,
            index=self.index,
            settings=EvalSettings(channels_last=channels_last),
            device=self.device,
            stride=stride,
            batch_size=self.batch_size,
            workers=self.workers,
            frame_hw=frame_hw,
        )
        return session.evaluate_at(self.img_size)


def ready_predictor(model: Detector, device: torch.device) -> Predict:
    """Build a predictor from a fused, channels-last copy of a network on a device, in evaluation mode."""
    return predictor(fuse(model).to(device=device, memory_format=torch.channels_last))  # type: ignore[call-overload]
