"""A small network whose layers are timed, and layers of every kind."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from tiny import TINY_CFG
from torch import nn

from deploy.latency.entries import Entry
from deploy.latency.networks import Subject
from deploy.outputs.detector import DetectorSource
from models.detector import build_model
from models.spec import ModelSpec
from pruning.selection.latency import LayerKind
from pruning.selection.latency_layers import ACTIVATIONS

IMAGE = (3, 64, 64)
CONV = LayerKind(kind="conv", kernel=(3, 3), padding=(1, 1), activation="silu", input_hw=(6, 5))
ENTRIES = {
    "3x3": Entry(kind=CONV, inputs=5, outputs=16),
    "stride": Entry(kind=replace(CONV, kernel=(5, 3), padding=(2, 1), stride=(2, 1)), inputs=4, outputs=3),
    "dilated": Entry(kind=replace(CONV, dilation=(2, 2), padding=(2, 2)), inputs=4, outputs=4),
    "pointwise": Entry(kind=replace(CONV, kernel=(1, 1), padding=(0, 0), activation="none"), inputs=8, outputs=8),
    "depthwise": Entry(kind=replace(CONV, kind="depthwise", group=(1, 1)), inputs=1, outputs=8),
    "grouped": Entry(kind=replace(CONV, kind="grouped", group=(2, 4)), inputs=2, outputs=12),
    "one group": Entry(kind=replace(CONV, kind="grouped", group=(2, 4)), inputs=2, outputs=4),
    "linear": Entry(kind=LayerKind(kind="linear", activation="relu"), inputs=9, outputs=7),
    "rows": Entry(kind=LayerKind(kind="linear", input_hw=(3, 1)), inputs=9, outputs=7),
    "head": Entry(kind=replace(CONV, end="last", activation="none"), inputs=8, outputs=24),
    **{name: Entry(kind=replace(CONV, activation=name), inputs=4, outputs=8) for name in ACTIVATIONS},
}


def tiny_subject() -> Subject:
    """The tiny detector of three classes at 64 pixels."""
    torch.manual_seed(0)
    model = build_model(ModelSpec.from_yaml(TINY_CFG)).eval()

    def source_of(some: nn.Module) -> Any:
        return DetectorSource(model=some, names=("a", "b", "c"))  # type: ignore[arg-type]

    return Subject(model=model, image_chw=IMAGE, trace_chw=None, source_of=source_of)
