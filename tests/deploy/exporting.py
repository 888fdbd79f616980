"""Networks to export, and the reference that their artefacts are compared with."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cut_oracle import cuttable_ids
from mask_oracle import lively
from tiny import TINY_CFG
from torch import Tensor

from deploy.settings import ExportSettings
from models.detector import Detector, build_model
from models.fuse import fuse
from models.spec import ModelSpec
from pruning.channels.graph import ChannelGraph
from pruning.surgery.cut import cut


def network(kind: str) -> Detector:
    """`tiny` or a shipped YAML, such as `pruned yolov5n` without many channels; statistics as after training."""
    torch.manual_seed(0)
    name = kind.removeprefix("pruned ")
    cfg = TINY_CFG if name == "tiny" else name
    model = lively(build_model(ModelSpec.from_yaml(cfg, num_classes=3)))
    return (pruned(model) if kind != name else model).float()


def pruned(model: Detector) -> Detector:
    """Without about four of ten channels."""
    graph = ChannelGraph.of(model)
    smaller = cut(model, graph, cuttable_ids(graph, seed=1))
    assert isinstance(smaller, Detector)
    return smaller


def export_arguments(model: Detector, **settings: Any) -> dict[str, Any]:
    """Keyword arguments of every export function."""
    names = [f"class {index}" for index in range(model.spec.num_classes)]
    hw = (model.max_stride * 2, model.max_stride * 3)
    return {
        "names": names,
        "source_sha256": "0" * 64,
        "settings": ExportSettings(**{"image_hw": hw, **settings}),
    }


def images_of(hw: tuple[int, int], *, count: int = 1) -> Tensor:
    """(count, 3, H, W) in [0, 1]."""
    return torch.from_numpy(np.random.default_rng(3).random((count, 3, *hw), dtype=np.float32))


@torch.inference_mode()
def head_error(heads: Sequence[Tensor], model: Detector, images: Tensor) -> float:
    """Largest difference from the fused float32 model, relative to the largest number of the head."""
    expected = fuse(model)(images)
    assert [head.shape for head in heads] == [head.shape for head in expected]
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(heads, expected, strict=True))


def cut_off(path: Path) -> None:
    """Leave the first two thirds of a file."""
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 2 // 3])
