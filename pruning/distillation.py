"""Knowledge distillation: a student detector learns from its teacher's outputs as well as from the labels."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.losses.detection import DetectionLoss, LossParts, complete_iou
from engine.training.distributed import mean_over_ranks
from engine.training.hooks import Hook, Step
from engine.training.trainer import Trainer
from engine.training.watch import named_losses
from models.complexity import count_parameters
from models.detector import Detector
from models.load import load_model
from models.spec import ModelSpec
from pruning.features import FeatureLoss, Followed
from utils.errors import ConfigError

LOGGER = logging.getLogger(__name__)

# Below this objectness the teacher's box and classes are noise: it was never trained on labels there.
CONFIDENT = 0.1
# Softens the probabilities of classifiers; Hinton et al. try 1 to 20.
_TEMPERATURE = 4.0


def load_teacher(path: str | Path, *, spec: ModelSpec, names: Sequence[str]) -> Detector:
    """Load a teacher whose raw heads mean the same as those of the student.

    Args:
        path: Any supported weights file.
        spec: Specification of the student.
        names: Class names of the student, in order of their ids.

    Returns:
        The network in evaluation mode, float32, on the CPU.

    Raises:
        CheckpointError: The file cannot be read.
        ConfigError: Its classes, strides or anchors differ from the student's.
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
                f"--teacher {path}: got {what} {list(given)}, expected the student's {list(wanted)}; "
                "give the dense checkpoint that the student was pruned from"
            )
    return loaded.model.eval().requires_grad_(False)


class DetectorDistillation:
    """Distance of a student's outputs from its teacher's: the detection loss with the teacher in place of labels.

    Hinton et al., "Distilling the Knowledge in a Neural Network", arXiv 1503.02531, train a student on a teacher's
    probabilities. Chen et al., "Learning Efficient Object Detection Models with Knowledge Distillation", NIPS 2017,
    do so for classes and boxes. Mehta and Ozturk, "Object detection at 200 Frames Per Second", arXiv 1809.00594,
    weigh both by the teacher's objectness, since most cells of a one-stage detector see background.

    Ours: classes and boxes count where the teacher's objectness is at least `CONFIDENT`, weighted by it and divided
    by the sum of the weights over all levels and processes; objectness counts in every cell. Boxes are compared by
    CIoU, probabilities by the Kullback-Leibler divergence, which is the cross entropy minus the teacher's own
    entropy, so a perfect student has loss 0. There is no temperature: sigmoids of separate classes are soft already.
    Gains and level weights are those of the detection loss, so that with strength 1 the teacher counts about as
    much as the labels.
    """

    names = ("box", "obj", "cls")

    def __init__(self, detection: DetectionLoss, *, device: torch.device) -> None:
        """Take gains, level weights and anchors from the student's loss `detection`; heads are on `device`."""
        self.gains, self.balance = detection.gains, detection.balance
        self.batch_factor, self.mean_over_ranks = detection.batch_factor, detection.mean_over_ranks
        self.anchors = detection.anchors.to(device)  # (levels, A, 2) in cells

    @classmethod
    def of(cls, trainer: Trainer) -> DetectorDistillation:
        """Build it from the loss and the device of a training."""
        assert isinstance(trainer.loss, DetectionLoss)
        return cls(trainer.loss, device=trainer.settings.device)

    def __call__(self, heads: Sequence[Tensor], answers: Sequence[Tensor]) -> LossParts:
        """Compare the raw heads of the student with those of the teacher.

        Args:
            heads: Per level (B, A, H, W, 5 + nc), before the sigmoid.
            answers: Raw heads of the teacher, same shapes, without gradients.

        Returns:
            Loss whose `total` is the sum of the box, objectness and class parts times the global batch size.
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
        return LossParts(total=parts.sum() * self.weight(heads), parts=parts.detach())

    def weight(self, heads: Sequence[Tensor]) -> float:
        """Return the global batch size, which the detection loss is multiplied by."""
        return heads[0].shape[0] * self.batch_factor


def divergence(logits: Tensor, answers: Tensor) -> Tensor:
    """Compute the elementwise Kullback-Leibler divergence of independent binary probabilities, at least 0.

    Args:
        logits: Logits of the student, before the sigmoid, float32.
        answers: Logits of the teacher, same shape.
    """
    wanted = answers.sigmoid()
    cross_entropy = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
    return cross_entropy - F.binary_cross_entropy_with_logits(answers, wanted, reduction="none")


def _anchor_of_rows(head: Tensor, anchors: Tensor) -> Tensor:
    """Return the anchor (w, h) of each row of the flattened `head` (B, A, H, W, ...): (B * A * H * W, 2)."""
    batch, num_anchors, height, width = head.shape[:4]
    return anchors.view(1, num_anchors, 1, 1, 2).expand(batch, -1, height, width, -1).reshape(-1, 2)


def _confident(own: Tensor, taught: Tensor, anchors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Sum 1 - CIoU, class divergence and weights over the cells where the teacher is confident.

    Args:
        own: Raw outputs of the student (N, 5 + nc).
        taught: Raw outputs of the teacher (N, 5 + nc).
        anchors: Anchor of each row (N, 2) in cells.

    Returns:
        The weighted sum of 1 - CIoU, the weighted sum of the mean class divergence, and the sum of the weights.
    """
    confidence = taught[:, 4].float().sigmoid()
    place = (confidence >= CONFIDENT).nonzero().squeeze(1)  # (M,)
    weights, sizes = confidence[place], anchors[place]
    # An embedding accumulates its gradient in a fixed order; plain indexing does so in the order of the threads.
    own, taught = F.embedding(place, own).float(), taught[place].float()
    iou = complete_iou(_boxes(own, sizes), _boxes(taught, sizes))
    box = (weights * (1 - iou)).sum()
    if own.shape[1] == 6:  # a single class has no class loss
        return box, own[:, 5:].sum() * 0, weights.sum()
    return box, (weights * divergence(own[:, 5:], taught[:, 5:]).mean(1)).sum(), weights.sum()


