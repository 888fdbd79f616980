"""Exported classifiers: their metadata, and the runtime that checks the logits of any graph."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from deploy.artefact.metadata import check_precision_name
from deploy.choices import Precision
from deploy.outputs.outputs import INPUT_NAME, RunGraph, run_in_batches
from models.classifiers import ClassifierSpec
from utils.errors import CheckpointError, ConfigError

_OUTPUT_NAME = "logits"


@dataclass(frozen=True, kw_only=True)
class ClassifierMetadata:
    """Metadata of an exported classifier, stored as JSON with the artefact, which takes any batch size.

    Attributes:
        format: Suffix of its format in `deploy.formats.FORMATS`, such as ".onnx".
        precision: Precision of weights and arithmetic.
        names: Class names by id; empty if unknown.
        num_classes: Length of the logits.
        image_chw: Channels, height and width of the images, which the network takes normalised.
        mean: Mean to subtract from each channel of an image in [0, 1]; empty for none.
        std: Standard deviation to divide each channel by after that; empty for none.
        fingerprint: Value of `weights_fingerprint` of the network.
        versions: Versions of the packages used for the export, by name.
    """

    format: str
    precision: Precision
    names: tuple[str, ...]
    num_classes: int
    image_chw: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    fingerprint: str
    versions: Mapping[str, str] = field(default_factory=dict)

    stride = 1  # any size is a multiple of it

    def __post_init__(self) -> None:
        check_precision_name(self.precision)
        for name in ("image_chw", "mean", "std"):
            if not all(isinstance(value, int | float) for value in getattr(self, name)):
                raise ConfigError(f"{name}: got {getattr(self, name)}, expected numbers")
        if len(self.image_chw) != 3 or min(self.image_chw) < 1:
            raise ConfigError(f"image size: got {self.image_chw}, expected channels, height and width")
        if self.names and len(self.names) != self.num_classes:
            raise ConfigError(f"names: got {len(self.names)}, expected {self.num_classes}, one per class, or none")
        for name in ("mean", "std"):
            values = getattr(self, name)
            if values and len(values) != self.image_chw[0]:
                raise ConfigError(f"{name}: got {values}, expected {self.image_chw[0]} numbers, one per channel")

    @property
    def input_hw(self) -> tuple[int, int]:
        """Height and width of the only images that it takes."""
        return self.image_chw[1:]

    @property
    def normalisation(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation of each channel; 0 and 1 if there are none."""
        channels = self.image_chw[0]
        return self.mean or (0.0,) * channels, self.std or (1.0,) * channels

    @property
    def spec(self) -> ClassifierSpec:
        """Description of the network and of its images, without the name of an architecture.

        Raises:
            ConfigError: A value is out of range, such as a standard deviation of 0.
        """
        mean, std = self.normalisation
        return ClassifierSpec(name="", num_classes=self.num_classes, image_chw=self.image_chw, mean=mean, std=std)

    @property
    def output_names(self) -> list[str]:
        """Name of the output of the graph."""
        return [_OUTPUT_NAME]

    @property
    def output_shapes(self) -> list[tuple[int, ...]]:
        """Shape of the output for one image."""
        return [(1, self.num_classes)]

    @property
    def free_axes(self) -> dict[str, dict[int, str]]:
        """Name for the batch axis of input and output."""
        return {name: {0: "batch"} for name in (INPUT_NAME, _OUTPUT_NAME)}

    @property
    def identity(self) -> dict[str, str]:
        """Digest of the weights, by what differs if it does."""
        return {"other weights": self.fingerprint}

    def taking_any_size(self, is_any: bool) -> ClassifierMetadata:
        """Return the same metadata: a classifier is used at one size only."""
        return self

    def to_json(self) -> str:
        """Return indented JSON that `deploy.outputs.metadata.read_metadata` reads back."""
        return json.dumps(asdict(self), indent=2) + "\n"

    def runtime(self, run: RunGraph, *, path: str | Path, device: torch.device) -> LogitsRuntime:
        """Return the runtime around a function that runs the graph."""
        return LogitsRuntime(run, self, path=path, device=device)

    def change(self, found: Tensor, exact: Tensor) -> float:
        """Measure how much logits (B, classes) differ: mean absolute difference of probabilities, in [0, 1]."""
        return float((found.softmax(1) - exact.softmax(1)).abs().mean())


class LogitsRuntime:
    """A graph of a classifier, which checks the shapes of its images and logits.

    Args:
        run: Function that runs the graph, from images to a single output.
        metadata: Metadata of the artefact.
        path: Path of the artefact, for messages.
        device: Device of the images and logits.
    """

    def __init__(
        self, run: RunGraph, metadata: ClassifierMetadata, *, path: str | Path, device: torch.device
    ) -> None:
        self._run = run
        self._path = path
        self.metadata = metadata
        self.device = device
        self.format, self.precision = metadata.format, metadata.precision
        self.names, self.num_classes = metadata.names, metadata.num_classes
        self.input_hw = metadata.input_hw

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Tensor:
        """Compute logits (B, classes) float32 of normalised images (B, C, H, W) float32.

        Raises:
            ConfigError: The images have another size.
            CheckpointError: The graph returns another number of classes than its metadata.
        """
        expected = self.metadata.image_chw
        if images.ndim != 4 or tuple(images.shape[1:]) != expected:
            raise ConfigError(f"{self._path}: got images {tuple(images.shape)}, expected (B, *{expected})")
        return self._logits(run_in_batches(self._run, images.float().to(self.device), None)).to(self.device)

    def _logits(self, outputs: Sequence[Tensor]) -> Tensor:
        logits = outputs[0].flatten(1)
        if logits.shape[1] != self.num_classes:
            raise CheckpointError(
                f"{self._path} returns {tuple(logits.shape)}, its metadata expects {self.num_classes} "
                "classes: it belongs to another model; export it again"
            )
        return logits
