"""Metadata of an exported classifier: all that is needed to run it and to identify its network."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import get_args

import torch
from torch import nn

from deploy.artefact.metadata import read_metadata
from deploy.choices import Precision
from utils.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class ClassifierSettings:
    """Settings for exporting a classifier.

    Attributes:
        image_chw: Channels, height and width of its images.
        names: Class names by id; empty if unknown.
        mean: Mean to subtract from each channel of an image in [0, 1]; empty for none.
        std: Standard deviation to divide each channel by after that; empty for none.
        precision: Precision fp32 or fp16, for ONNX also int8.
        opset: Version of the ONNX operators; other formats ignore it.
    """

    image_chw: tuple[int, int, int]
    names: tuple[str, ...] = ()
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    precision: Precision = "fp32"
    opset: int = 17


@dataclass(frozen=True, kw_only=True)
class ClassifierMetadata:
    """Metadata of an exported classifier, stored as JSON with the artefact.

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
    image_chw: tuple[int, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    fingerprint: str
    versions: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.precision not in get_args(Precision):
            raise ConfigError(f"precision: got {self.precision!r}, known: {', '.join(get_args(Precision))}")
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

    @classmethod
    def of(
        cls,
        model: nn.Module,
        *,
        format: str,
        num_classes: int,
        settings: ClassifierSettings,
        versions: Mapping[str, str],
    ) -> ClassifierMetadata:
        """Build the metadata of an export that is about to be written.

        Raises:
            ConfigError: Names, size or normalisation do not fit the network.
        """
        return cls(
            format=format,
            precision=settings.precision,
            names=settings.names,
            num_classes=num_classes,
            image_chw=settings.image_chw,
            mean=settings.mean,
            std=settings.std,
            fingerprint=weights_fingerprint(model),
            versions={"torch": torch.__version__, **versions},
        )

    @property
    def normalisation(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation of each channel; 0 and 1 if there are none."""
        channels = self.image_chw[0]
        return self.mean or (0.0,) * channels, self.std or (1.0,) * channels

    def to_json(self) -> str:
        """Return indented JSON that `from_json` reads back."""
        return json.dumps(asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str, *, where: str | Path) -> ClassifierMetadata:
        """Read what `to_json` wrote; `where` names the artefact in messages.

        Raises:
            CheckpointError: The text is empty, truncated, or describes something else, such as a detector.
        """
        return read_metadata(cls, text, where=where)


def weights_fingerprint(model: nn.Module) -> str:
    """Compute the SHA-256 of the names, dtypes, shapes and values of a network's weights."""
    digest = hashlib.sha256()
    for name, value in model.state_dict().items():
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
