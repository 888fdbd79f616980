"""Exported detectors: their metadata, and the runtime that turns the maps of any graph into raw heads."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from deploy.artefact.metadata import check_precision_name
from deploy.choices import Precision
from deploy.outputs.outputs import INPUT_NAME, RunGraph, run_in_batches
from utils.errors import CheckpointError, ConfigError


@dataclass(frozen=True, kw_only=True)
class ExportMetadata:
    """Metadata of an exported detector, stored as JSON with the artefact.

    Attributes:
        format: Suffix of its format in `deploy.formats.FORMATS`, such as ".onnx".
        precision: Precision of weights and arithmetic.
        names: Class names by id.
        num_classes: Number of classes.
        strides: Pixels per cell of each head.
        anchors: Rows of w, h, w, h, ... in pixels, one per head.
        image_hw: Height and width of images in pixels.
        batch_size: Images per call.
        dynamic: Whether it takes any batch size and any multiple of the stride, see `ExportSettings`.
        spec_fingerprint: Value of `ModelSpec.fingerprint()` of the network.
        source_sha256: SHA-256 of the weights file.
        versions: Versions of the packages used for the export, by name.
    """

    format: str
    precision: Precision
    names: tuple[str, ...]
    num_classes: int
    strides: tuple[int, ...]
    anchors: tuple[tuple[float, ...], ...]
    image_hw: tuple[int, int]
    batch_size: int
    dynamic: bool
    spec_fingerprint: str
    source_sha256: str
    versions: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_precision_name(self.precision)
        if len(self.names) != self.num_classes:
            raise ConfigError(f"names: got {len(self.names)}, expected {self.num_classes}, one per class")
        rows = self.anchors
        if len(rows) != len(self.strides) or not rows or len({len(row) for row in rows}) > 1 or len(rows[0]) % 2:
            raise ConfigError(f"anchors: got {rows}, expected one row w, h, w, h, ... per stride of {self.strides}")
        for side in self.image_hw:
            if side < 1 or side % self.stride:
                raise ConfigError(f"image size: got {side}, expected a multiple of the stride {self.stride}")
        if self.batch_size < 1:
            raise ConfigError(f"batch size: got {self.batch_size}, expected at least 1")

    @property
    def stride(self) -> int:
        """Number of pixels that height and width are a multiple of."""
        return max(self.strides)

    @property
    def image_chw(self) -> tuple[int, int, int]:
        """Channels, height and width of the image that it was traced with."""
        return 3, *self.image_hw

    @property
    def input_hw(self) -> tuple[int, int] | None:
        """Height and width of the only images that it takes; None if it takes any multiple of the stride."""
        return None if self.dynamic else self.image_hw

    @property
    def anchor_tensor(self) -> Tensor:
        """Anchors (heads, A, 2) float32, in pixels."""
        return torch.tensor(self.anchors, dtype=torch.float32).view(len(self.strides), -1, 2)

    @property
    def num_maps(self) -> int:
        """Channels of each head map, A * (5 + nc)."""
        return len(self.anchors[0]) // 2 * (5 + self.num_classes)

    @property
    def output_names(self) -> list[str]:
        """Names of the outputs of the graph, finest grid first."""
        return [f"head{level}" for level in range(len(self.strides))]

    @property
    def output_shapes(self) -> list[tuple[int, ...]]:
        """Shapes of the outputs for one image of `image_hw`."""
        height, width = self.image_hw
        return [(1, self.num_maps, height // stride, width // stride) for stride in self.strides]

    @property
    def free_axes(self) -> dict[str, dict[int, str]]:
        """Names for the axes of free size, by the name of the map; none for an export of fixed size."""
        names = [INPUT_NAME, *self.output_names] if self.dynamic else []
        return {name: {0: "batch", 2: f"{name}_height", 3: f"{name}_width"} for name in names}

    @property
    def identity(self) -> dict[str, str]:
        """Digests of the network, by what differs if they do."""
        return {"another network": self.spec_fingerprint, "other weights": self.source_sha256}

    def taking_any_size(self, is_any: bool) -> ExportMetadata:
        """Return the same metadata with `dynamic` as the written graph is."""
        return replace(self, dynamic=is_any)

    def to_json(self) -> str:
        """Return indented JSON that `deploy.outputs.metadata.read_metadata` reads back."""
        return json.dumps(asdict(self), indent=2) + "\n"

    def runtime(self, run: RunGraph, *, path: str | Path, device: torch.device) -> HeadsRuntime:
        """Return the runtime around a function that runs the graph."""
        return HeadsRuntime(run, self, path=path, device=device)

    def raw_heads(self, maps: Sequence[Tensor], *, where: str | Path) -> list[Tensor]:
        """Reshape the head maps (B, A * (5 + nc), H, W) of `models.prepare` to raw heads (B, A, H, W, 5 + nc).

        Raises:
            CheckpointError: The maps do not fit the network that the metadata describes.
        """
        found = [item.shape[1] for item in maps]
        expected = [self.num_maps] * len(self.strides)
        if found != expected:
            raise CheckpointError(
                f"{where} returns maps of {found} channels, its metadata expects {expected}: "
                "it belongs to another model; export it again"
            )
        return [
            item.reshape(item.shape[0], -1, 5 + self.num_classes, *item.shape[2:]).permute(0, 1, 3, 4, 2)
            for item in maps
        ]

    def change(self, found: Sequence[Tensor], exact: Sequence[Tensor]) -> float:
        """Measure how much raw heads differ: `head_change`, averaged over the heads."""
        changes = [head_change(head, other) for head, other in zip(found, exact, strict=True)]
        return sum(changes) / len(changes)


class HeadsRuntime:
    """A graph with the interface of `deploy.artefact.runtime.DetectorRuntime`.

    Args:
        run: Function that runs the graph, from images to head maps.
        metadata: Metadata of the artefact.
        path: Path of the artefact, for messages.
        device: Device of the images and heads.
    """

    def __init__(self, run: RunGraph, metadata: ExportMetadata, *, path: str | Path, device: torch.device) -> None:
        self._run = run
        self._path = path
        self.metadata = metadata
        self.device = device
        self.format, self.precision = metadata.format, metadata.precision
        self.names, self.num_classes = metadata.names, metadata.num_classes
        self.strides, self.input_hw = metadata.strides, metadata.input_hw
        self.anchors = metadata.anchor_tensor.to(device)

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> list[Tensor]:
        """Compute raw heads, float32, of images (B, 3, H, W) RGB in [0, 1].

        Raises:
            ConfigError: The artefact does not take images of this size.
        """
        self._check_size(images)
        batch_size = None if self.metadata.dynamic else self.metadata.batch_size
        maps = run_in_batches(self._run, images.to(self.device), batch_size)
        return [head.to(self.device) for head in self.metadata.raw_heads(maps, where=self._path)]

    def _check_size(self, images: Tensor) -> None:
        given, stride = tuple(images.shape[2:]), self.metadata.stride
        if self.input_hw not in (None, given):
            raise ConfigError(
                f"{self._path} takes images of height and width {self.input_hw} only, got {given}; "
                "give it images of that size, or export it with --dynamic"
            )
        # Not every runtime checks that the maps it joins have the same size.
        if any(side % stride for side in given):
            raise ConfigError(
                f"{self._path}: got images of {given[0]}x{given[1]} pixels, expected multiples of the stride {stride}"
            )


def head_change(head: Tensor, exact: Tensor) -> float:
    """Measure how much a raw head differs where there are objects.

    Nearly all cells are background, with large negative values whose exact size is irrelevant. So values are compared
    after the sigmoid, and each cell is weighted by its exact objectness.

    Args:
        head: Raw head (B, A, H, W, 5 + nc), before the sigmoid.
        exact: Raw head of the fp32 network, of the same shape.

    Returns:
        Mean absolute difference over all outputs, in [0, 1].
    """
    found, wanted = head.sigmoid(), exact.sigmoid()
    weights = wanted[..., 4]
    return float(((found - wanted).abs().mean(-1) * weights).sum() / weights.sum())
