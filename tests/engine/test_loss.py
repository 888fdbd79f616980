"""The loss and its assignment, against hand-computed numbers and the golden file of v5.0."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from engine.losses.assign import assign_targets
from engine.losses.detection import DetectionLoss, LossGains, _last_at, complete_iou
from utils.config.hyp import Hyp

ANCHORS = torch.tensor(
    [
        [[10.0, 13.0], [16.0, 30.0], [33.0, 23.0]],
        [[30.0, 61.0], [62.0, 45.0], [59.0, 119.0]],
        [[116.0, 90.0], [156.0, 198.0], [373.0, 326.0]],
    ]
)


def test_loss_and_gradients_equal_the_golden_file(shared: Path) -> None:
    arrays = np.load(shared / "golden/yolov5s_v5_loss.npz")
    expected = json.loads((shared / "golden/yolov5s_v5_loss.json").read_text())
    hyp = expected["hyp"]
    names = ("box", "obj", "cls", "cls_pw", "obj_pw", "anchor_t", "fl_gamma", "label_smoothing")
    loss = DetectionLoss(gains=LossGains(**{name: hyp[name] for name in names}), anchors=ANCHORS, strides=(8, 16, 32))
    heads = [torch.from_numpy(arrays[name]).requires_grad_() for name in ("p3", "p4", "p5")]

    result = loss(heads, torch.from_numpy(arrays["targets"]))
    result.total.backward()

    assert result.total.item() == pytest.approx(expected["loss_times_batch"], rel=1e-4)
    assert result.parts.tolist() == pytest.approx([expected[name] for name in ("box", "obj", "cls")], rel=1e-4)
    norms = [head.grad.norm().item() for head in heads if head.grad is not None]
    assert norms == pytest.approx(expected["grad_norm"], rel=1e-4)


def test_gains_of_the_golden_run_come_from_the_default_hyper_parameters() -> None:
    gains = LossGains.from_hyp(Hyp(), num_classes=80, num_levels=3, img_size=320)
    assert (gains.box, gains.obj, gains.cls) == (0.05, 0.25, 0.5)


def test_box_in_the_middle_of_the_grid_matches_its_cell_and_two_neighbours() -> None:
    # Centre (2.3, 2.6) in cells of a 4 x 4 grid: left and lower neighbour are nearest.
    targets = torch.tensor([[0, 1, 2.3 / 4, 2.6 / 4, 0.25, 0.25]])
    (level,) = assign_targets(targets, grids=[(4, 4)], anchors=torch.tensor([[[1.0, 1.0]]]), anchor_t=4.0)
    cells = sorted(zip(level.column.tolist(), level.row.tolist(), strict=True))
    assert cells == [(1, 2), (2, 2), (2, 3)]
    assert level.classes.tolist() == [1, 1, 1]
    own = level.column.tolist().index(2)
    assert level.boxes[own].tolist() == pytest.approx([0.3, 0.6, 1.0, 1.0], abs=1e-5)


def test_box_at_the_border_matches_only_cells_that_exist() -> None:
    targets = torch.tensor([[0, 0, 0.05, 0.05, 0.25, 0.25]])
    (level,) = assign_targets(targets, grids=[(4, 4)], anchors=torch.tensor([[[1.0, 1.0]]]), anchor_t=4.0)
    assert (level.column.tolist(), level.row.tolist()) == ([0], [0])


def test_anchor_of_another_shape_does_not_match() -> None:
    targets = torch.tensor([[0, 0, 0.5, 0.5, 1.0, 1.0]])
    anchors = torch.tensor([[[1.0, 4.0], [1.1, 4.0]]])  # the box is 4 x 4 cells: ratios 4 and 3.6
    (level,) = assign_targets(targets, grids=[(4, 4)], anchors=anchors, anchor_t=4.0)
    assert set(level.anchor.tolist()) == {1}


def test_of_two_boxes_in_one_cell_the_last_gives_the_objectness() -> None:
    found = _last_at(torch.tensor([2, 0, 2]), torch.tensor([0.9, 0.5, 0.1]), size=4)
    assert found.tolist() == pytest.approx([0.5, 0.0, 0.1, 0.0])


def test_loss_is_the_same_bit_for_bit_on_several_threads() -> None:
    torch.manual_seed(0)
    gains = LossGains.from_hyp(Hyp(), num_classes=3, num_levels=3, img_size=320)
    loss = DetectionLoss(gains=gains, anchors=ANCHORS, strides=(8, 16, 32))
    heads = [torch.randn(16, 3, n, n, 8).requires_grad_() for n in (40, 20, 10)]
    targets = torch.rand(4000, 6) * torch.tensor([16, 3, 1, 1, 0.3, 0.3])
    threads = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        totals = [loss(heads, targets).total for _ in range(10)]
        gradients = [torch.autograd.grad(total, heads) for total in totals]
    finally:
        torch.set_num_threads(threads)
    assert len({total.item() for total in totals}) == 1
    assert all(torch.equal(a, b) for again in gradients for a, b in zip(again, gradients[0], strict=True))


def test_loss_without_any_box_is_objectness_alone() -> None:
    loss = DetectionLoss(
        gains=LossGains.from_hyp(Hyp(), num_classes=2, num_levels=3, img_size=64),
        anchors=ANCHORS,
        strides=(8, 16, 32),
    )
    heads = [torch.zeros(1, 3, n, n, 7, requires_grad=True) for n in (8, 4, 2)]
    result = loss(heads, torch.zeros(0, 6))
    box, obj, cls = result.parts.tolist()
    # BCE of logit 0 is ln 2; balance 4 + 1 + .4; gain (64 / 640)^2.
    assert (box, cls) == (0.0, 0.0)
    assert obj == pytest.approx(0.6931472 * 5.4 * 0.01, rel=1e-5)


def test_complete_iou_of_equal_boxes_is_one_and_of_distant_ones_negative() -> None:
    boxes = torch.tensor([[1.0, 1.0, 2.0, 2.0], [0.0, 0.0, 1.0, 1.0]])
    other = torch.tensor([[1.0, 1.0, 2.0, 2.0], [3.0, 0.0, 1.0, 1.0]])
    equal, distant = complete_iou(boxes, other).tolist()
    assert equal == pytest.approx(1.0)
    # IoU 0; centre distance 3, enclosing box 4 x 1: -9 / 17; equal shapes.
    assert distant == pytest.approx(-9 / 17)


def test_focal_loss_weakens_easy_examples() -> None:
    plain = LossGains.from_hyp(Hyp(), num_classes=2, num_levels=3, img_size=640)
    focal = LossGains.from_hyp(Hyp(fl_gamma=1.5), num_classes=2, num_levels=3, img_size=640)
    heads = [torch.full((1, 3, n, n, 7), -4.0) for n in (8, 4, 2)]
    totals = [
        DetectionLoss(gains=gains, anchors=ANCHORS, strides=(8, 16, 32))(heads, torch.zeros(0, 6)).total.item()
        for gains in (plain, focal)
    ]
    assert totals[1] < totals[0] / 100
