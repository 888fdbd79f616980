"""Files of TensorRT engines: metadata as JSON, then TensorRT's own bytes, the plan.

| bytes | content |
|---|---|
| 8 | `SDENGINE` |
| 4 | length of the JSON, unsigned, little endian |
| 8 | length of the plan, unsigned, little endian |
| that many | JSON in UTF-8: `package`, `compute_capability`, `image_shapes` and `metadata` |
| that many | the plan, for `deserialize_cuda_engine` |
"""

from __future__ import annotations

import json
import struct
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from deploy.formats import FORMATS
from deploy.outputs.metadata import Metadata, read_metadata
from models.layer_table import freeze
from utils.errors import CheckpointError
from utils.storage.files import atomic_write

# Suffix of the files.
FORMAT = FORMATS["tensorrt"].suffix
# The packages that build and run engines; neither reads the other's.
PACKAGES = ("tensorrt", "tensorrt_rtx")
_MAGIC = b"SDENGINE"
_HEAD = struct.Struct("<8sIQ")


@dataclass(frozen=True, kw_only=True)
class EngineFile:
    """An engine with all that is needed to run it.

    Attributes:
        metadata: Metadata of the network.
        package: Name in `PACKAGES` of the package that built it; its version is in the metadata.
        compute_capability: Compute capability of the GPU it was built for, such as "8.9".
        image_shapes: Smallest, usual and largest (B, C, H, W) that a dynamic engine takes; empty for a fixed one.
        plan: Serialised engine, in TensorRT's own format.
    """

    metadata: Metadata
    package: str
    compute_capability: str
    image_shapes: tuple[tuple[int, ...], ...]
    plan: bytes

    @property
    def built_for(self) -> str:
        """Package with version, and GPU, for messages."""
        version = self.metadata.versions.get(self.package, "of an unknown version")
        return f"{self.package} {version} and compute capability {self.compute_capability}"


def write_engine(path: str | Path, engine: EngineFile) -> None:
    """Write the file atomically.

    Raises:
        ConfigError: The folder is not writable.
    """
    head = json.dumps(
        {
            "package": engine.package,
            "compute_capability": engine.compute_capability,
            "image_shapes": engine.image_shapes,
            "metadata": asdict(engine.metadata),
        }
    ).encode()
    with atomic_write(path) as temporary:
        temporary.write_bytes(_HEAD.pack(_MAGIC, len(head), len(engine.plan)) + head + engine.plan)


def read_engine(path: Path) -> EngineFile:
    """Read a file that `write_engine` wrote, without TensorRT.

    Raises:
        CheckpointError: The file is not an engine, is truncated, or lacks a field.
    """
    content = path.read_bytes()
    if len(content) < _HEAD.size or not content.startswith(_MAGIC):
        raise CheckpointError(f"{path} is not an engine with metadata of this project; export it with export.py")
    _, head_length, plan_length = _HEAD.unpack_from(content)
    start = _HEAD.size + head_length
    if len(content) != start + plan_length:
        raise CheckpointError(
            f"{path} is truncated or damaged: {len(content)} bytes, expected {start + plan_length}; export it again"
        )
    values = _json_of(content[_HEAD.size : start], path)
    return EngineFile(
        metadata=read_metadata(json.dumps(values["metadata"]), where=path),
        package=values["package"],
        compute_capability=values["compute_capability"],
        image_shapes=freeze(values["image_shapes"]),
        plan=content[start:],
    )


def _json_of(head: bytes, path: Path) -> dict[str, Any]:
    """Parse the JSON of a file and check its fields, except those of the metadata.

    Raises:
        CheckpointError: It is not JSON, or a field is missing or of another type.
    """
    try:
        values: dict[str, Any] = json.loads(head)
    except ValueError as error:
        raise CheckpointError(f"{path}: its metadata is not JSON; export it again") from error
    kinds = {"package": str, "compute_capability": str, "image_shapes": list, "metadata": dict}
    for name, kind in kinds.items():
        if not isinstance(values, dict) or not isinstance(values.get(name), kind):
            raise CheckpointError(
                f"{path}: its metadata lacks {name}, or has a value of another type; export it again"
            )
    if values["package"] not in PACKAGES:
        raise CheckpointError(f"{path}: built by {values['package']!r}, known: {', '.join(PACKAGES)}")
    return values
