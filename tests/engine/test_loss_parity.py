"""The loss and its gradient against the formulas of v5.0, written out in float64 and away from the defaults."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from engine.losses.detection import DetectionLoss, LossGains, LossParts, complete_iou
from utils.config.hyp import Hyp

TOLERANCE = 1e-5
ANCHORS = {
    8: ((10, 13), (16, 30), (33, 23)),
    16: ((30, 61), (62, 45), (59, 119)),
    32: ((116, 90), (156, 198), (373, 326)),
    64: ((436, 615), (739, 380), (925, 792)),
    128: ((500, 500), (900, 600), (600, 900)),
}
BALANCE = {
    1: (4.0,),
    2: (4.0, 1.0),
    3: (4.0, 1.0, 0.4),
    4: (4.0, 1.0, 0.25, 0.06),
    5: (4.0, 1.0, 0.25, 0.06, 0.02),
}

# -- the origin's formulas; nothing of ours is used up to the next line of this kind ------------------------------


def expected_loss(
    heads: list[Tensor], targets: np.ndarray, *, hyp: Hyp, strides: tuple[int, ...], img_size: int
) -> tuple[Tensor, Tensor]:
    """Total times batch size, and (3,) box, objectness and class loss, all float64."""
    num_classes = heads[0].shape[-1] - 5
    box, obj, cls = (torch.zeros((), dtype=torch.float64) for _ in range(3))
    for head, stride, balance in zip(heads, strides, BALANCE[len(strides)], strict=True):
        batch, num_anchors, rows, columns, _ = head.shape
        anchors = np.array(ANCHORS[stride], np.float32) / np.float32(stride)
        objectness = torch.zeros(batch, num_anchors, rows, columns, dtype=torch.float64)
        box_terms, cls_terms = [], []
        for match in expected_matches(targets, (rows, columns), anchors, hyp.anchor_t):
            image, anchor, row, column, class_id, *true_box = match
            out = head[image, anchor, row, column]
            centre = 2 * torch.sigmoid(out[:2]) - 0.5
            size = (2 * torch.sigmoid(out[2:4])) ** 2 * torch.from_numpy(anchors[anchor].astype(np.float64))
            ciou = expected_ciou(torch.cat((centre, size)), torch.tensor(true_box, dtype=torch.float64))
            box_terms.append(1 - ciou)
            objectness[image, anchor, row, column] = max(ciou.item(), 0.0)  # a later match overwrites an earlier one
            wanted = torch.full((num_classes,), 0.5 * hyp.label_smoothing, dtype=torch.float64)
            wanted[class_id] = 1 - 0.5 * hyp.label_smoothing
            cls_terms.append(expected_entropy(out[5:], wanted, hyp.cls_pw, hyp.fl_gamma).mean())
        if box_terms:
            box = box + torch.stack(box_terms).mean()
        if cls_terms and num_classes > 1:
            cls = cls + torch.stack(cls_terms).mean()
        obj = obj + balance * expected_entropy(head[..., 4], objectness, hyp.obj_pw, hyp.fl_gamma).mean()
    levels = 3 / len(strides)
    gains = (hyp.box * levels, hyp.obj * (img_size / 640) ** 2 * levels, hyp.cls * num_classes / 80 * levels)
    parts = torch.stack([part * gain for part, gain in zip((box, obj, cls), gains, strict=True)])
    return parts.sum() * heads[0].shape[0], parts.detach()


def expected_matches(
    targets: np.ndarray, grid: tuple[int, int], anchors: np.ndarray, anchor_t: float
) -> list[tuple[Any, ...]]:
    """Rows (image, anchor, row, column, class, x, y, w, h) in v5.0's order; places in float32, as there."""
    rows, columns = grid
    half, found = np.float32(0.5), []
    for step in ("centre", "left", "up", "right", "down"):
        for anchor, shape in enumerate(anchors):
            for image, class_id, *place in targets:
                x, y, w, h = (value * np.float32(n) for value, n in zip(place, (columns, rows) * 2, strict=True))
                if not max(w / shape[0], shape[0] / w, h / shape[1], shape[1] / h) < anchor_t:
                    continue
                from_right, from_bottom = np.float32(columns) - x, np.float32(rows) - y
                applies, at_x, at_y = {
                    "centre": (True, x, y),
                    "left": (x % 1 < half and x > 1, x - half, y),
                    "up": (y % 1 < half and y > 1, x, y - half),
                    "right": (from_right % 1 < half and from_right > 1, x + half, y),
                    "down": (from_bottom % 1 < half and from_bottom > 1, x, y + half),
                }[step]
                if applies:
                    column, row = min(int(at_x), columns - 1), min(int(at_y), rows - 1)
                    found.append((int(image), anchor, row, column, int(class_id), x - column, y - row, w, h))
    return found


