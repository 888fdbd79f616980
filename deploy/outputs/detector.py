"""Detectors as the source of artefacts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from deploy.ncnn.detector_readme import detector_readme
from deploy.outputs.heads import ExportMetadata, HeadsRuntime
from deploy.pytorch import TorchRun
from deploy.settings import ExportSettings
from deploy.verification.heads import HeadsAgreement
from models.detector import Detector
from models.fuse import fuse
from models.prepare import ready_for_export


@dataclass(frozen=True, kw_only=True, eq=False)
class DetectorSource:
    """A detector, with the methods of `deploy.outputs.outputs.Source`.

    Attributes:
        model: Detector, dense or pruned; not changed.
        names: Class names by id.
        sha256: SHA-256 of the weights file.
    """

    model: Detector
    names: Sequence[str]
    sha256: str = ""
    metric: ClassVar[str] = "mAP"
    timed_calls: ClassVar[int] = 10

    @property
    def identity(self) -> dict[str, str]:
        """Digests of the architecture and of the weights file."""
        return {"another network": self.model.spec.fingerprint(), "other weights": self.sha256}

    def network(self) -> nn.Module:
        """Return a copy from images to head maps, of operators that every runtime supports."""
        return ready_for_export(self.model)

    def metadata(self, *, format: str, settings: ExportSettings, versions: Mapping[str, str]) -> ExportMetadata:
        """Build the metadata of an artefact that is about to be written.

        Raises:
            ConfigError: The image size is not a multiple of the stride, or the names do not fit the network.
        """
        model = self.model
        return ExportMetadata(
            format=format,
            precision=settings.precision,
            names=tuple(self.names),
            num_classes=model.spec.num_classes,
            strides=tuple(model.strides),
            anchors=tuple(tuple(row) for row in model.anchors.detach().cpu().flatten(1).tolist()),
            image_hw=settings.image_hw,
            batch_size=settings.batch_size,
            dynamic=settings.dynamic,
            spec_fingerprint=model.spec.fingerprint(),
            source_sha256=self.sha256,
            versions={"torch": torch.__version__, **versions},
        )

    def runtime(self, device: torch.device, *, half: bool = False) -> HeadsRuntime:
        """Return the fused network in PyTorch, which takes any multiple of the stride."""
        run, side = TorchRun(fuse(self.model), device=device, half=half), self.model.max_stride
        settings = ExportSettings(image_hw=(side, side), dynamic=True, precision=run.precision)
        metadata = self.metadata(format=".pt", settings=settings, versions={})
        # To (B, A * (5 + nc), H, W): exporters take the heads apart in their own way, which is to be compared.
        return metadata.runtime(
            lambda images: [head.permute(0, 1, 4, 2, 3).flatten(1, 2) for head in run(images)],
            path="the network",
            device=device,
        )

    def compare(
        self, found: Any, expected: Any, images: Tensor, *, measured: tuple[float, float] | None
    ) -> HeadsAgreement:
        """Compare heads and boxes; see `HeadsAgreement.of`."""
        return HeadsAgreement.of(found, expected, images, ap=measured)

    def noise(self, count: int, image_chw: tuple[int, int, int]) -> Tensor:
        """Return random images (count, 3, H, W) in [0, 1]."""
        return torch.rand(count, *image_chw, generator=torch.Generator().manual_seed(0))

    def ncnn_page(self, metadata: Any, *, folder_name: str) -> str:
        """Format the README of a folder for ncnn."""
        return detector_readme(metadata, folder_name=folder_name)
