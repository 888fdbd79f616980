"""What an exported artefact says of itself: enough to run it, and to tell which network it is."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar, get_args

import torch
from torch import Tensor

from deploy.runtime import Precision
from models.detector import Detector
from models.layer_table import freeze
from utils.errors import CheckpointError, ConfigError

# Name of the file inside or beside an artefact.
METADATA_NAME = "metadata.json"

MetadataT = TypeVar("MetadataT")


@dataclass(frozen=True, kw_only=True)
class ExportSettings:
    """How a network is exported.

    Attributes:
        image_hw: Height and width in pixels.
        batch_size: Images per call.
        dynamic: Whether the artefact takes any batch and any multiple of the stride; the two above are then
            only what it was traced with.
        precision: Of weights and arithmetic.
        opset: Of ONNX; other formats ignore it.
    """

    image_hw: tuple[int, int] = (640, 640)
    batch_size: int = 1
    dynamic: bool = False
    precision: Precision = "fp32"
    opset: int = 17


@dataclass(frozen=True, kw_only=True)
class ExportMetadata:
    """Stored as JSON with every artefact.

    Attributes:
        format: Key of `deploy.registry.RUNTIMES`, such as ".onnx".
        precision: Of weights and arithmetic.
        names: Class names by id.
        num_classes: Their number.
        strides: Pixels per cell of each head.
        anchors: One row w, h, w, h, ... in pixels per head.
        image_hw: Height and width in pixels.
        batch_size: Images per call.
        dynamic: See `ExportSettings`.
        spec_fingerprint: `ModelSpec.fingerprint()` of the network.
        source_sha256: Of the weights file.
        versions: By package that had a part in it.
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
        """Of an export that is about to be made.

        Raises:
            ConfigError: The image size is no multiple of the stride, or the names do not fit the network.
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
        """The one height and width the artefact takes, None for any multiple of the stride."""
        return None if self.dynamic else self.image_hw

    @property
    def anchor_tensor(self) -> Tensor:
        """(heads, A, 2) in pixels."""
        return torch.tensor(self.anchors, dtype=torch.float32).view(len(self.strides), -1, 2)

    def to_json(self) -> str:
        """Indented JSON that `from_json` reads back."""
        return json.dumps(asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str, *, where: str | Path) -> ExportMetadata:
        """Read what `to_json` wrote; `where` names the artefact in messages.

        Raises:
            CheckpointError: The text is empty, cut off, or lacks something.
        """
        return read_metadata(cls, text, where=where)

    @classmethod
    def from_folder(cls, folder: Path) -> ExportMetadata:
        """Read the metadata file of an artefact that is a folder.

        Raises:
            CheckpointError: There is none, or it is damaged.
        """
        return cls.from_json(metadata_text(folder), where=folder)

    def check_is_of(self, model: Detector, *, source_sha256: str, where: str | Path) -> None:
        """Refuse an artefact of another network, or of other weights of the same one.

        Raises:
            CheckpointError: Says which of the two differs.
        """
        if self.spec_fingerprint != model.spec.fingerprint():
            raise CheckpointError(f"{where} was exported from another network; export it again from these weights")
        if self.source_sha256 != source_sha256:
            raise CheckpointError(f"{where} was exported from other weights; export it again from these")

    def raw_heads(self, maps: Sequence[Tensor], *, where: str | Path) -> list[Tensor]:
        """Head maps (B, A * (5 + nc), H, W) of `models.prepare` to raw heads (B, A, H, W, 5 + nc).

        Raises:
            CheckpointError: The maps are not those of the network that the metadata describes.
        """
        num_anchors, num_outputs = len(self.anchors[0]) // 2, 5 + self.num_classes
        found = [item.shape[1] for item in maps]
        expected = [num_anchors * num_outputs] * len(self.strides)
        if found != expected:
            raise CheckpointError(
                f"{where} gives maps of {found} channels, its metadata expects {expected}: "
                "it is of another model; export it again"
            )
        return [
            item.reshape(item.shape[0], num_anchors, num_outputs, *item.shape[2:]).permute(0, 1, 3, 4, 2)
            for item in maps
        ]


def metadata_text(folder: Path) -> str:
    """The content of the metadata file of an artefact that is a folder.

    Raises:
        CheckpointError: There is none.
    """
    try:
        return (folder / METADATA_NAME).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(
            f"{folder} holds no readable {METADATA_NAME}; export it again with export.py"
        ) from error


def read_metadata(kind: type[MetadataT], text: str, *, where: str | Path) -> MetadataT:
    """A dataclass from the JSON of its fields; `where` names the artefact in messages.

    Raises:
        CheckpointError: The text is empty, cut off, or lacks something.
    """
    if not text.strip():
        raise CheckpointError(f"{where} holds no metadata of this project; export it again with export.py")
    try:
        values = json.loads(text)
        _check_task(kind, values)
        return kind(**{item.name: _checked(values, item.name, item.type) for item in fields(kind)})  # type: ignore[arg-type]
    except ConfigError as error:
        raise CheckpointError(f"metadata of {where}: {error}") from None
    except ValueError:
        raise CheckpointError(f"metadata of {where} is no JSON, or cut off; export it again") from None


# What only metadata of these have.
_SIGNS = {"strides": "a detector", "image_chw": "a classifier"}


def _check_task(kind: type, values: Any) -> None:
    """Refuse metadata of a classifier for those of a detector, and the other way round.

    Raises:
        ConfigError: They are.
    """
    own = [sign for sign in _SIGNS if sign in {item.name for item in fields(kind)}]
    found = [sign for sign in _SIGNS if isinstance(values, dict) and sign in values]
    if len(own) == len(found) == 1 and own != found:
        raise ConfigError(
            f"of {_SIGNS[found[0]]}, expected of {_SIGNS[own[0]]}; give one that command and data are for"
        )


# By the annotation of the field: what JSON must hold.
_JSON_KINDS: dict[str, type] = {"str": str, "Precision": str, "int": int, "bool": bool, "Mapping[str, str]": dict}


def _checked(values: Any, name: str, annotation: Any) -> Any:
    """One field of the metadata, lists as tuples.

    Raises:
        ConfigError: It is missing, or of another kind.
    """
    kind = _JSON_KINDS.get(annotation, list)
    value = values.get(name) if isinstance(values, dict) else None
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise ConfigError(f"{name}: got {value!r}, expected a {kind.__name__}; export the artefact again")
    return freeze(value) if kind is list else value
