"""Metadata of artefacts as JSON: all that is needed to run them and to identify their network."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar, get_args

from deploy.choices import Precision
from models.layer_table import freeze
from utils.errors import CheckpointError, ConfigError

# Name of the metadata file inside an artefact.
METADATA_NAME = "metadata.json"

FieldsT = TypeVar("FieldsT")


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


def json_values(text: str, *, where: str | Path) -> dict[str, Any]:
    """Parse the JSON of metadata; `where` names the artefact in messages.

    Raises:
        CheckpointError: The text is empty, truncated, or contains something else.
    """
    if not text.strip():
        raise CheckpointError(f"{where} contains no metadata of this project; export it again with export.py")
    try:
        values = json.loads(text)
    except ValueError:
        raise CheckpointError(f"metadata of {where} is not JSON, or is truncated; export it again") from None
    if not isinstance(values, dict):
        raise CheckpointError(f"metadata of {where}: got {values!r:.40}, expected names and values; export it again")
    return values


def read_fields(kind: type[FieldsT], values: dict[str, Any], *, where: str | Path) -> FieldsT:
    """Build a dataclass from the JSON values of its fields; `where` names the artefact in messages.

    Raises:
        CheckpointError: A field is missing, has another type, or does not fit the others.
    """
    try:
        return kind(**{item.name: _checked(values, item.name, item.type) for item in fields(kind)})  # type: ignore[arg-type]
    except ConfigError as error:
        raise CheckpointError(f"metadata of {where}: {error}") from None


def check_precision_name(precision: str) -> None:
    """Refuse a precision that does not exist.

    Raises:
        ConfigError: The name is not known.
    """
    if precision not in get_args(Precision):
        raise ConfigError(f"precision: got {precision!r}, known: {', '.join(get_args(Precision))}")


# Expected JSON types, by the annotation of the field.
_JSON_KINDS: dict[str, type] = {"str": str, "Precision": str, "int": int, "bool": bool, "Mapping[str, str]": dict}


def _checked(values: dict[str, Any], name: str, annotation: Any) -> Any:
    """Return one field of the metadata, with lists as tuples.

    Raises:
        ConfigError: It is missing, or has another type.
    """
    kind = _JSON_KINDS.get(annotation, list)
    value = values.get(name)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise ConfigError(f"{name}: got {value!r}, expected a {kind.__name__}; export the artefact again")
    return freeze(value) if kind is list else value