def _boxes(rows: Tensor, anchors: Tensor) -> Tensor:
    """Decode raw outputs (M, 5 + nc) to boxes (M, 4): cx, cy relative to the cell, w, h, all in cells."""
    values = rows[:, :4].sigmoid() * 2
    return torch.cat((values[:, :2] - 0.5, values[:, 2:] ** 2 * anchors), 1)


class LogitsDistillation:
    """Distance of a classifier's probabilities from its teacher's, by the Kullback-Leibler divergence.

    Hinton et al., "Distilling the Knowledge in a Neural Network", arXiv 1503.02531: probabilities are softened by a
    temperature, and the divergence is multiplied by its square, so that gradients keep their magnitude.
    """

    names = ("class",)

    def __init__(self, *, temperature: float = _TEMPERATURE) -> None:
        self.temperature = temperature

    @classmethod
    def of(cls, trainer: Trainer) -> LogitsDistillation:
        """Build it; nothing depends on the training."""
        return cls()

    def __call__(self, logits: Tensor, answers: Tensor) -> LossParts:
        """Compare the logits (B, K) of the student with those of the teacher."""
        own, taught = (F.log_softmax(values.float() / self.temperature, 1) for values in (logits, answers))
        loss = F.kl_div(own, taught, reduction="batchmean", log_target=True) * self.temperature**2
        return LossParts(total=loss, parts=loss.detach()[None])

    def weight(self, logits: Tensor) -> float:
        """Return 1: the loss of classifiers is a mean."""
        return 1.0


class TeacherLoss(Protocol):
    """Distance of a student's outputs from its teacher's.

    Attributes:
        names: Names of its parts.
    """

    @property
    def names(self) -> Sequence[str]: ...

    def __call__(self, outputs: Any, answers: Any, /) -> LossParts: ...

    def weight(self, outputs: Any, /) -> float:
        """Return what a mean over images is multiplied by in the loss of the task."""


class DistillationHook(Hook):
    """Adds what a student differs in from its teacher to the loss of every step: outputs, and features if asked for.

    The teacher runs on the same images as the student, in the same precision. It has no state to resume, draws no
    random numbers and is not part of the student: batch norms, averages and checkpoints do not include it. Each
    process of a distributed run has its own teacher.
    """

    def __init__(
        self,
        teacher: nn.Module,
        *,
        strength: float,
        make_loss: Callable[[Trainer], TeacherLoss],
        followed: Followed | None = None,
    ) -> None:
        """Create the hook.

        Args:
            teacher: Network in evaluation mode whose outputs mean the same as the student's.
            strength: Weight of the outputs, at least 0.
            make_loss: Function that makes the loss of the outputs for a training.
            followed: Channels of the teacher that those of the student follow; None for outputs alone.
        """
        self.teacher, self.strength, self._make_loss, self._followed = teacher, strength, make_loss, followed
        self._features: FeatureLoss | None = None
        # Summed on the device: reading a value every step would make the host wait for it.
        self._sums, self._steps = torch.zeros(0), 0

    def before_training(self, trainer: Trainer) -> None:
        """Move the teacher to the student's device, and watch both."""
        device = trainer.settings.device
        self.teacher = self.teacher.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.loss = self._make_loss(trainer)
        if self._followed is not None:
            read = {name: channels.to(device) for name, channels in self._followed.read.items()}
            self._features = FeatureLoss(trainer.model, self.teacher, read)
        self._sums = torch.zeros(len(self._names), device=device)
        sizes = [count_parameters(model) / 1e6 for model in (self.teacher, trainer.model)]
        LOGGER.info(
            "distillation: teacher with %.2f M parameters, student with %.2f M, strength %g%s",
            *sizes,
            self.strength,
            f", features {self._followed.strength:g}" if self._followed is not None else "",
        )

    def after_loss(self, trainer: Trainer, step: Step) -> Tensor:
        """Return the loss of the step with the distillation loss added."""
        kind = trainer.settings.autocast
        with torch.no_grad(), torch.autocast(step.images.device.type, dtype=kind, enabled=kind is not None):
            answers = self.teacher(step.images)
        result = self.loss(step.outputs, answers)
        loss, parts = step.loss + self.strength * result.total, [result.parts]
        if self._features is not None and self._followed is not None:
            distance = self._features()
            loss = loss + self._followed.strength * self.loss.weight(step.outputs) * distance
            parts.append(distance.detach()[None])
        self._sums, self._steps = self._sums + torch.cat(parts), self._steps + 1
        return loss

    def epoch_end(self, trainer: Trainer) -> None:
        """Report the epoch's mean loss parts, before strengths, to the log, results.csv and TensorBoard."""
        means = mean_over_ranks(self._sums / self._steps).tolist()
        found = dict(zip(self._names, means, strict=True))
        trainer.state.extra |= {f"distill/{name}_loss": value for name, value in found.items()}
        LOGGER.info("distillation: %s", named_losses(found))
        self._sums, self._steps = torch.zeros_like(self._sums), 0

    def end(self, trainer: Trainer) -> None:
        """Stop watching."""
        if self._features is not None:
            self._features.close()

    @property
    def _names(self) -> list[str]:
        return [*self.loss.names, *(["features"] if self._features is not None else [])]
