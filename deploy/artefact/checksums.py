"""Checksums of the files in an artefact's folder: `SHA256SUMS`, in the format of sha256sum.

ncnn does not check its input: one number changed by hand in a `.param` can crash the process that loads it. An
integer network copied from another folder fits the metadata there whenever the architecture is the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from utils.errors import CheckpointError
from utils.storage.files import sha256_of

SUMS_NAME = "SHA256SUMS"


def write_checksums(folder: Path, names: Sequence[str]) -> None:
    """Write the checksums of these files of a folder to its `SHA256SUMS`."""
    lines = [f"{sha256_of(folder / name)}  {name}\n" for name in names]
    (folder / SUMS_NAME).write_text("".join(lines), encoding="utf-8")


def check_checksums(folder: Path) -> None:
    """Compare the files of a folder with its `SHA256SUMS`; a folder without that file passes.

    Raises:
        CheckpointError: A file differs from the one written, or `SHA256SUMS` cannot be read.
    """
    sums = folder / SUMS_NAME
    if not sums.is_file():
        return
    try:
        rows = [line.split("  ") for line in sums.read_text(encoding="utf-8").splitlines()]
        expected = [(name, digest) for digest, name in rows]
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{sums} is damaged; write the artefact again, or delete it") from error
    for name, digest in expected:
        path = folder / Path(name).name
        if not path.is_file():
            raise CheckpointError(f"{folder} contains no {path.name}; write it again")
        if sha256_of(path) != digest:
            raise CheckpointError(
                f"{path} is truncated, damaged or from another artefact (its SHA-256 check failed); write it again, "
                f"or delete {SUMS_NAME} beside it if the change is yours"
            )
