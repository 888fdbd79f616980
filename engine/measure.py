"""Networks measured one after another on the same data: before and after a cut, over many cuts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from engine.eval_session import EvalSession
from engine.evaluate import EvalSettings, Evaluation
from engine.predict import Predict, predictor
from models.detector import Detector
from models.fuse import fuse
from utils.datasets.config import load_data_config
from utils.datasets.index import LabelIndex, build_label_index
from utils.errors import ConfigError, DataError


@dataclass(frozen=True, kw_only=True)
class Measure:
    """Evaluates detectors on one split.

    Attributes:
        index: The split.
        img_size: Longer side of an image in pixels.
        batch_size: Images per step.
        device: Where to compute.
        workers: Processes that load images.
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
            data: Data set YAML.
            split: "train", "val" or "test".
            names: Classes of the networks that are measured, whose order the index takes over; none keeps its own.
            img_size, batch_size, device, workers: See the class.

        Raises:
            ConfigError: The network has other classes than the data.
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
        """The COCO numbers of a network, in float32; it stays as it is.

        Raises:
            ConfigError: It knows another number of classes than the data.
        """
        self.check_classes(model)
        return self.evaluate(ready_predictor(model, self.device), stride=model.max_stride, channels_last=True)

    def check_classes(self, model: Detector) -> None:
        """Refuse a network of other classes than the data.

        Raises:
            ConfigError: It knows another number of them.
        """
        if model.spec.num_classes != len(self.index.names):
            raise ConfigError(
                f"the network knows {model.spec.num_classes} classes but the data has {len(self.index.names)}; "
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
        """The COCO numbers of a predictor, at v5.0's thresholds.

        Args:
            predict: Already on the device.
            stride: Images are padded to multiples of it.
            frame_hw: The one height and width it takes, None for any.
            channels_last: Memory format of the images.
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
    """A fused copy of a network in evaluation mode on a device, in the layout that is fast there."""
    return predictor(fuse(model).to(device=device, memory_format=torch.channels_last))  # type: ignore[call-overload]
