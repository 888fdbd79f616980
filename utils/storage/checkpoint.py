"""Checkpoint files of this project: tensors and plain data, read without pickled code, written atomically."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from utils.errors import CheckpointError
from utils.storage.files import atomic_write
from utils.storage.weights_file import as_float32, check_weights_file, is_state, read_plain

FORMAT = "small-detector checkpoint"
VERSION = 1

State = dict[str, Tensor]

# Type of each stored value.
_KINDS: dict[str, type | tuple[type, ...]] = {
    "version": int,
    "spec": dict,
    "names": (list, tuple),
    "weights": dict,
    "ema": (dict, type(None)),
    "ema_updates": int,
    "optimizer": (dict, type(None)),
    "epoch": int,
    "metrics": dict,
    "config": dict,
    "training_state": dict,
}


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A network with the data needed to use it, to resume its training and to trace its origin.

    Attributes:
        spec: Description of the network, from `ModelSpec.to_dict()` or `ClassifierSpec.to_dict()`.
        names: Class names, in order of class ids.
        weights: State of the network as trained.
        ema: State of its moving average, which is evaluated and shipped; None without one.
        ema_updates: Number of updates of the average.
        optimizer: State of the optimiser.
        epoch: Last finished epoch, from 0; -1 before the first.
        metrics: Metrics of the last evaluation by name.
        config: Resolved settings of the run.
        training_state: Tensors and plain data that resuming needs besides: random states, best fitness.
        version: Version of the file format.
    """

    spec: dict[str, Any]
    names: tuple[str, ...]
    weights: State
    ema: State | None = None
    ema_updates: int = 0
    optimizer: dict[str, Any] | None = None
    epoch: int = -1
    metrics: dict[str, float] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    training_state: dict[str, Any] = field(default_factory=dict)
    version: int = VERSION

    def __post_init__(self) -> None:
        for state in (self.weights, *([] if self.ema is None else [self.ema])):
            if not is_state(state):
                raise ValueError("weights and ema must be non-empty mappings of names to tensors")
        if self.epoch < -1:
            raise ValueError(f"epoch: got {self.epoch}, expected -1 or more")

    @property
    def best_weights(self) -> State:
        """State of the moving average if there is one, else of the weights."""
        return self.weights if self.ema is None else self.ema


def save_checkpoint(checkpoint: Checkpoint, path: str | Path, *, half: bool = False) -> None:
    """Write a checkpoint atomically: `path` contains the old or the new one, never a part.

    Args:
        checkpoint: Checkpoint to write.
        path: File to write.
        half: Whether to store weights and moving average as float16, for files to ship.

    Raises:
        ConfigError: The folder cannot be written to.
    """
    values = {item.name: getattr(checkpoint, item.name) for item in fields(checkpoint)}
    values["names"] = list(checkpoint.names)
    if half:
        values["weights"] = _as_float16(checkpoint.weights)
        values["ema"] = None if checkpoint.ema is None else _as_float16(checkpoint.ema)
    with atomic_write(path) as temporary:
        try:
            torch.save({"format": FORMAT, **values}, temporary)
        except RuntimeError as error:
            # torch reports a full disk as RuntimeError; atomic_write turns an OSError into a message for the user.
            raise OSError(" ".join(str(error).split())[:120]) from error


def _as_float16(state: State) -> State:
    """Convert floating-point tensors to float16, except those with a value that would overflow."""
    limit = torch.finfo(torch.float16).max
    return {
        name: value.half() if value.is_floating_point() and bool((value.abs() <= limit).all()) else value
        for name, value in state.items()
    }


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Read a checkpoint of this project, with weights in float32 on the CPU.

    Raises:
        CheckpointError: The file is of another kind, damaged, or from a newer version of this project.
    """
    content = read_plain(check_weights_file(path))
    if not is_own_checkpoint(content):
        raise CheckpointError(
            f"weights {path} are not a checkpoint of this project; train.py --weights makes one from them"
        )
    return checkpoint_from_content(content, path=path)


def is_own_checkpoint(content: object) -> bool:
    """Return whether the content of a file is a checkpoint of this project, of any version."""
    return isinstance(content, dict) and content.get("format") == FORMAT


def checkpoint_from_content(content: Any, *, path: str | Path) -> Checkpoint:
    """Check the content that `read_plain` returned and build a `Checkpoint`; `path` names it in messages.

    Raises:
        CheckpointError: The content is of a newer version, or a value is missing or of another type.
    """
    version = content.get("version")
    if isinstance(version, int) and version > VERSION:
        raise CheckpointError(
            f"weights {path} have format version {version}, this project reads up to {VERSION}; update the project"
        )
    for name, kind in _KINDS.items():
        if not isinstance(content.get(name, _KINDS), kind) or name not in content:
            raise CheckpointError(f"weights {path} lack a valid {name!r}; use an undamaged copy")
    values = {name: content[name] for name in _KINDS}
    if not is_state(values["weights"]) or not (values["ema"] is None or is_state(values["ema"])):
        raise CheckpointError(f"weights {path} have no tensors under 'weights' or 'ema'; use an undamaged copy")
    values["names"] = tuple(str(name) for name in values["names"])
    values["weights"] = as_float32(values["weights"])
    values["ema"] = None if values["ema"] is None else as_float32(values["ema"])
    return Checkpoint(**values)


def strip(checkpoint: Checkpoint) -> Checkpoint:
    """Reduce the checkpoint of a finished run to what inference needs: the best weights, no training state."""
    return replace(
        checkpoint,
        weights=checkpoint.best_weights,
        ema=None,
        ema_updates=0,
        optimizer=None,
        training_state={},
    )
