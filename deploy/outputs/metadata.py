"""Metadata of either task, and whether they belong to a network."""

from __future__ import annotations

from pathlib import Path
from typing import TypeAlias

from deploy.artefact.metadata import json_values, metadata_text, read_fields
from deploy.outputs.heads import ExportMetadata
from deploy.outputs.logits import ClassifierMetadata
from deploy.outputs.outputs import Source
from utils.errors import CheckpointError

Metadata: TypeAlias = ExportMetadata | ClassifierMetadata

# Fields that only the metadata of one task have.
_KINDS: dict[str, type[ExportMetadata] | type[ClassifierMetadata]] = {
    "strides": ExportMetadata,
    "image_chw": ClassifierMetadata,
}


def read_metadata(text: str, *, where: str | Path) -> Metadata:
    """Read what `to_json` of either kind of metadata wrote; `where` names the artefact in messages.

    Raises:
        CheckpointError: The text is empty, truncated, lacks a field, or describes neither task.
    """
    values = json_values(text, where=where)
    for sign, kind in _KINDS.items():
        if sign in values:
            return read_fields(kind, values, where=where)
    raise CheckpointError(f"metadata of {where}: got neither {' nor '.join(_KINDS)}; export the artefact again")


def folder_metadata(folder: Path) -> Metadata:
    """Read the metadata file of an artefact that is a folder.

    Raises:
        CheckpointError: There is no metadata file, or it is damaged.
    """
    return read_metadata(metadata_text(folder), where=folder)


def check_is_of(metadata: Metadata, source: Source, *, where: str | Path) -> None:
    """Refuse an artefact of another network, or of other weights of the same network.

    Raises:
        CheckpointError: One of them differs; the message says which.
    """
    own = metadata.identity
    for what, digest in source.identity.items():
        if own.get(what) != digest:
            raise CheckpointError(f"{where} was exported from {what}; export it again from these weights")
