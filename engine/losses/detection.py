"""The detection loss of YOLOv5 v5.0: CIoU boxes, IoU-weighted objectness, class cross entropy."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.losses.assign import LevelTargets, assign_targets
from utils.config.hyp import Hyp
from utils.device import send

# Weight of each head's objectness loss, from fine to coarse.
_BALANCE = {3: (4.0, 1.0, 0.4)}
_BALANCE_OTHER = (4.0, 1.0, 0.25, 0.06, 0.02)
_FOCAL_ALPHA = 0.25


@dataclass(frozen=True, kw_only=True)
class LossParts:
    """A loss and its parts, on the device of the outputs.

    Attributes:
        total: Scalar to differentiate; for detectors the sum of the parts times the global batch size.
        parts: Detached parts (P,) to report; for detectors box, objectness and class loss.
    """

    total: Tensor
    parts: Tensor


@dataclass(frozen=True, kw_only=True)
class LossGains:
    """Gains and other settings of the loss, scaled to the network."""

    box: float
    obj: float
    cls: float
    cls_pw: float
    obj_pw: float
    anchor_t: float
    fl_gamma: float
    label_smoothing: float

    @classmethod
    def from_hyp(cls, hyp: Hyp, *, num_classes: int, num_levels: int, img_size: int) -> LossGains:
        """Scale the gains of `hyp` (meant for 80 classes, 3 heads, 640 px) to this network."""
        levels = 3 / num_levels
        return cls(
            box=hyp.box * levels,
            obj=hyp.obj * (img_size / 640) ** 2 * levels,
            cls=hyp.cls * num_classes / 80 * levels,
            cls_pw=hyp.cls_pw,
            obj_pw=hyp.obj_pw,
            anchor_t=hyp.anchor_t,
            fl_gamma=hyp.fl_gamma,
            label_smoothing=hyp.label_smoothing,
        )


def same(value: Tensor) -> Tensor:
    """Return `value`, which is its mean over a single process."""
    return value


class DetectionLoss:
    """The loss of raw heads against targets.

    Means over matches are taken over all processes of a distributed run, so that training on two processes follows
    the same curve as training on one with the same global batch.
    """

    names = ("box", "obj", "cls")

    def __init__(
        self,
        *,
        gains: LossGains,
        anchors: Tensor,
        strides: Sequence[int],
        batch_factor: int = 1,
        mean_over_ranks: Callable[[Tensor], Tensor] = same,
    ) -> None:
        """Create the loss of a network.

        Args:
            gains: Gains of the parts and other settings.
            anchors: Anchors (levels, A, 2), in pixels.
            strides: Pixels per cell of each level.
            batch_factor: Images of the global batch per image of the heads.
            mean_over_ranks: Function that averages a tensor over all processes.
        """
        self.gains = gains
        self.batch_factor = batch_factor
        self.mean_over_ranks = mean_over_ranks
        stride = torch.tensor(strides, dtype=torch.float32).view(-1, 1, 1)
        self.anchors = anchors.detach().float().cpu() / stride  # in cells
        self.balance = _BALANCE.get(len(strides), _BALANCE_OTHER[: len(strides)])
        self._anchors_on: dict[torch.device, Tensor] = {}

    def __call__(self, heads: Sequence[Tensor], targets: Tensor) -> LossParts:
        """Compute the loss of raw heads against targets.

        Args:
            heads: Raw outputs (B, A, H, W, 5 + nc) of each level, before the sigmoid.
            targets: Rows (N, 6) of image, class, cx, cy, w, h, normalised to [0, 1], on the CPU.
        """
        device = heads[0].device
        grids = [(head.shape[2], head.shape[3]) for head in heads]
        levels = assign_targets(targets, grids=grids, anchors=self.anchors, anchor_t=self.gains.anchor_t)
        counts = send(torch.tensor([float(len(level)) for level in levels]), device)
        # A level without matches adds nothing; the 1 only avoids 0 / 0.
        means = self.mean_over_ranks(counts)
        means = torch.where(means > 0, means, 1.0)

        box, obj, cls = (torch.zeros((), device=device) for _ in range(3))
        anchors = self._anchors_for(device)
        for i, (head, found) in enumerate(zip(heads, levels, strict=True)):
            level = found.to(device)
            rows, place = head.reshape(-1, head.shape[-1]), level.place_in(head)
            level_box, iou, level_cls = self._matched(rows, place, level, anchors[i])
            box = box + level_box / means[i]
            cls = cls + level_cls / means[i]
            obj = obj + self._objectness(rows[:, 4], place, iou) * self.balance[i]
        parts = torch.stack((box * self.gains.box, obj * self.gains.obj, cls * self.gains.cls))
        batch = heads[0].shape[0] * self.batch_factor
        return LossParts(total=parts.sum() * batch, parts=parts.detach())

    def _anchors_for(self, device: torch.device) -> Tensor:
        if device not in self._anchors_on:
            self._anchors_on[device] = self.anchors.to(device)
        return self._anchors_on[device]

    def _matched(
        self, rows: Tensor, place: Tensor, level: LevelTargets, anchors: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the sum over the M matches of 1 - CIoU, the detached CIoU (M,), and the sum of the class loss."""
        # An embedding sums its gradient in a fixed order; plain indexing sums in the order of the threads.
        prediction = F.embedding(place, rows).float()
        xy = prediction[:, :2].sigmoid() * 2 - 0.5
        wh = (prediction[:, 2:4].sigmoid() * 2) ** 2 * anchors[level.anchor]
        iou = complete_iou(torch.cat((xy, wh), 1), level.boxes)
        return (1 - iou).sum(), iou.detach(), self._classes(prediction[:, 5:], level.classes)

    def _classes(self, logits: Tensor, classes: Tensor) -> Tensor:
        """Return the class loss, averaged over classes and summed over matches; 0 for a single class."""
        num_classes = logits.shape[1]
        if num_classes == 1:
            return logits.sum() * 0
        smoothing = self.gains.label_smoothing
        wanted = torch.full_like(logits, smoothing / 2)
        wanted.scatter_(1, classes[:, None], 1 - smoothing / 2)
        return self._cross_entropy(logits, wanted, self.gains.cls_pw).sum() / num_classes

    def _objectness(self, logits: Tensor, place: Tensor, iou: Tensor) -> Tensor:
        wanted = _last_at(place, iou.clamp(0), size=len(logits))
        return self._cross_entropy(logits.float(), wanted, self.gains.obj_pw).mean()

    def _cross_entropy(self, logits: Tensor, wanted: Tensor, positive_weight: float) -> Tensor:
        weight = None if positive_weight == 1 else torch.full((), positive_weight, device=logits.device)
        loss = F.binary_cross_entropy_with_logits(logits, wanted, pos_weight=weight, reduction="none")
        if self.gains.fl_gamma <= 0:
            return loss
        return loss * _focal_factor(logits, wanted, gamma=self.gains.fl_gamma)


