"""Classifiers as the source of artefacts: any network from images (B, C, H, W) to logits (B, classes)."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from deploy.ncnn.classifier_readme import classifier_readme
from deploy.outputs.logits import ClassifierMetadata, LogitsRuntime
from deploy.pytorch import TorchRun
from deploy.settings import ExportSettings
from deploy.verification.logits import LogitsAgreement
from models.classifiers import ClassifierSpec, LoadedClassifier
from models.prepare import Logits
from utils.errors import ConfigError

_NUM_IMAGES = 2


@dataclass(frozen=True, kw_only=True, eq=False)
class ClassifierSource:
    """A classifier, with the methods of `deploy.outputs.outputs.Source`.

    Attributes:
        model: Classifier, dense or pruned; not changed.
        image_chw: Channels, height and width of its images.
        names: Class names by id; empty if unknown.
        mean: Mean to subtract from each channel of an image in [0, 1]; empty for none.
        std: Standard deviation to divide each channel by after that; empty for none.
    """

    model: nn.Module
    image_chw: tuple[int, int, int]
    names: tuple[str, ...] = ()
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    metric: ClassVar[str] = "accuracy"
    timed_calls: ClassVar[int] = 50

    @classmethod
    def of(cls, loaded: LoadedClassifier) -> ClassifierSource:
        """Take the network, names and normalisation of a checkpoint."""
        spec = loaded.spec
        channels, height, width = spec.image_chw
        return cls(
            model=loaded.model, image_chw=(channels, height, width), names=loaded.names, mean=spec.mean, std=spec.std
        )

    @property
    def identity(self) -> dict[str, str]:
        """Digest of the weights."""
        return {"other weights": weights_fingerprint(self.model)}

    def network(self) -> nn.Module:
        """Return a copy from normalised images to a tuple of logits."""
        return Logits(self.model)

    def metadata(self, *, format: str, settings: ExportSettings, versions: Mapping[str, str]) -> ClassifierMetadata:
        """Build the metadata of an artefact; of the settings only the precision matters.

        Raises:
            ConfigError: Names, size or normalisation do not fit the network, or it returns no logits.
        """
        return ClassifierMetadata(
            format=format,
            precision=settings.precision,
            names=self.names,
            num_classes=self.num_classes,
            image_chw=self.image_chw,
            mean=self.mean,
            std=self.std,
            fingerprint=weights_fingerprint(self.model),
            versions={"torch": torch.__version__, **versions},
        )

    @property
    def spec(self) -> ClassifierSpec:
        """Description of the network and of its images, without the name of an architecture."""
        return self.metadata(format="", settings=ExportSettings(), versions={}).spec

    @cached_property
    def num_classes(self) -> int:
        """Length of the logits, from running the network once.

        Raises:
            ConfigError: The network does not take such images, or does not return logits.
        """
        try:
            with torch.inference_mode():
                (logits,) = self.network()(torch.zeros(_NUM_IMAGES, *self.image_chw))
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            raise ConfigError(
                f"the classifier does not take images of (channels, height, width) {self.image_chw} ({reason}); "
                "give those it was trained on"
            ) from error
        shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != _NUM_IMAGES:
            raise ConfigError(f"the network returns {shape}, expected logits (batch, classes)")
        return logits.shape[1]

    def runtime(self, device: torch.device, *, half: bool = False) -> LogitsRuntime:
        """Return the network in PyTorch."""
        run = TorchRun(self.network(), device=device, half=half)
        metadata = self.metadata(format=".pt", settings=ExportSettings(precision=run.precision), versions={})
        return metadata.runtime(run, path="the network", device=device)

    def compare(
        self, found: Any, expected: Any, images: Tensor, *, measured: tuple[float, float] | None
    ) -> LogitsAgreement:
        """Compare logits; see `LogitsAgreement.of`."""
        return LogitsAgreement.of(found, expected, images, accuracy=measured)

    def noise(self, count: int, image_chw: tuple[int, int, int]) -> Tensor:
        """Return random images (count, C, H, W) of mean 0 and standard deviation 1, as normalised ones have."""
        return torch.randn(count, *image_chw, generator=torch.Generator().manual_seed(0))

    def ncnn_page(self, metadata: Any, *, folder_name: str) -> str:
        """Format the README of a folder for ncnn."""
        return classifier_readme(metadata, folder_name=folder_name)


def weights_fingerprint(model: nn.Module) -> str:
    """Compute the SHA-256 of the names, dtypes, shapes and values of a network's weights."""
    digest = hashlib.sha256()
    for name, value in model.state_dict().items():
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
