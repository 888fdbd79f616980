"""Knowledge distillation: a student detector learns the answers of its teacher beside the labels."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.distributed import mean_over_ranks
from engine.hooks import Hook, Step
from engine.loss import DetectionLoss, LossParts, complete_iou
from engine.trainer import Trainer
from models.detector import Detector
from models.fuse import fuse
from models.load import load_model
from models.spec import ModelSpec
from utils.complexity import count_parameters
from utils.errors import ConfigError

LOGGER = logging.getLogger(__name__)

# Where the teacher's objectness is lower, its box and classes are noise: labels never taught it any there.
CONFIDENT = 0.1
_PARTS = ("box", "obj", "cls")


def load_teacher(path: str | Path, *, spec: ModelSpec, names: Sequence[str]) -> Detector:
    """Load a teacher whose raw heads mean the same as those of the student.

    Args:
        path: Any supported weights file.
        spec: Of the student.
        names: The student's classes, in order of their ids.

    Returns:
        The network in evaluation mode, batch norms folded, float32, on the CPU.

    Raises:
        CheckpointError: The file cannot be read.
        ConfigError: Its classes, strides or anchors are others.
    """
    loaded = load_model(path)
    teacher = loaded.model.spec
    pairs = {
        "classes": (loaded.names, tuple(names)),
        "strides": (teacher.strides, spec.strides),
        "anchors": (teacher.anchors, spec.anchors),
    }
    for what, (given, wanted) in pairs.items():
        if given != wanted:
            raise ConfigError(
                f"--teacher {path}: its {what} are {list(given)}, those of the student {list(wanted)}; "
                "give the dense checkpoint that the student was pruned from"
            )
    return fuse(loaded.model).requires_grad_(False)


class DistillationLoss:
    """How far a student's answers are from its teacher's: the detection loss with the teacher in place of labels.

    Hinton et al., "Distilling the Knowledge in a Neural Network", arXiv 1503.02531, train a student on a teacher's
    probabilities. Chen et al., "Learning Efficient Object Detection Models with Knowledge Distillation", NIPS 2017,
    do so for classes and boxes. Mehta and Ozturk, "Object detection at 200 Frames Per Second", arXiv 1809.00594,
    weigh both by the teacher's objectness, since most cells of a one-stage detector see background.

    Ours: classes and boxes count where the teacher's objectness is at least `CONFIDENT`, weighted by it and divided
    by the sum of the weights over all levels and processes; objectness counts in every cell. Boxes are compared by
    CIoU; probabilities by the divergence of Kullback and Leibler, which is cross entropy less what the teacher itself
    leaves open, so a perfect student has loss 0. There is no temperature: sigmoids of separate classes are soft
    already. Gains and level weights are those of the detection loss, so that strength 1 makes the teacher's word
    count about as much as the labels'.
    """

    def __init__(self, detection: DetectionLoss, *, device: torch.device) -> None:
        """Args: `detection` is the student's loss, `device` that of the heads."""
        self.gains, self.balance = detection.gains, detection.balance
        self.batch_factor, self.mean_over_ranks = detection.batch_factor, detection.mean_over_ranks
        self.anchors = detection.anchors.to(device)  # (levels, A, 2) in cells

    def __call__(self, heads: Sequence[Tensor], answers: Sequence[Tensor]) -> LossParts:
        """Compare the raw heads of the student with those of the teacher.

        Args:
            heads: Per level (B, A, H, W, 5 + nc), before the sigmoid.
            answers: The same of the teacher, without gradients.

        Returns:
            `total` is the sum of the box, objectness and class parts times the global batch size.
        """
        box, obj, cls, weight = (torch.zeros((), device=heads[0].device) for _ in range(4))
        for head, answer, anchors, balance in zip(heads, answers, self.anchors, self.balance, strict=True):
            own, taught = head.reshape(-1, head.shape[-1]), answer.reshape(-1, head.shape[-1])
            obj = obj + divergence(own[:, 4].float(), taught[:, 4].float()).mean() * balance
            level_box, level_cls, level_weight = _confident(own, taught, _anchor_of_rows(head, anchors))
            box, cls, weight = box + level_box, cls + level_cls, weight + level_weight
        weight = self.mean_over_ranks(weight)
        # The detection loss adds up a mean per level; this is one mean over all of them. Without any confident cell
        # both sums are 0, and the 1 only avoids 0 / 0.
        share = len(heads) / torch.where(weight > 0, weight, 1.0)
        parts = torch.stack((box * share * self.gains.box, obj * self.gains.obj, cls * share * self.gains.cls))
        batch = heads[0].shape[0] * self.batch_factor
        return LossParts(total=parts.sum() * batch, parts=parts.detach())


