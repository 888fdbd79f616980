"""`ModelSpec`: the data that rebuild a network, dense or pruned, without its code or pickle."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from models.anchors import Anchors, anchor_rows, check_anchors
from models.layer_table import LayerSpec, check_layer, freeze, head_strides, scale_layer, thaw
from utils.errors import ConfigError
from utils.storage.files import read_yaml, write_yaml

MODELS_FOLDER = Path(__file__).parent

_YAML_KEYS = (
    "nc",
    "depth_multiple",
    "width_multiple",
    "anchors",
    "backbone",
    "head",
    "widths",
    "strides",
    "ch",
)


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """A network as data.

    Attributes:
        num_classes: Number of classes, at least 1.
        anchors: Anchor sizes in pixels, one row w, h, w, h, ... per head.
        strides: Pixels per cell of each head.
        layers: Rows of the layer list, already scaled; the last one is Detect.
        widths: Output channels of every convolution where they differ from what `layers` implies, by the module
            path of its block, such as `model.4.cv1` or `model.4.m.0.cv2`.
    """

    num_classes: int
    anchors: Anchors
    strides: tuple[int, ...]
    layers: tuple[LayerSpec, ...]
    widths: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if isinstance(self.num_classes, bool) or not isinstance(self.num_classes, int) or self.num_classes < 1:
            raise ConfigError(f"class count nc is {self.num_classes!r}, expected 1 or more")
        _check_layers(self.layers)
        expected = head_strides(self.layers)
        if tuple(self.strides) != expected:
            raise ConfigError(f"strides are {list(self.strides)}; the layers give {list(expected)}")
        check_anchors(self.anchors, num_heads=len(expected))
        for name, width in self.widths.items():
            if isinstance(width, bool) or not isinstance(width, int) or width < 1:
                raise ConfigError(f"widths: {name} is {width!r}, expected 1 or more channels")

    @property
    def num_anchors(self) -> int:
        """Number of anchors per head."""
        return len(self.anchors[0]) // 2

    @property
    def max_stride(self) -> int:
        """Largest stride in pixels; image sides must be multiples of it."""
        return max(self.strides)

    @classmethod
    def from_yaml(
        cls,
        path: str | Path,
        *,
        num_classes: int | None = None,
        anchors: Sequence[Sequence[float]] | None = None,
    ) -> ModelSpec:
        """Read a v5.0 model YAML, by path or by the name of a shipped one, such as `yolov5s.yaml`.

        Args:
            path: File, or name of a shipped one with or without `.yaml`.
            num_classes: Number of classes in place of the file's `nc`.
            anchors: Anchors in place of the file's: pixels, one row per head.

        Raises:
            ConfigError: The file does not describe a network; the message names the file, the layer and the fault.
        """
        found = find_model_yaml(path)
        values = read_yaml(found, what="model")
        return cls.from_yaml_dict(values, where=f"model file {found}", num_classes=num_classes, anchors=anchors)

    @classmethod
    def from_yaml_dict(
        cls,
        values: Mapping[str, Any],
        *,
        where: str,
        num_classes: int | None = None,
        anchors: Sequence[Sequence[float]] | None = None,
    ) -> ModelSpec:
        """Build the spec from the content of a model YAML, as `from_yaml`; `where` names its origin in messages."""
        try:
            _check_keys(values)
            layers = _scaled_layers(values)
            strides = head_strides(layers)
            return cls(
                num_classes=values.get("nc", 0) if num_classes is None else num_classes,
                anchors=anchor_rows(values.get("anchors") if anchors is None else anchors, strides=strides),
                strides=tuple(values.get("strides", strides)),
                layers=layers,
                widths=dict(values.get("widths") or {}),
            )
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from None

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], *, where: str = "network description") -> ModelSpec:
        """Rebuild from `to_dict`; `where` names its origin in messages.

        Raises:
            ConfigError: A key is missing, a value has another form, or the data describe a classifier.
        """
        if "kind" in values:
            raise ConfigError(
                f"{where}: got a {values['kind']}, expected a detector; give one, or the images of the "
                "classifier as --data"
            )
        try:
            rows = values["layers"]
            layers = tuple(
                LayerSpec(source=freeze(row[0]), number=row[1], module=row[2], args=freeze(row[3])) for row in rows
            )
            return cls(
                num_classes=values["num_classes"],
                anchors=freeze(values["anchors"]),
                strides=tuple(values["strides"]),
                layers=layers,
                widths=dict(values["widths"]),
            )
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from None
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise ConfigError(
                f"{where}: not a network description ({error!r}); use one written by this project"
            ) from None

    def to_dict(self) -> dict[str, Any]:
        """Return the spec as plain data for JSON and checkpoints."""
        return {
            "num_classes": self.num_classes,
            "anchors": thaw(self.anchors),
            "strides": list(self.strides),
            "layers": [[thaw(row.source), row.number, row.module, thaw(row.args)] for row in self.layers],
            "widths": dict(self.widths),
        }

    def to_yaml(self, path: str | Path) -> None:
        """Write a model YAML that `from_yaml` reads back to an equal spec."""
        rows = self.to_dict()["layers"]
        rows[-1][3] = ["nc", "anchors"]
        values = {
            "nc": self.num_classes,
            "depth_multiple": 1.0,
            "width_multiple": 1.0,
            "anchors": thaw(self.anchors),
            "strides": list(self.strides),
            "backbone": rows[:-1],
            "head": rows[-1:],
            "widths": dict(self.widths),
        }
        write_yaml(path, values)

    def fingerprint(self) -> str:
        """Return SHA-256 of the canonical JSON: equal specs have equal fingerprints."""
        text = json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


def find_model_yaml(path: str | Path) -> Path:
    """Return the file itself if it exists, else the shipped one of that name.

    Raises:
        ConfigError: Neither exists; the message lists the shipped names.
    """
    path = Path(path)
    for candidate in (path, MODELS_FOLDER / path.name, MODELS_FOLDER / f"{path.name}.yaml"):
        if candidate.is_file():
            return candidate
    names = ", ".join(sorted(file.stem for file in MODELS_FOLDER.glob("*.yaml")))
    raise ConfigError(f"model file {path} does not exist; give a path or one of: {names}")


def has_explicit_anchors(path: str | Path) -> bool:
    """Return whether the model YAML gives anchor sizes, not only their number per head."""
    return isinstance(read_yaml(find_model_yaml(path), what="model").get("anchors"), list)


def _check_keys(values: Mapping[str, Any]) -> None:
    unknown = sorted(str(key) for key in values if key not in _YAML_KEYS)
    if unknown:
        raise ConfigError(f"unknown key {', '.join(unknown)}; known: {', '.join(_YAML_KEYS)}")
    if values.get("ch", 3) != 3:
        raise ConfigError(f"ch is {values['ch']!r}; only images of 3 channels are supported")
    for key in ("backbone", "head"):
        if not isinstance(values.get(key), list | tuple):
            raise ConfigError(f"{key} is missing or not a list, expected rows [from, number, module, arguments]")
    for key in ("depth_multiple", "width_multiple"):
        value = values.get(key, 1.0)
        if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
            raise ConfigError(f"{key} is {value!r}, expected a number above 0")
    if not isinstance(values.get("widths") or {}, Mapping):
        raise ConfigError("widths is not a mapping; expected convolution: channels")
    if not isinstance(values.get("strides", []), list | tuple):
        raise ConfigError("strides is not a list, expected pixels per cell of each head")


def _scaled_layers(values: Mapping[str, Any]) -> tuple[LayerSpec, ...]:
    layers = []
    for index, row in enumerate([*values["backbone"], *values["head"]]):
        try:
            layers.append(
                scale_layer(row, depth=values.get("depth_multiple", 1.0), width=values.get("width_multiple", 1.0))
            )
        except ConfigError as error:
            raise ConfigError(f"layer {index}: {error}") from None
    _check_layers(layers)
    return tuple(layers)


def _check_layers(layers: Sequence[LayerSpec]) -> None:
    if not layers or layers[-1].module != "Detect":
        raise ConfigError("the last layer must be Detect; add it to the end of head")
    for index, layer in enumerate(layers):
        try:
            check_layer(layer, index=index)
        except ConfigError as error:
            raise ConfigError(f"layer {index}: {error}") from None
        if layer.module == "Detect" and index != len(layers) - 1:
            raise ConfigError(
                f"layer {index}: Detect must be the last layer, and the only one of its kind; move or remove it"
            )
