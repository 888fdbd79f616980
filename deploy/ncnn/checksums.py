"""The files of an ncnn folder are those that were exported: `SHA256SUMS`, in the format of sha256sum.

ncnn believes what it reads: one number changed in a `.param` by hand can crash the process that loads it.
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
        CheckpointError: A file is not the one that was exported, or the sums cannot be read.
    """
    sums = folder / SUMS_NAME
    if not sums.is_file():
        return
    try:
        rows = [line.split("  ") for line in sums.read_text(encoding="utf-8").splitlines()]
        expected = [(name, digest) for digest, name in rows]
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{sums} is damaged; export the network again, or delete it") from error
    for name, digest in expected:
        path = folder / Path(name).name
        if not path.is_file():
            raise CheckpointError(f"{folder} holds no {path.name}; export it again")
        if sha256_of(path) != digest:
            raise CheckpointError(
                f"{path} is cut off or damaged (its SHA-256 check failed); export it again, or delete {SUMS_NAME} "
                "beside it if the change is yours"
            )
