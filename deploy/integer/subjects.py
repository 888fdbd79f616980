"""What quantize.py can quantise: its pictures, its metric, its artefact. A detector, or a classifier."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from deploy.calibration import calibration_images, check_image_size, spread
from deploy.classifier.pictures import calibration_pictures, spread_pictures
from deploy.classifier.runtime import load_classifier as load_exported_classifier
from deploy.integer.export import Forms, write_classifier, write_detector
from deploy.integer.quantize_config import QuantizeConfig
from deploy.integer.runtime import load_integer
from deploy.runtime import RuntimeOptions
from engine.classifier_evaluation import check_same_task
from engine.classifier_scores import picture_batches, score, score_classifier
from engine.measure import Measure
from engine.predict import predictor
from models.classifiers import LoadedClassifier, load_classifier
from models.detector import Detector
from models.load import load_model
from quantization.detector import QuantizedDetector
from quantization.network import QuantizedNetwork
from quantization.program import IntegerProgram
from utils.datasets.classification import PictureData
from utils.datasets.index import LabelIndex
from utils.datasets.known_pictures import are_pictures, load_pictures
from utils.files import sha256_of

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
        """Batches of training pictures, as the network takes them."""

    def of_floats(self) -> float:
        """The metric of the network as it is."""

    def of_network(self, network: QuantizedNetwork, *, num_images: int = 0) -> float:
        """The metric of a quantised network in its mode, on so many pictures; 0 are all."""

    def of_artefact(self, folder: Path) -> float:
        """The metric of what `write` wrote."""

    def write(self, program: IntegerProgram, folder: Path, forms: Forms) -> None:
        """Write the artefact."""


def open_subject(config: QuantizeConfig) -> Subject:
    """The network and the pictures that settings name: classifiers learn from mnist, cifar10 or an .npz.

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
        names: Of its classes.
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
            logger.warning("--cache-dir is for pictures of classifiers; here it changes nothing")
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
        """Letterboxed pictures (1, 3, H, W) in [0, 1]."""
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
        runtime = load_integer(folder, device=_CPU, options=RuntimeOptions())
        return self._ap(self.measure, runtime, frame_hw=runtime.input_hw)

    def write(self, program: IntegerProgram, folder: Path, forms: Forms) -> None:
        """Write the folder that val.py takes."""
        write_detector(
            program,
            folder,
            model=self.model,
            names=self.names,
            source_sha256=sha256_of(self.config.weights),
            forms=forms,
        )

    @torch.no_grad()
    def _ap(self, measure: Measure, detector: Any, *, frame_hw: tuple[int, int] | None) -> float:
        stride = self.model.max_stride
        return measure.evaluate(predictor(detector), stride=stride, frame_hw=frame_hw).metrics.AP


@dataclass(frozen=True, kw_only=True, eq=False)
class ClassifierSubject:
    """A classifier: accuracy on the test pictures.

    Attributes:
        config: The settings.
        loaded: The network, and how its pictures are normalised.
        data: The pictures.
    """

    config: QuantizeConfig
    loaded: LoadedClassifier
    data: PictureData
    metric: str = "accuracy"

    @classmethod
    def of(cls, config: QuantizeConfig) -> ClassifierSubject:
        """Read weights and data."""
        if config.img_size != QuantizeConfig.img_size:
            logger.warning("--img-size is for detectors; a classifier takes pictures of the size of its data")
        loaded, data = load_classifier(config.weights), load_pictures(config.data, config.cache_dir or None)
        check_same_task(loaded.spec, data, names=loaded.names, weights=config.weights, name=config.data)
        return cls(config=config, loaded=loaded, data=data)

    @property
    def model(self) -> nn.Module:
        """The network."""
        return self.loaded.model

    @property
    def image_chw(self) -> tuple[int, int, int]:
        """Of the pictures."""
        return self.data.image_chw

    def calibration(self) -> Sequence[Tensor]:
        """Normalised training pictures."""
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
        """Write the folder that `deploy.classifier.runtime.load_classifier` takes."""
        write_classifier(
            program,
            folder,
            model=self.model,
            spec=self.loaded.spec,
            names=self.loaded.names,
            forms=forms,
        )


def _few(index: LabelIndex, count: int) -> LabelIndex:
    """So many of the pictures of a split, evenly spread; all where there are fewer."""
    chosen = spread(range(len(index)), min(count, len(index)))
    return replace(
        index,
        paths=tuple(index.paths[position] for position in chosen),
        labels=tuple(index.labels[position] for position in chosen),
        shapes_hw=index.shapes_hw[chosen],
        image_ids=tuple(index.image_ids[position] for position in chosen),
    )
