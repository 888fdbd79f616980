"""Metadata of an exported detector: all that is needed to run it and to identify its network."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar, get_args

import torch
from torch import Tensor

from deploy.choices import Precision
from deploy.settings import ExportSettings
from models.detector import Detector
from models.layer_table import freeze
from utils.errors import CheckpointError, ConfigError

# Name of the metadata file inside an artefact.
METADATA_NAME = "metadata.json"

MetadataT = TypeVar("MetadataT")


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
        if self.precision not in get_args(Precision):
            raise ConfigError(f"precision: got {self.precision!r}, known: {', '.join(get_args(Precision))}")
        if len(self.names) != self.num_classes:
            raise ConfigError(f"names: got {len(self.names)}, expected {self.num_classes}, one per class")
        rows = self.anchors
        if len(rows) != len(self.strides) or not rows or len({len(row) for row in rows}) > 1 or len(rows[0]) % 2:
            raise ConfigError(f"anchors: got {rows}, expected one row w, h, w, h, ... per stride of {self.strides}")
        for side in self.image_hw:
            if side < 1 or side % max(self.strides):
                raise ConfigError(f"image size: got {side}, expected a multiple of the stride {max(self.strides)}")
        if self.batch_size < 1:
            raise ConfigError(f"batch size: got {self.batch_size}, expected at least 1")

    @classmethod
    def of(
        cls,
        model: Detector,
        *,
        format: str,
        names: Sequence[str],
        source_sha256: str,
        settings: ExportSettings,
        versions: Mapping[str, str],
    ) -> ExportMetadata:
        """Build the metadata of an export that is about to be written.

        Raises:
            ConfigError: The image size is not a multiple of the stride, or the names do not fit the network.
        """
        return cls(
            format=format,
            precision=settings.precision,
            names=tuple(names),
            num_classes=model.spec.num_classes,
            strides=tuple(model.strides),
            anchors=tuple(tuple(row) for row in model.anchors.detach().cpu().flatten(1).tolist()),
            image_hw=settings.image_hw,
            batch_size=settings.batch_size,
            dynamic=settings.dynamic,
            spec_fingerprint=model.spec.fingerprint(),
            source_sha256=source_sha256,
            versions={"torch": torch.__version__, **versions},
        )

    @property
    def input_hw(self) -> tuple[int, int] | None:
        """Height and width of the only images that it takes; None if it takes any multiple of the stride."""
        return None if self.dynamic else self.image_hw

    @property
    def anchor_tensor(self) -> Tensor:
        """Anchors (heads, A, 2) float32, in pixels."""
        return torch.tensor(self.anchors, dtype=torch.float32).view(len(self.strides), -1, 2)

    def to_json(self) -> str:
        """Return indented JSON that `from_json` reads back."""
        return json.dumps(asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str, *, where: str | Path) -> ExportMetadata:
        """Read what `to_json` wrote; `where` names the artefact in messages.

        Raises:
            CheckpointError: The text is empty, truncated, or lacks a field.
        """
        return read_metadata(cls, text, where=where)

    @classmethod
    def from_folder(cls, folder: Path) -> ExportMetadata:
        """Read the metadata file of an artefact that is a folder.

        Raises:
            CheckpointError: There is no metadata file, or it is damaged.
        """
        return cls.from_json(metadata_text(folder), where=folder)

    def check_is_of(self, model: Detector, *, source_sha256: str, where: str | Path) -> None:
        """Refuse an artefact of another network, or of other weights of the same network.

        Raises:
            CheckpointError: One of them differs; the message says which.
        """
        if self.spec_fingerprint != model.spec.fingerprint():
            raise CheckpointError(f"{where} was exported from another network; export it again from these weights")
        if self.source_sha256 != source_sha256:
            raise CheckpointError(f"{where} was exported from other weights; export it again from these")

    def raw_heads(self, maps: Sequence[Tensor], *, where: str | Path) -> list[Tensor]:
        """Reshape the head maps (B, A * (5 + nc), H, W) of `models.prepare` to raw heads (B, A, H, W, 5 + nc).

        Raises:
            CheckpointError: The maps do not fit the network that the metadata describes.
        """
        num_anchors, num_outputs = len(self.anchors[0]) // 2, 5 + self.num_classes
        found = [item.shape[1] for item in maps]
        expected = [num_anchors * num_outputs] * len(self.strides)
        if found != expected:
            raise CheckpointError(
                f"{where} returns maps of {found} channels, its metadata expects {expected}: "
                "it belongs to another model; export it again"
            )
        return [
            item.reshape(item.shape[0], num_anchors, num_outputs, *item.shape[2:]).permute(0, 1, 3, 4, 2)
            for item in maps
        ]


def metadata_text(folder: Path) -> str:
    """Read the text of the metadata file of an artefact that is a folder.

    Raises:
        CheckpointError: There is no readable metadata file.
    """
    try:
        return (folder / METADATA_NAME).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(
            f"{folder} contains no readable {METADATA_NAME}; export it again with export.py"
        ) from error


def read_metadata(kind: type[MetadataT], text: str, *, where: str | Path) -> MetadataT:
    """Build a dataclass from the JSON of its fields; `where` names the artefact in messages.

    Raises:
        CheckpointError: The text is empty, truncated, or lacks a field.
    """
    if not text.strip():
        raise CheckpointError(f"{where} contains no metadata of this project; export it again with export.py")
    try:
        values = json.loads(text)
        _check_task(kind, values)
        return kind(**{item.name: _checked(values, item.name, item.type) for item in fields(kind)})  # type: ignore[arg-type]
    except ConfigError as error:
        raise CheckpointError(f"metadata of {where}: {error}") from None
    except ValueError:
        raise CheckpointError(f"metadata of {where} is not JSON, or is truncated; export it again") from None


# Fields that only the metadata of one task have.
_SIGNS = {"strides": "a detector", "image_chw": "a classifier"}


def _check_task(kind: type, values: Any) -> None:
    """Refuse a classifier's metadata where a detector's are expected, and the reverse.

    Raises:
        ConfigError: The metadata belong to the other task.
    """
    own = [sign for sign in _SIGNS if sign in {item.name for item in fields(kind)}]
    found = [sign for sign in _SIGNS if isinstance(values, dict) and sign in values]
    if len(own) == len(found) == 1 and own != found:
        raise ConfigError(
            f"got those of {_SIGNS[found[0]]}, expected those of {_SIGNS[own[0]]}; "
            "give an artefact that fits the command and the data"
        )


# Expected JSON types, by the annotation of the field.
_JSON_KINDS: dict[str, type] = {"str": str, "Precision": str, "int": int, "bool": bool, "Mapping[str, str]": dict}


def _checked(values: Any, name: str, annotation: Any) -> Any:
    """Return one field of the metadata, with lists as tuples.

    Raises:
        ConfigError: It is missing, or has another type.
    """
    kind = _JSON_KINDS.get(annotation, list)
    value = values.get(name) if isinstance(values, dict) else None
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise ConfigError(f"{name}: got {value!r}, expected a {kind.__name__}; export the artefact again")
    return freeze(value) if kind is list else value
