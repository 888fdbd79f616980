"""The files of an artefact's folder are those that were written: `SHA256SUMS`, in the format of sha256sum.

ncnn believes what it reads: one number changed in a `.param` by hand can crash the process that loads it. A network
of integers copied from another folder fits the metadata beside it wherever the architecture is the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from utils.errors import CheckpointError
from utils.files import sha256_of

SUMS_NAME = "SHA256SUMS"


def write_checksums(folder: Path, names: Sequence[str]) -> None:
    """Write the sums of these files of a folder beside them."""
    lines = [f"{sha256_of(folder / name)}  {name}\n" for name in names]
    (folder / SUMS_NAME).write_text("".join(lines), encoding="utf-8")


def check_checksums(folder: Path) -> None:
    """Compare the files of a folder with its sums; a folder without any is believed.

    Raises:
        CheckpointError: A file is not the one that was written, or the sums cannot be read.
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
            raise CheckpointError(f"{folder} holds no {path.name}; write it again")
        if sha256_of(path) != digest:
            raise CheckpointError(
                f"{path} is cut off, damaged or of another artefact (its SHA-256 check failed); write the artefact "
                f"again, or delete {SUMS_NAME} beside it if the change is yours"
            )
