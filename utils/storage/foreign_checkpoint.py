"""Reader of official YOLOv5 v5.0 to v7.0 pickles, which runs no code in them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from utils.errors import CheckpointError
from utils.storage.inert_pickle import Inert, read_inert, tensor_in
from utils.storage.weights_file import as_float32, check_weights_file

# Activations of our blocks. Other releases differ, and the layer list does not say so.
_ACTIVATIONS = {"Conv": "SiLU", "BottleneckCSP": "LeakyReLU"}


@dataclass(frozen=True, kw_only=True)
class ForeignCheckpoint:
    """The network in a YOLOv5 pickle.

    Attributes:
        state: Parameters and buffers, float32, by their names in the checkpoint format.
        yaml: Layer list with class count and multiples, as in a model YAML.
        names: Class names, in order of class ids.
        anchors: Anchor sizes in pixels, one row w, h, w, h, ... per head; those of autoanchor if it ran.
        strides: Pixels per cell of each head.
        epoch: Last finished epoch, -1 when training was complete or unknown.
    """

    state: dict[str, Tensor]
    yaml: dict[str, Any]
    names: tuple[str, ...]
    anchors: tuple[tuple[float, ...], ...]
    strides: tuple[int, ...]
    epoch: int


def read_foreign_checkpoint(path: str | Path) -> ForeignCheckpoint:
    """Read a `.pt` of YOLOv5, its moving average rather than the raw network where it has both.

    Raises:
        CheckpointError: The file refers to something outside the allow-list (named in the message), is damaged, or
            contains no detector of YOLOv5.
    """
    path = check_weights_file(path)
    content = read_inert(path)
    model = _find_model(content, path=path)
    modules = dict(_named_modules(model))
    _check_activations(modules, path=path)
    head = modules[_head_name(modules, path=path)]
    stride = tensor_in(head.attributes.get("stride", model.attributes.get("stride")))
    cells = tensor_in(head.child("_buffers").get("anchors"))
    if stride is None or cells is None or cells.ndim != 3 or stride.shape != cells.shape[:1]:
        raise CheckpointError(f"weights {path} lack strides or anchors; use a checkpoint of YOLOv5 v5.0 to v7.0")
    pixels = cells.float() * stride.float().view(-1, 1, 1)
    epoch = content.get("epoch") if isinstance(content, dict) else None
    return ForeignCheckpoint(
        state=_state_of(modules),
        yaml=_plain_yaml(model, path=path),
        names=_class_names(model, path=path),
        anchors=tuple(tuple(row) for row in pixels.flatten(1).tolist()),
        strides=tuple(stride.long().tolist()),
        epoch=epoch if isinstance(epoch, int) else -1,
    )


def _find_model(content: Any, *, path: Path) -> Inert:
    candidates = [content]
    if isinstance(content, dict):
        candidates = [content.get("ema"), content.get("model")]
    for candidate in candidates:
        if isinstance(candidate, Inert) and candidate.child("_modules"):
            return candidate
    raise CheckpointError(f"weights {path} contain no network; give a YOLOv5 checkpoint with a 'model' in it")


def _named_modules(model: Inert) -> Iterator[tuple[str, Inert]]:
    """Yield every module once with its path; a loop, not recursion, because a hostile file may nest without end."""
    waiting = [("", model)]
    seen: set[int] = set()
    while waiting:
        prefix, module = waiting.pop()
        if id(module) in seen:
            continue
        seen.add(id(module))
        yield prefix, module
        for name, child in module.child("_modules").items():
            if isinstance(child, Inert):
                waiting.append((f"{prefix}.{name}" if prefix else str(name), child))


def _state_of(modules: dict[str, Inert]) -> dict[str, Tensor]:
    state = {}
    for prefix, module in modules.items():
        for name, value in {**module.child("_parameters"), **module.child("_buffers")}.items():
            tensor = tensor_in(value)
            if tensor is not None:
                state[f"{prefix}.{name}"] = tensor
    return as_float32(state)


def _head_name(modules: dict[str, Inert], *, path: Path) -> str:
    for name, module in modules.items():
        if module.kind == "Detect":
            return name
    raise CheckpointError(f"weights {path} have no Detect layer; only detectors are supported")


def _check_activations(modules: dict[str, Inert], *, path: Path) -> None:
    for name, module in modules.items():
        expected = _ACTIVATIONS.get(module.kind)
        # Read from the block itself, because later releases share one activation among all blocks.
        found = module.child("_modules").get("act")
        if expected and isinstance(found, Inert) and found.kind not in (expected, "Identity"):
            raise CheckpointError(
                f"weights {path}: {module.kind} {name} uses {found.kind}, expected {expected}; "
                "use weights of YOLOv5 v5.0 to v7.0 with their usual activations"
            )


def _class_names(model: Inert, *, path: Path) -> tuple[str, ...]:
    names = model.attributes.get("names")
    if isinstance(names, dict):
        names = [names[key] for key in sorted(names)]
    if not isinstance(names, list | tuple) or not names:
        raise CheckpointError(f"weights {path} have no class names; use a checkpoint of YOLOv5 v5.0 to v7.0")
    return tuple(str(name) for name in names)


def _plain_yaml(model: Inert, *, path: Path) -> dict[str, Any]:
    values = model.attributes.get("yaml")
    if not isinstance(values, dict):
        raise CheckpointError(f"weights {path} have no layer list; use a checkpoint of YOLOv5 v5.0 to v7.0")
    return dict(values)