def divergence(logits: Tensor, answers: Tensor) -> Tensor:
    """Kullback-Leibler divergence of independent yes-or-no probabilities, elementwise, at least 0.

    Args:
        logits: Of the student, before the sigmoid, float32.
        answers: Of the teacher, same shape.
    """
    wanted = answers.sigmoid()
    cross_entropy = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
    return cross_entropy - F.binary_cross_entropy_with_logits(answers, wanted, reduction="none")


def _anchor_of_rows(head: Tensor, anchors: Tensor) -> Tensor:
    """The anchor (w, h) of each row of `head` (B, A, H, W, ...) flattened: (B * A * H * W, 2)."""
    batch, num_anchors, height, width = head.shape[:4]
    return anchors.view(1, num_anchors, 1, 1, 2).expand(batch, -1, height, width, -1).reshape(-1, 2)


def _confident(own: Tensor, taught: Tensor, anchors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Weighted sums over the cells where the teacher is confident: 1 - CIoU, class divergence, and the weights.

    Args:
        own: (N, 5 + nc) raw outputs of the student.
        taught: (N, 5 + nc) raw outputs of the teacher.
        anchors: (N, 2) in cells.
    """
    confidence = taught[:, 4].float().sigmoid()
    place = (confidence >= CONFIDENT).nonzero().squeeze(1)  # (M,)
    weights, sizes = confidence[place], anchors[place]
    # An embedding adds up its gradient in a fixed order; plain indexing, by whichever thread is first.
    own, taught = F.embedding(place, own).float(), taught[place].float()
    iou = complete_iou(_boxes(own, sizes), _boxes(taught, sizes))
    box = (weights * (1 - iou)).sum()
    if own.shape[1] == 6:  # a single class needs no telling apart
        return box, own[:, 5:].sum() * 0, weights.sum()
    return box, (weights * divergence(own[:, 5:], taught[:, 5:]).mean(1)).sum(), weights.sum()


def _boxes(rows: Tensor, anchors: Tensor) -> Tensor:
    """(M, 4) cx, cy relative to the cell, w, h, all in cells, of raw outputs (M, 5 + nc)."""
    values = rows[:, :4].sigmoid() * 2
    return torch.cat((values[:, :2] - 0.5, values[:, 2:] ** 2 * anchors), 1)


class DistillationHook(Hook):
    """Adds `strength` times the distillation loss to the loss of every step.

    The teacher sees the very pictures the student saw, in the same precision. It has no state to resume, draws no
    random numbers and is no part of the student, whose batch norms, averages and checkpoints never see it. Each
    process of a distributed run has a teacher of its own.
    """

    def __init__(self, teacher: Detector, *, strength: float) -> None:
        """Args: `teacher` is as `load_teacher` gives it; `strength` is positive."""
        self.teacher, self.strength = teacher, strength
        # Summed on the device: reading a number every step would make the host wait for it.
        self._sums, self._steps = torch.zeros(len(_PARTS)), 0

    def before_training(self, trainer: Trainer) -> None:
        """Bring the teacher to the student's device."""
        device = trainer.settings.device
        self.teacher = self.teacher.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        assert isinstance(trainer.loss, DetectionLoss)
        self.loss = DistillationLoss(trainer.loss, device=device)
        self._sums = self._sums.to(device)
        sizes = [count_parameters(model) / 1e6 for model in (self.teacher, trainer.model)]
        LOGGER.info(
            "distillation: teacher of %.2f M parameters, student of %.2f M, strength %g", *sizes, self.strength
        )

    def after_loss(self, trainer: Trainer, step: Step) -> Tensor:
        """The step's loss with the distillation loss added."""
        kind = trainer.settings.autocast
        with torch.no_grad(), torch.autocast(step.images.device.type, dtype=kind, enabled=kind is not None):
            answers = self.teacher(step.images)
        result = self.loss(step.outputs, answers)
        self._sums, self._steps = self._sums + result.parts, self._steps + 1
        return step.loss + self.strength * result.total

    def epoch_end(self, trainer: Trainer) -> None:
        """Report the epoch's mean parts, before strength: to the log, results.csv and TensorBoard."""
        means = mean_over_ranks(self._sums / self._steps).tolist()
        trainer.state.extra |= {f"distill/{name}_loss": value for name, value in zip(_PARTS, means, strict=True)}
        LOGGER.info("distillation: box %.4f obj %.4f cls %.4f", *means)
        self._sums, self._steps = torch.zeros_like(self._sums), 0
