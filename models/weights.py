"""Reader of every kind of weights file: this project's, pickles of YOLOv5, plain state dictionaries."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from models.spec import ModelSpec
from utils.datasets.coco_names import default_names
from utils.errors import CheckpointError, ConfigError
from utils.storage.checkpoint import Checkpoint, checkpoint_from_content, is_own_checkpoint
from utils.storage.foreign_checkpoint import read_foreign_checkpoint
from utils.storage.weights_file import as_float32, check_finite, check_weights_file, is_state, read_plain

# Output channels of the stem -> size of the network.
_SIZES = {16: "n", 32: "s", 48: "m", 64: "l", 80: "x"}
# Key of the stem's weight, its kernel, index of Detect -> shipped layer list.
_LAYOUTS = {
    ("model.0.conv.conv.weight", 3, 24): "yolov5{}",
    ("model.0.conv.conv.weight", 3, 33): "yolov5{}6",
    ("model.0.conv.weight", 6, 24): "yolov5{}-v6",
}


@dataclass(frozen=True, kw_only=True)
class WeightsFile:
    """A network's description and weights.

    Attributes:
        spec: Description of the network that the file was saved from.
        state: Best weights by name, float32.
        names: Class names, in order of class ids.
        checkpoint: Whole checkpoint, if this project wrote the file.
    """

    spec: ModelSpec
    state: dict[str, Tensor]
    names: tuple[str, ...]
    checkpoint: Checkpoint | None = None


def read_weights(path: str | Path) -> WeightsFile:
    """Read any supported weights file without running any code in it.

    Raises:
        CheckpointError: The file is not supported, damaged or hostile, its network is unknown, or a weight is not
            finite.
    """
    path = check_weights_file(path)
    found = _read(path)
    check_finite(found.state, where=f"weights {path}")
    return found


def _read(path: Path) -> WeightsFile:
    content = read_plain(path)
    try:
        if is_own_checkpoint(content):
            checkpoint = checkpoint_from_content(content, path=path)
            spec = ModelSpec.from_dict(checkpoint.spec)
            return WeightsFile(
                spec=spec, state=checkpoint.best_weights, names=checkpoint.names, checkpoint=checkpoint
            )
        if isinstance(content, dict) and is_state(content):
            return _from_state(as_float32(content), path=path)
        return _from_foreign(path)
    except ConfigError as error:
        raise CheckpointError(f"weights {path}: {error}") from None


def _from_foreign(path: Path) -> WeightsFile:
    foreign = read_foreign_checkpoint(path)
    spec = ModelSpec.from_yaml_dict(
        foreign.yaml, where="its layer list", num_classes=len(foreign.names), anchors=foreign.anchors
    )
    if spec.strides != foreign.strides:
        raise CheckpointError(
            f"weights {path}: strides are {list(foreign.strides)}, its layers give {list(spec.strides)}; "
            "use an unchanged checkpoint"
        )
    return WeightsFile(spec=spec, state=foreign.state, names=foreign.names)


def _from_state(state: dict[str, Tensor], *, path: Path) -> WeightsFile:
    """Find the shipped network that a bare state dictionary belongs to, by its stem and head."""
    heads = [match for name in state if (match := re.fullmatch(r"model\.(\d+)\.anchors", name))]
    stem = next((key for key, _, _ in _LAYOUTS if key in state), None)
    if len(heads) != 1 or stem is None:
        raise CheckpointError(
            f"weights {path} contain tensors of an unknown network; give a checkpoint or --cfg with it"
        )
    index = int(heads[0][1])
    layout = _LAYOUTS.get((stem, state[stem].shape[-1], index))
    size = _SIZES.get(state[stem].shape[0])
    if layout is None or size is None:
        raise CheckpointError(
            f"weights {path}: stem {tuple(state[stem].shape)} and head {index} match no YOLOv5 n to x; "
            "give a checkpoint that contains its layer list"
        )
    shipped = ModelSpec.from_yaml(layout.format(size))
    cells = state[f"model.{index}.anchors"]
    outputs = state.get(f"model.{index}.m.0.bias")
    if outputs is None or cells.ndim != 3 or len(cells) != len(shipped.strides):
        raise CheckpointError(f"weights {path}: the Detect layer {index} is incomplete; use an undamaged copy")
    num_classes = len(outputs) // cells.shape[1] - 5
    pixels = (cells * torch.tensor(shipped.strides).view(-1, 1, 1)).flatten(1).tolist()
    spec = ModelSpec.from_yaml(layout.format(size), num_classes=num_classes, anchors=pixels)
    return WeightsFile(spec=spec, state=state, names=default_names(num_classes))