def _focal_factor(logits: Tensor, wanted: Tensor, *, gamma: float) -> Tensor:
    """Return the focal weight of each cross entropy, alpha * (1 - p_t)^gamma, for probability p and target t.

    Lin et al., "Focal Loss for Dense Object Detection", ICCV 2017, for hard targets. v5.0 extends it to soft ones by
    p_t = t p + (1 - t) (1 - p), so a probability of 0.5 for a target of 0.5 still weighs 0.5^gamma.

    Args:
        logits: Logits, before the sigmoid.
        wanted: Targets in [0, 1], of the same shape.
        gamma: Exponent, more than 0.

    Returns:
        Weights of the same shape.
    """
    # Both p and 1 - p come from a sigmoid: computed as 1 - p it soon rounds to 0, where a root has no gradient.
    miss = wanted * torch.sigmoid(-logits) + (1 - wanted) * torch.sigmoid(logits)
    alpha = wanted * _FOCAL_ALPHA + (1 - wanted) * (1 - _FOCAL_ALPHA)
    return alpha * miss.clamp(min=torch.finfo(miss.dtype).tiny) ** gamma


def _last_at(place: Tensor, values: Tensor, *, size: int) -> Tensor:
    """Return zeros (size,) with `values` (M,) at `place` (M,); of several values for one place the last one wins.

    With plain indexing the thread that writes last wins, so that runs would not be reproducible.
    """
    order = torch.arange(1, len(place) + 1, device=place.device)
    last = torch.zeros(size, dtype=torch.int64, device=place.device)
    last.scatter_reduce_(0, place, order, "amax")
    return torch.cat((values.new_zeros(1), values))[last]


def complete_iou(first: Tensor, second: Tensor, *, eps: float = 1e-7) -> Tensor:
    """Compute the CIoU of each pair of boxes.

    Zheng et al., "Distance-IoU Loss", AAAI 2020: IoU less the squared centre distance over the squared diagonal of
    the enclosing box, less the weighted difference of aspect ratios.

    Args:
        first: Boxes (M, 4) as cx, cy, w, h.
        second: Boxes (M, 4) in the same format and unit.
        eps: Small value that keeps quotients finite; added to heights, union and diagonal, as in v5.0.

    Returns:
        CIoU (M,), at most 1.
    """
    half1, half2 = first[:, 2:] / 2, second[:, 2:] / 2
    low1, high1 = first[:, :2] - half1, first[:, :2] + half1
    low2, high2 = second[:, :2] - half2, second[:, :2] + half2
    inner = (torch.minimum(high1, high2) - torch.maximum(low1, low2)).clamp(0).prod(1)
    outer = torch.maximum(high1, high2) - torch.minimum(low1, low2)
    height1, height2 = first[:, 3] + eps, second[:, 3] + eps
    iou = inner / (first[:, 2] * height1 + second[:, 2] * height2 - inner + eps)

    distance = (first[:, :2] - second[:, :2]).square().sum(1) / (outer.square().sum(1) + eps)
    angle1, angle2 = torch.atan(first[:, 2] / height1), torch.atan(second[:, 2] / height2)
    aspect = 4 / math.pi**2 * (angle2 - angle1).square()
    with torch.no_grad():
        weight = aspect / (1 - iou + aspect + eps)
    return iou - distance - weight * aspect
