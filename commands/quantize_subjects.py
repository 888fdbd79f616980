"""Networks that quantize.py takes, detectors and classifiers: their images, metric and artefact."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from commands.quantize_config import QuantizeConfig
from deploy.calibration import (
    calibration_images,
    calibration_pictures,
    check_image_size,
    spread,
    spread_pictures,
)
from deploy.formats import load_classifier as load_exported_classifier
from deploy.formats import load_detector
from deploy.integer.export import Forms, write_integer
from deploy.outputs.classifier import ClassifierSource
from deploy.outputs.detector import DetectorSource
from engine.evaluation.classification import check_same_task
from engine.evaluation.classification_scores import picture_batches, score, score_classifier
from engine.evaluation.evaluator import Measure
from engine.evaluation.predict import predictor
from models.classifiers import LoadedClassifier, load_classifier
from models.detector import Detector
from models.load import load_model
from quantization.network import QuantizedNetwork
from quantization.program.program import IntegerProgram
from utils.datasets.classes.known import are_pictures, load_pictures
from utils.datasets.classes.pictures import PictureData
from utils.datasets.indexing.index import LabelIndex
from utils.storage.files import sha256_of


class QuantizedDetector:
    """The head maps of a quantised network, in the shape of a `Detector`'s.

    Args:
        maps: Images (B, 3, H, W) in [0, 1] to head maps (B, A * (5 + nc), H / stride, W / stride), such as a
            `QuantizedNetwork` made from `detector`.
        detector: Network it was made from, for anchors, strides and the number of classes.
    """

    def __init__(self, maps: Callable[[Tensor], Sequence[Tensor]], detector: Detector) -> None:
        self._maps = maps
        self._num_outputs = 5 + detector.spec.num_classes
        self.anchors = detector.anchors
        self.strides = detector.strides

    def __call__(self, images: Tensor) -> list[Tensor]:
        """Images (B, 3, H, W) to raw heads (B, A, H / stride, W / stride, 5 + nc)."""
        heads = []
        for maps in self._maps(images):
            batch, channels, height, width = maps.shape
            split = maps.view(batch, channels // self._num_outputs, self._num_outputs, height, width)
            heads.append(split.permute(0, 1, 3, 4, 2))  # (B, A, H, W, 5 + nc)
        return heads


logger = logging.getLogger(__name__)

_CPU = torch.device("cpu")
# Images per step when mAP is measured.
_VAL_BATCH = 16


class Subject(Protocol):
    """A network with what is needed to quantise and measure it."""

    @property
    def model(self) -> nn.Module:
        """In evaluation mode, on the CPU."""

    @property
    def image_chw(self) -> tuple[int, int, int]:
        """(C, H, W) it is quantised for."""

    @property
    def metric(self) -> str:
        """Name of what is measured; higher is better."""

    def calibration(self) -> Sequence[Tensor]:
        """Batches of training images, as the network takes them."""

    def of_floats(self) -> float:
        """Return the metric of the network as it is."""

    def of_network(self, network: QuantizedNetwork, *, num_images: int = 0) -> float:
        """Return the metric of a quantised network in its mode, on so many images; 0 are all."""

    def of_artefact(self, folder: Path) -> float:
        """Return the metric of what `write` wrote."""

    def write(self, program: IntegerProgram, folder: Path, forms: Forms) -> None:
        """Write the artefact."""


def open_subject(config: QuantizeConfig) -> Subject:
    """Return the network and the images that settings name: classifiers learn from mnist, cifar10 or an .npz.

    Raises:
        CheckpointError: The weights are of the other kind, or cannot be read.
        ConfigError, DataError: The data are of another network, cannot be read, or are too few.
    """
    if are_pictures(config.data):
        return ClassifierSubject.of(config)
    return DetectorSubject.of(config)


@dataclass(frozen=True, kw_only=True, eq=False)
class DetectorSubject:
    """A detector: mAP50-95 on the val split.

    Attributes:
        config: The settings.
        model: The network.
        names: Names of its classes.
        measure: On all of val.
    """

    config: QuantizeConfig
    model: Detector
    names: tuple[str, ...]
    measure: Measure
    metric: str = "mAP50-95"

    @classmethod
    def of(cls, config: QuantizeConfig) -> DetectorSubject:
        """Read weights and data."""
        if config.cache_dir:
            logger.warning("--cache-dir is for images of classifiers; here it changes nothing")
        loaded = load_model(config.weights)
        measure = Measure.on_split(
            config.data,
            "val",
            names=loaded.names,
            img_size=max(config.image_hw),
            batch_size=_VAL_BATCH,
            device=_CPU,
            workers=config.workers,
        )
        check_image_size(config.image_hw, stride=loaded.model.max_stride)
        return cls(config=config, model=loaded.model, names=loaded.names, measure=measure)

    @property
    def image_chw(self) -> tuple[int, int, int]:
        """(3, H, W) of the letterbox."""
        return 3, *self.config.image_hw

    def calibration(self) -> Sequence[Tensor]:
        """Letterboxed images (1, 3, H, W) in [0, 1]."""
        return calibration_images(self.config.data, count=self.config.calib_images, image_hw=self.config.image_hw)

    def of_floats(self) -> float:
        """mAP of the network in float32."""
        return self.measure(self.model).metrics.AP

    def of_network(self, network: QuantizedNetwork, *, num_images: int = 0) -> float:
        """mAP of a quantised network."""
        measure = replace(self.measure, index=_few(self.measure.index, num_images)) if num_images else self.measure
        return self._ap(measure, QuantizedDetector(network, self.model), frame_hw=None)

    def of_artefact(self, folder: Path) -> float:
        """mAP of the file, loaded as any runtime."""
        runtime = load_detector(folder, device=_CPU)
        return self._ap(self.measure, runtime, frame_hw=runtime.input_hw)

    def write(self, program: IntegerProgram, folder: Path, forms: Forms) -> None:
        """Write the folder that val.py takes."""
        source = DetectorSource(model=self.model, names=self.names, sha256=sha256_of(self.config.weights))
        write_integer(program, folder, source=source, forms=forms)

    @torch.no_grad()
    def _ap(self, measure: Measure, detector: Any, *, frame_hw: tuple[int, int] | None) -> float:
        stride = self.model.max_stride
        return measure.evaluate(predictor(detector), stride=stride, frame_hw=frame_hw).metrics.AP


@dataclass(frozen=True, kw_only=True, eq=False)
class ClassifierSubject:
    """A classifier: accuracy on the test images.

    Attributes:
        config: The settings.
        loaded: The network, and how its images are normalised.
        data: The images.
    """

    config: QuantizeConfig
    loaded: LoadedClassifier
    data: PictureData
    metric: str = "accuracy"

    @classmethod
    def of(cls, config: QuantizeConfig) -> ClassifierSubject:
        """Read weights and data."""
        if config.img_size != QuantizeConfig.img_size:
            logger.warning("--img-size is for detectors; a classifier takes images of the size of its data")
        loaded, data = load_classifier(config.weights), load_pictures(config.data, config.cache_dir or None)
        check_same_task(loaded.spec, data, names=loaded.names, weights=config.weights, name=config.data)
        return cls(config=config, loaded=loaded, data=data)

    @property
    def model(self) -> nn.Module:
        """The network."""
        return self.loaded.model

    @property
    def image_chw(self) -> tuple[int, int, int]:
        """Shape of the images."""
        return self.data.image_chw

    def calibration(self) -> Sequence[Tensor]:
        """Normalised training images."""
        return calibration_pictures(
            self.data, self.loaded.spec, count=self.config.calib_images, name=self.config.data
        )

    def of_floats(self) -> float:
        """Accuracy of the network in float32."""
        return score_classifier(self.model, self.data.test, spec=self.loaded.spec).accuracy

    def of_network(self, network: QuantizedNetwork, *, num_images: int = 0) -> float:
        """Accuracy of a quantised network."""
        pictures = spread_pictures(self.data.test, num_images) if num_images else self.data.test
        return score_classifier(network, pictures, spec=self.loaded.spec).accuracy

    def of_artefact(self, folder: Path) -> float:
        """Accuracy of the file, loaded as any runtime."""
        return score(load_exported_classifier(folder), picture_batches(self.data.test, self.loaded.spec)).accuracy

    def write(self, program: IntegerProgram, folder: Path, forms: Forms) -> None:
        """Write the folder that `deploy.load_classifier` takes."""
        write_integer(program, folder, source=ClassifierSource.of(self.loaded), forms=forms)


def _few(index: LabelIndex, count: int) -> LabelIndex:
    """So many of the images of a split, evenly spread; all where there are fewer."""
    chosen = spread(range(len(index)), min(count, len(index)))
    return replace(
        index,
        paths=tuple(index.paths[position] for position in chosen),
        labels=tuple(index.labels[position] for position in chosen),
        shapes_hw=index.shapes_hw[chosen],
        image_ids=tuple(index.image_ids[position] for position in chosen),
    )
