"""Starting weights of a classifier from a file, as far as they fit."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from utils.errors import CheckpointError
from utils.storage.checkpoint import checkpoint_from_content, is_own_checkpoint
from utils.storage.weights_file import check_finite, check_weights_file, is_legacy, is_state, read_plain

# Keys under which training scripts store a state dict, the average before the weights that it follows.
_WRAPPERS = ("model_ema", "state_dict_ema", "state_dict", "model")
# Prefixes of names that wrappers for several processes or compiled networks add.
_PREFIXES = ("module.", "_orig_mod.")
# Names in torchvision's DenseNet files, such as denselayer1.norm.1, where its networks say denselayer1.norm1.
_DOTTED = re.compile(r"(\.denselayer\d+\.(?:norm|conv))\.(\d\.)")
_MOST_NAMED = 4


@dataclass(frozen=True, kw_only=True)
class StartReport:
    """The tensors that were copied from a file into a network, and the others.

    Attributes:
        path: File that was read.
        copied: Names of the tensors that were copied.
        other_shapes: Names of tensors of other shapes in the file, such as a head for other classes.
        missing: Names of tensors that the file does not have.
        unused: Names of tensors of the file that the network does not have.
    """

    path: Path
    copied: tuple[str, ...]
    other_shapes: tuple[str, ...]
    missing: tuple[str, ...]
    unused: tuple[str, ...]

    def line(self) -> str:
        """Return the report in one line."""
        total = len(self.copied) + len(self.other_shapes) + len(self.missing)
        parts = [f"{len(self.copied)} of {total} tensors from {self.path}"]
        for finding, names in (
            ("other shape, left random", self.other_shapes),
            ("not in the file, left random", self.missing),
            ("not in the network, unused", self.unused),
        ):
            if names:
                more = ", ..." if len(names) > _MOST_NAMED else ""
                parts.append(f"{len(names)} {finding}: {', '.join(names[:_MOST_NAMED])}{more}")
        return "; ".join(parts)


@torch.no_grad()
def start_weights_(model: nn.Module, path: str | Path) -> StartReport:
    """Copy all tensors of a file whose names and shapes fit into a network; the others keep their values.

    Args:
        model: Network to fill, on any device.
        path: State dict, such as torchvision's .pth files, by itself or in a training script's file, or a
            checkpoint of this project.

    Raises:
        CheckpointError: The file cannot be read as data, has no state dict, or none of its weights fit.
    """
    given, own = _read_state(Path(path)), model.state_dict()
    fits = [name for name, tensor in own.items() if name in given and _fits(given[name], tensor)]
    weights = {name for name, _ in model.named_parameters()}
    if not weights.intersection(fits):
        raise CheckpointError(
            f"weights {path}: none of its {len(given)} tensors, such as {next(iter(given))}, fits this network with "
            f"{len(own)}, such as {next(iter(own))}; give a file of the network that --cfg names"
        )
    check_finite({name: given[name] for name in fits}, where=f"weights {path}")
    for name in fits:
        own[name].copy_(given[name])
    return StartReport(
        path=Path(path),
        copied=tuple(fits),
        other_shapes=tuple(name for name in own if name in given and name not in set(fits)),
        missing=tuple(name for name in own if name not in given),
        unused=tuple(name for name in given if name not in own),
    )


def _fits(given: Tensor, own: Tensor) -> bool:
    is_usable = given.layout == torch.strided and not given.is_meta and not given.is_complex()
    return is_usable and given.shape == own.shape and given.is_floating_point() == own.is_floating_point()


def _read_state(path: Path) -> Mapping[str, Tensor]:
    """Read the state dict of a file, without the prefixes of wrappers and with the names of today.

    Raises:
        CheckpointError: The file cannot be read as data, or has no state dict.
    """
    content: Any = read_plain(path if is_legacy(path) else check_weights_file(path))
    if is_own_checkpoint(content):
        return checkpoint_from_content(content, path=path).best_weights
    if isinstance(content, dict) and not is_state(content):
        content = next((content[key] for key in _WRAPPERS if is_state(content.get(key))), None)
    if not is_state(content):
        raise CheckpointError(
            f"weights {path} are no state dict of plain tensors; save one with torch.save(model.state_dict(), FILE)"
        )
    state: dict[str, Tensor] = dict(content)
    for prefix in _PREFIXES:
        if all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    return {_DOTTED.sub(r"\1\2", name): tensor for name, tensor in state.items()}
