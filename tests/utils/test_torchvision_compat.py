"""torchvision imports whether or not its compiled part loads, and NMS gives the same either way."""

from __future__ import annotations

import importlib

import numpy as np
import pytest
import torch

from utils.boxes import nms
from utils.boxes.nms import non_max_suppression
from utils.boxes.torchvision_compat import compiled_nms, import_torchvision


def test_python_parts_of_torchvision_work() -> None:
    torchvision = import_torchvision()
    iou = torchvision.ops.box_iou(torch.tensor([[0.0, 0, 2, 2]]), torch.tensor([[1.0, 0, 3, 2]]))
    assert iou.item() == np.float32(1 / 3)
    assert import_torchvision() is torchvision


def test_compiled_nms_is_there_exactly_where_the_extension_is() -> None:
    extension = importlib.import_module("torchvision.extension")
    assert (compiled_nms() is not None) == extension._has_ops()


def test_compiled_operator_is_used_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """The operator gives indices, best first; only the first `max_det` are taken."""
    seen: list[float] = []

    def operator(boxes: torch.Tensor, scores: torch.Tensor, iou: float) -> torch.Tensor:
        seen.append(iou)
        return torch.tensor([1, 0])

    monkeypatch.setattr(nms, "compiled_nms", lambda: operator)
    image = torch.tensor([[[50.0, 50, 20, 20, 0.9, 1], [150.0, 50, 20, 20, 0.8, 1]]])
    (found,) = non_max_suppression(image, iou=0.6, max_det=1)
    assert seen == [0.6]
    np.testing.assert_allclose(found[:, 4].numpy(), [0.8])
