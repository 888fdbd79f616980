"""Checks of weights files, and safe reading of their tensors and plain data."""

from __future__ import annotations

import pickle
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from utils.errors import CheckpointError
from utils.storage.files import ZIP_ERRORS

# First byte of a file in the format of torch before 1.6.
_LEGACY_START = b"\x80"


def is_legacy(path: str | Path) -> bool:
    """Return whether a file is in the format of torch before 1.6, in which some of torchvision's files are."""
    if not Path(path).is_file():
        return False
    try:
        with Path(path).open("rb") as file:
            return file.read(1) == _LEGACY_START
    except OSError:
        return False


def check_weights_file(path: str | Path) -> Path:
    """Check that `path` is a whole file in torch's zip format.

    Raises:
        CheckpointError: The file is missing, a folder, empty, a web page, truncated, or something else.
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
            f"weights {path} are numpy arrays, as quantize.py writes them; give the .pt file they were made from"
        )
    return path


def _holds_arrays(path: Path) -> bool:
    """Return whether a zip file is an .npz."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith(".npy") for name in archive.namelist())
    except ZIP_ERRORS:
        return False


def _finding(start: bytes) -> str:
    if start.startswith(b"PK"):
        return "are truncated; download or copy the file again"
    if start.startswith(_LEGACY_START):
        return "are in the file format of torch before 1.6; load and save them again with a newer torch"
    return "are not a checkpoint; give a .pt file written by this project or by YOLOv5"


def read_plain(path: Path) -> Any | None:
    """Read a file of tensors and plain data; return None if reading it would need pickled classes.

    Raises:
        CheckpointError: The file is damaged.
    """
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*TorchScript archive")  # refused below, with our message
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        return None
    except (RuntimeError, EOFError, ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
        reason = " ".join(str(error).split())[:120]
        raise CheckpointError(f"weights {path} are damaged ({reason}); download or copy the file again") from error


def as_float32(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Convert floating-point tensors to float32 and keep the others."""
    return {name: value.float() if value.is_floating_point() else value for name, value in state.items()}


def is_state(value: object) -> bool:
    """Return whether `value` is a non-empty mapping of names to tensors."""
    return (
        isinstance(value, dict)
        and bool(value)
        and all(isinstance(name, str) and isinstance(item, torch.Tensor) for name, item in value.items())
    )


def check_finite(state: Mapping[str, torch.Tensor], *, where: str) -> None:
    """Refuse weights with NaN or infinity; `where` names their origin in messages.

    Raises:
        CheckpointError: A value is not finite; the message names the first such tensor.
    """
    for name, tensor in state.items():
        if not tensor.isfinite().all():
            raise CheckpointError(
                f"{where}: {int((~tensor.isfinite()).sum())} of {tensor.numel()} values of {name} are NaN or "
                "infinite; use an earlier checkpoint, or train again with a lower learning rate"
            )
