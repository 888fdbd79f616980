"""What a file of weights is, before anything in it is read."""

from __future__ import annotations

import pickle
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from utils.errors import CheckpointError
from utils.files import ZIP_ERRORS


def check_weights_file(path: str | Path) -> Path:
    """Check that `path` is a whole file in torch's zip format.

    Raises:
        CheckpointError: It is missing, a folder, empty, a web page, cut short, or something else.
    """
    path = Path(path)
    if not path.exists():
        raise CheckpointError(f"weights {path} do not exist; check the path (nothing is downloaded)")
    if not path.is_file():
        if (path / "metadata.json").is_file():
            raise CheckpointError(f"weights {path} are an exported network; give the .pt file it was made from")
        raise CheckpointError(f"weights {path} are a folder; give the .pt file in it")
    try:
        with path.open("rb") as file:
            start = file.read(512)
    except OSError as error:
        raise CheckpointError(f"weights {path} cannot be read: {error.strerror}; check the permissions") from error
    if not start:
        raise CheckpointError(f"weights {path} are empty; download or copy the file again")
    if start.lstrip().startswith(b"<"):
        raise CheckpointError(f"weights {path} are a web page, not a checkpoint; download the file itself")
    if not zipfile.is_zipfile(path):
        raise CheckpointError(f"weights {path} {_finding(start)}")
    if _holds_arrays(path):
        raise CheckpointError(
            f"weights {path} are arrays of numpy, as quantize.py writes them; give the .pt file they were made from"
        )
    return path


def _holds_arrays(path: Path) -> bool:
    """Whether a zip file is an .npz."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith(".npy") for name in archive.namelist())
    except ZIP_ERRORS:
        return False


def _finding(start: bytes) -> str:
    if start.startswith(b"PK"):
        return "are cut short; download or copy the file again"
    if start.startswith(b"\x80"):
        return "are in the file format of torch before 1.6; load and save them again with a newer torch"
    return "are not a checkpoint; give a .pt file written by this project or by YOLOv5"


def read_plain(path: Path) -> Any | None:
    """The content of a file of tensors and plain data; None where it would need classes to be read.

    Raises:
        CheckpointError: The file is damaged.
    """
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*TorchScript archive")  # refused below, in a line of ours
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        return None
    except (RuntimeError, EOFError, ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
        reason = " ".join(str(error).split())[:120]
        raise CheckpointError(f"weights {path} are damaged ({reason}); download or copy the file again") from error


def as_float32(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Floating tensors in float32, others as they are."""
    return {name: value.float() if value.is_floating_point() else value for name, value in state.items()}


def is_state(value: object) -> bool:
    """Whether `value` is a non-empty mapping of names to tensors."""
    return (
        isinstance(value, dict)
        and bool(value)
        and all(isinstance(name, str) and isinstance(item, torch.Tensor) for name, item in value.items())
    )


def check_finite(state: Mapping[str, torch.Tensor], *, where: str) -> None:
    """Refuse weights that are no numbers; `where` names their origin in messages.

    Raises:
        CheckpointError: Names the first tensor with NaN or infinity.
    """
    for name, tensor in state.items():
        if not tensor.isfinite().all():
            raise CheckpointError(
                f"{where}: {int((~tensor.isfinite()).sum())} of {tensor.numel()} numbers of {name} are NaN or "
                "infinite; use an earlier checkpoint, or train again with a lower rate"
            )
