"""The protocols that detectors and classifiers follow in deploy/: their source, their agreement, their graphs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deploy.choices import Precision
from deploy.settings import ExportSettings

if TYPE_CHECKING:
    from deploy.artefact.runtime import RuntimeModel
    from deploy.outputs.metadata import Metadata

# Name of the input of exported graphs.
INPUT_NAME = "images"
# Function from images (B, C, H, W) float32 to the outputs of a graph, each (B, ...).
RunGraph: TypeAlias = Callable[[Tensor], Sequence[Tensor]]


class Agreement(Protocol):
    """How far the outputs of an artefact agree with those of its network.

    Attributes:
        columns: Headings of `cells`.
        caption: Explanation of the metric, for the line below the table.
    """

    columns: ClassVar[tuple[str, ...]]
    caption: ClassVar[str]

    @property
    def cells(self) -> tuple[str, ...]:
        """Values as text, one per column."""

    def checks(self, precision: Precision) -> list[tuple[str, float, float]]:
        """Return what is limited, its value, and the maximum at this precision."""

    def notes(self, precision: Precision) -> list[str]:
        """Return lines on what could not be compared."""

    def data(self, precision: Precision) -> dict[str, Any]:
        """Return plain data for result.json, including the tolerance."""


class Source(Protocol):
    """A network with everything that its artefacts are made of and compared with.

    Attributes:
        metric: Name of what is measured on data; higher is better.
        timed_calls: Number of calls over which a latency is measured.
    """

    metric: ClassVar[str]
    timed_calls: ClassVar[int]

    @property
    def model(self) -> nn.Module:
        """The network itself; not to be changed."""

    @property
    def identity(self) -> Mapping[str, str]:
        """Digests that an artefact of this network repeats in its metadata."""

    def network(self) -> nn.Module:
        """Return a copy for exporters: float32, on the CPU, in evaluation mode, with a tuple of outputs."""

    def metadata(self, *, format: str, settings: ExportSettings, versions: Mapping[str, str]) -> Metadata:
        """Build the metadata of an artefact that is about to be written.

        Raises:
            ConfigError: The settings do not fit the network.
        """

    def runtime(self, device: torch.device, *, half: bool = False) -> RuntimeModel:
        """Return the network itself as a runtime, in PyTorch."""

    def compare(
        self, found: Any, expected: Any, images: Tensor, *, measured: tuple[float, float] | None
    ) -> Agreement:
        """Compare two runtimes of this network on the same images.

        Args:
            found: Runtime of an artefact.
            expected: Runtime of the network.
            images: Images (B, C, H, W) in the form of network input.
            measured: Metric of the network and of the artefact; None without data.
        """

    def noise(self, count: int, image_chw: tuple[int, int, int]) -> Tensor:
        """Return `count` random images in the form of network input; always the same ones."""

    def ncnn_page(self, metadata: Any, *, folder_name: str) -> str:
        """Format the README of a folder for ncnn, as Markdown."""


def run_in_batches(run: RunGraph, images: Tensor, batch_size: int | None) -> list[Tensor]:
    """Run a graph on any number of images.

    Args:
        run: Function that runs the graph.
        images: Images (B, C, H, W).
        batch_size: The only batch size that the graph takes, to which batches are filled up with black images; None
            for any.
    """
    size = batch_size or max(len(images), 1)
    filled = F.pad(images, (0, 0, 0, 0, 0, 0, 0, -len(images) % size))
    parts = [run(part) for part in torch.split(filled, size)]
    levels = [torch.cat(level) for level in zip(*parts, strict=True)] if len(parts) > 1 else parts[0]
    return [level[: len(images)] for level in levels]