def expected_ciou(box: Tensor, true: Tensor) -> Tensor:
    """CIoU of two boxes (4,) cx, cy, w, h."""
    (x1, y1, w1, h1), (x2, y2, w2, h2) = box.unbind(), true.unbind()
    left, right = torch.stack((x1 - w1 / 2, x2 - w2 / 2)), torch.stack((x1 + w1 / 2, x2 + w2 / 2))
    top, bottom = torch.stack((y1 - h1 / 2, y2 - h2 / 2)), torch.stack((y1 + h1 / 2, y2 + h2 / 2))
    inner = (right.min() - left.max()).clamp(min=0) * (bottom.min() - top.max()).clamp(min=0)
    iou = inner / (w1 * (h1 + 1e-7) + w2 * (h2 + 1e-7) - inner + 1e-7)
    diagonal = (right.max() - left.min()) ** 2 + (bottom.max() - top.min()) ** 2 + 1e-7
    v = 4 / math.pi**2 * (torch.atan(w2 / (h2 + 1e-7)) - torch.atan(w1 / (h1 + 1e-7))) ** 2
    alpha = (v / (1 - iou + v + 1e-7)).detach()
    return iou - ((x1 - x2) ** 2 + (y1 - y2) ** 2) / diagonal - alpha * v


def expected_entropy(logits: Tensor, wanted: Tensor, positive_weight: float, gamma: float) -> Tensor:
    """Binary cross entropy of each element, inside the focal loss where gamma is more than 0."""
    loss = -(positive_weight * wanted * logsigmoid(logits) + (1 - wanted) * logsigmoid(-logits))
    if not gamma > 0:
        return loss
    p = torch.sigmoid(logits)
    p_t = wanted * p + (1 - wanted) * (1 - p)
    return loss * (0.25 * wanted + 0.75 * (1 - wanted)) * (1 - p_t) ** gamma


# -- the comparison ------------------------------------------------------------------------------------------------


def our_loss(
    heads: list[Tensor], targets: np.ndarray, *, hyp: Hyp, strides: tuple[int, ...], img_size: int
) -> LossParts:
    num_classes = heads[0].shape[-1] - 5
    gains = LossGains.from_hyp(hyp, num_classes=num_classes, num_levels=len(strides), img_size=img_size)
    anchors = torch.tensor([ANCHORS[stride] for stride in strides], dtype=torch.float32)
    return DetectionLoss(gains=gains, anchors=anchors, strides=strides)(heads, torch.from_numpy(targets))


def odd_targets(*, images: int, num_classes: int, cells: int, seed: int) -> np.ndarray:
    """(N, 6) float32 boxes of all sizes: anywhere, on borders of cells and of the image, several in one cell."""
    rng = np.random.default_rng(seed)
    anywhere = rng.uniform(0.02, 0.98, (12, 2))
    on_cells = rng.integers(0, 2 * cells + 1, (12, 2)) / (2 * cells)  # corners and middles of cells
    on_image = np.array([(0, 0), (1, 1), (0, 1), (1, 0), (0.5, 0), (0, 0.5), (1, 0.5), (0.5, 1)])
    together = np.repeat(rng.uniform(0.3, 0.7, (2, 2)), 3, axis=0)
    centres = np.concatenate((anywhere, on_cells, on_image, together))
    sizes = np.exp(rng.uniform(np.log(0.02), np.log(0.95), (len(centres), 2)))
    sizes[-6:] = 0.1 * np.exp(rng.uniform(-0.1, 0.1, (6, 2)))  # alike, so that they match one anchor
    who = np.stack((rng.integers(0, images, len(centres)), rng.integers(0, num_classes, len(centres))), 1)
    who[-6:, 0] = 0
    return np.concatenate((who, centres, sizes), 1).astype(np.float32)


def assert_parity(
    hyp: Hyp, *, strides: tuple[int, ...] = (8, 16, 32), num_classes: int = 3, img_size: int = 416, seed: int = 0
) -> None:
    """Compare value, parts and the gradient of each head."""
    generator = torch.Generator().manual_seed(seed)
    sides = [img_size // stride for stride in strides]
    ours = [2 * torch.randn(2, 3, side, side, 5 + num_classes, generator=generator) for side in sides]
    for head in ours:
        head[..., 4] -= 2  # most of it background, as in training
    theirs = [head.double().requires_grad_() for head in ours]
    ours = [head.requires_grad_() for head in ours]
    targets = odd_targets(images=2, num_classes=num_classes, cells=sides[0], seed=seed)
    setting = {"hyp": hyp, "strides": strides, "img_size": img_size}

    result = our_loss(ours, targets, **setting)
    total, parts = expected_loss(theirs, targets, **setting)
    result.total.backward()
    total.backward()

    assert parts[0] > 0, "some box matches"
    assert result.total.item() == pytest.approx(total.item(), rel=TOLERANCE)
    assert result.parts.tolist() == pytest.approx(parts.tolist(), rel=TOLERANCE)
    for stride, mine, true in zip(strides, ours, theirs, strict=True):
        assert mine.grad is not None
        assert true.grad is not None
        difference = (mine.grad.double() - true.grad).norm() / true.grad.norm()
        assert difference < TOLERANCE, f"gradient of the head of stride {stride}"


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"fl_gamma": 1.5},
        {"fl_gamma": 0.5},
        {"obj_pw": 0.911},
        {"cls_pw": 0.631},
        {"label_smoothing": 0.1},
        {"anchor_t": 2.91},
        {"anchor_t": 8.0},
        {"box": 0.0296, "obj": 0.301, "cls": 0.243},
        {"fl_gamma": 1.5, "label_smoothing": 0.1, "obj_pw": 0.911, "cls_pw": 0.631},
        {"fl_gamma": 2.0, "label_smoothing": 0.3, "obj_pw": 3.0, "cls_pw": 2.0, "anchor_t": 3.0},
    ],
    ids=lambda changes: " ".join(f"{name}={value}" for name, value in changes.items()) or "defaults",
)
def test_loss_and_gradient_of_each_head_follow_v5(changes: dict[str, float]) -> None:
    assert_parity(replace(Hyp(), **changes))


@pytest.mark.parametrize("num_heads", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("gamma", [0.0, 1.5])
def test_balance_and_gains_of_any_number_of_heads_follow_v5(num_heads: int, gamma: float) -> None:
    strides = tuple(ANCHORS)[:num_heads]
    assert_parity(Hyp(fl_gamma=gamma), strides=strides, img_size=256, seed=num_heads)


@pytest.mark.parametrize("img_size", [192, 320, 640])
def test_gain_of_objectness_follows_the_image_size(img_size: int) -> None:
    assert_parity(Hyp(), img_size=img_size)


@pytest.mark.parametrize("seed", range(5))
def test_boxes_on_borders_and_in_shared_cells_follow_v5(seed: int) -> None:
    assert_parity(Hyp(), img_size=160, seed=seed)


@pytest.mark.parametrize("gamma", [0.0, 1.5])
def test_single_class_has_no_class_loss(gamma: float) -> None:
    hyp = Hyp(fl_gamma=gamma, label_smoothing=0.1, cls_pw=0.631)
    assert_parity(hyp, num_classes=1)
    heads = [torch.randn(1, 3, side, side, 6, requires_grad=True) for side in (20, 10, 5)]
    result = our_loss(
        heads,
        odd_targets(images=1, num_classes=1, cells=20, seed=0),
        hyp=hyp,
        strides=(8, 16, 32),
        img_size=160,
    )
    result.total.backward()
    assert result.parts[2] == 0
    assert all(head.grad is not None and not head.grad[..., 5].any() for head in heads)


def test_focal_factor_of_a_soft_target_counts_both_ways_to_miss() -> None:
    # t = .75, p = .5: 1 - p_t = .75 * .5 + .25 * .5 = .5; alpha = .75 * .25 + .25 * .75 = .375; BCE = ln 2.
    loss = expected_entropy(torch.zeros(1, dtype=torch.float64), torch.tensor([0.75]), 1.0, 2.0)
    assert loss.item() == pytest.approx(math.log(2) * 0.375 * 0.25)


def test_nothing_is_balanced_anew_from_batch_to_batch() -> None:
    gains = LossGains.from_hyp(Hyp(), num_classes=3, num_levels=3, img_size=160)
    anchors = torch.tensor([ANCHORS[stride] for stride in (8, 16, 32)], dtype=torch.float32)
    loss = DetectionLoss(gains=gains, anchors=anchors, strides=(8, 16, 32))
    heads = [torch.randn(2, 3, side, side, 8) for side in (20, 10, 5)]
    targets = torch.from_numpy(odd_targets(images=2, num_classes=3, cells=20, seed=0))
    totals = [loss(heads, targets).total.item() for _ in range(5)]
    assert len(set(totals)) == 1
    assert tuple(loss.balance) == BALANCE[3]


def test_iou_t_changes_nothing() -> None:
    low, high = (
        LossGains.from_hyp(Hyp(iou_t=iou_t), num_classes=3, num_levels=3, img_size=320) for iou_t in (0.0, 0.9)
    )
    assert low == high


@pytest.mark.parametrize("gamma", [0.5, 1.5])
def test_certain_predictions_keep_the_focal_gradient_finite(gamma: float) -> None:
    heads = [torch.full((1, 3, side, side, 8), -200.0, requires_grad=True) for side in (20, 10, 5)]
    result = our_loss(
        heads,
        odd_targets(images=1, num_classes=3, cells=20, seed=0),
        hyp=Hyp(fl_gamma=gamma),
        strides=(8, 16, 32),
        img_size=160,
    )
    result.total.backward()
    assert math.isfinite(result.total.item())
    assert all(head.grad is not None and head.grad.isfinite().all() for head in heads)


@pytest.mark.parametrize("size", [1.0, 1e-2, 1e-3, 1e-4])
def test_complete_iou_of_small_boxes_has_the_eps_of_v5(size: float) -> None:
    box, true = torch.tensor([0.5, 0.5, size, 2 * size]), torch.tensor([0.5 + size / 4, 0.5, 1.5 * size, size])
    ours = complete_iou(box[None], true[None]).item()
    assert ours == pytest.approx(expected_ciou(box.double(), true.double()).item(), rel=1e-3)
