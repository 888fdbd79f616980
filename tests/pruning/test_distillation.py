"""Distillation: the loss by hand, what the hook must leave alone, and whom it accepts as a teacher."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny import TINY_CFG
from torch import Tensor

from engine.losses.detection import DetectionLoss, LossGains
from models.detector import Detector, build_model
from models.spec import ModelSpec
from pruning.distillation import (
    DetectorDistillation,
    DistillationHook,
    LogitsDistillation,
    divergence,
    load_teacher,
)
from pruning.features import Teaching
from tasks.choose import DETECTION
from utils.config.hyp import Hyp
from utils.errors import ConfigError
from utils.storage.checkpoint import Checkpoint, save_checkpoint

NAMES = ("RBC", "WBC", "Platelets")
SPEC = ModelSpec.from_yaml(TINY_CFG)
LN3 = math.log(3)  # the logit of .75
UNIT_GAINS = replace(LossGains.from_hyp(Hyp(), num_classes=2, num_levels=1, img_size=640), box=1.0, obj=1.0, cls=1.0)


def one_level_loss(mean_over_ranks: float = 1.0, batch_factor: int = 1) -> DetectorDistillation:
    """Gains of 1, one anchor of 2 x 2 cells; a single level has objectness weight 4."""
    detection = DetectionLoss(
        gains=UNIT_GAINS,
        anchors=torch.full((1, 1, 2), 16.0),
        strides=(8,),
        batch_factor=batch_factor,
        mean_over_ranks=lambda value: value * mean_over_ranks,
    )
    return DetectorDistillation(detection, device=torch.device("cpu"))


def two_cells(first: list[float], second: list[float]) -> Tensor:
    """Raw heads (1, 1, 1, 2, 5 + nc)."""
    return torch.tensor([first, second]).view(1, 1, 1, 2, -1)


# Objectness .5 in the first cell and .0067 in the second: only the first is confident.
TEACHER = two_cells([0.0, 0, 0, 0, 0, LN3, 0], [0.0, 0, 0, 0, -5, 0, 0])


def parts_of(heads: Tensor, answers: Tensor = TEACHER, loss: DetectorDistillation | None = None) -> list[float]:
    """Box, objectness and class part."""
    values: list[float] = (loss or one_level_loss())([heads], [answers]).parts.tolist()
    return values


def test_divergence_is_that_of_two_coins() -> None:
    found = divergence(torch.tensor([0.0, LN3]), torch.tensor([LN3, 0.0]))
    # .75 ln(.75 / .5) + .25 ln(.25 / .5), and .5 ln(.5 / .75) + .5 ln(.5 / .25)
    assert found.tolist() == pytest.approx([0.130812, 0.143841], abs=1e-6)


def test_student_that_answers_as_its_teacher_has_loss_zero() -> None:
    heads = TEACHER.clone().requires_grad_()
    result = one_level_loss()([heads], [TEACHER])
    result.total.backward()
    assert result.parts.tolist() == pytest.approx([0, 0, 0], abs=1e-6)
    assert heads.grad is not None
    assert heads.grad.abs().max() < 1e-6


def test_classes_count_in_confident_cells_only() -> None:
    # The classes of the second cell are far off, but the teacher sees background there.
    heads = two_cells([0, 0, 0, 0, 0, 0, 0], [0, 0, 0, 0, -5, 9, -9])
    assert parts_of(heads) == pytest.approx([0, 0, 0.130812 / 2], abs=1e-6)


def test_boxes_count_in_confident_cells_only() -> None:
    # (2 * .75)^2 * 2 = 4.5 cells wide and high instead of 2: IoU 4 / 20.25, same centre, same shape.
    heads = two_cells([0, 0, LN3, LN3, 0, LN3, 0], [3, 3, 3, 3, -5, 0, 0])
    assert parts_of(heads) == pytest.approx([1 - 16 / 81, 0, 0], abs=1e-6)


def test_objectness_counts_in_every_cell() -> None:
    heads = TEACHER.clone()
    heads[..., 0, 4] = LN3
    assert parts_of(heads) == pytest.approx([0, 4 * 0.143841 / 2, 0], abs=1e-6)
    heads[..., 1, 4] = 0
    assert parts_of(heads)[1] > 4 * 0.143841


def test_cells_count_by_their_objectness_and_the_sum_is_divided_by_its_weights() -> None:
    teacher = two_cells([0, 0, 0, 0, 0, 0, 0], [0, 0, 0, 0, LN3, LN3, LN3])  # weights .5 and .75
    heads = two_cells([0, 0, 0, 0, 0, 0, 0], [0, 0, 0, 0, LN3, 0, 0])
    assert parts_of(heads, teacher) == pytest.approx([0, 0, 0.130812 * 0.75 / 1.25], abs=1e-6)
    more_background = torch.cat((heads, TEACHER[..., 1:, :].expand(1, 1, 1, 50, 7)), 3)
    taught = torch.cat((teacher, TEACHER[..., 1:, :].expand(1, 1, 1, 50, 7)), 3)
    assert parts_of(more_background, taught)[2] == pytest.approx(0.130812 * 0.75 / 1.25, abs=1e-6)


def test_weights_are_averaged_over_processes() -> None:
    heads = two_cells([0, 0, LN3, LN3, 0, 0, 0], [0, 0, 0, 0, -5, 0, 0])
    alone = parts_of(heads)
    # The others saw three times as much, so that the mean is twice what this process saw.
    among_others = parts_of(heads, loss=one_level_loss(mean_over_ranks=2.0))
    assert among_others == pytest.approx([alone[0] / 2, alone[1], alone[2] / 2])


def test_total_is_the_sum_of_the_parts_times_the_global_batch() -> None:
    heads = torch.cat([two_cells([0, 0, LN3, LN3, 1, 0, 0], [0, 0, 0, 0, -5, 0, 0])] * 3)
    result = one_level_loss(batch_factor=2)([heads], [TEACHER.expand(3, -1, -1, -1, -1)])
    assert float(result.total) == pytest.approx(float(result.parts.sum()) * 6)


def test_teacher_that_is_nowhere_confident_teaches_objectness_alone() -> None:
    teacher = TEACHER.clone()
    teacher[..., 4] = -5
    heads = torch.randn(1, 1, 1, 2, 7, requires_grad=True)
    result = one_level_loss()([heads], [teacher])
    result.total.backward()
    assert result.parts[[0, 2]].tolist() == [0, 0]
    assert heads.grad is not None
    assert (heads.grad[..., [0, 1, 2, 3, 5, 6]] == 0).all()
    assert (heads.grad[..., 4] != 0).all()


def test_single_class_needs_no_class_part() -> None:
    assert parts_of(torch.randn(1, 1, 1, 2, 6), TEACHER[..., :6])[2] == 0


def teacher_network(seed: int = 1) -> Detector:
    """The tiny network with an objectness of about one half everywhere, as if it saw something."""
    torch.manual_seed(seed)
    model = build_model(SPEC).eval()
    with torch.no_grad():
        for conv in model.head.m:
            conv.bias.view(3, -1)[:, 4] = 0
    return model


def test_student_gets_closer_to_its_teacher() -> None:
    teacher, images = teacher_network(), torch.rand(2, 3, 64, 64)
    torch.manual_seed(2)
    student = build_model(SPEC)
    gains = LossGains.from_hyp(Hyp(), num_classes=3, num_levels=2, img_size=640)
    detection = DetectionLoss(gains=gains, anchors=student.anchors, strides=student.strides)
    loss = DetectorDistillation(detection, device=torch.device("cpu"))
    optimizer = torch.optim.Adam(student.parameters(), lr=0.03)
    with torch.no_grad():
        answers = teacher(images)
    losses = []
    for _ in range(15):
        result = loss(student(images), answers)
        optimizer.zero_grad()
        result.total.backward()
        optimizer.step()
        losses.append(result.parts)
    assert (losses[-1] < 0.7 * losses[0]).all()


def save(spec: ModelSpec, path: Path, *, names: tuple[str, ...] = NAMES) -> Path:
    torch.manual_seed(0)
    save_checkpoint(Checkpoint(spec=spec.to_dict(), names=names, weights=build_model(spec).state_dict()), path)
    return path


def test_teacher_is_fused_and_learns_nothing(tmp_path: Path) -> None:
    network = DETECTION.load(save(SPEC, tmp_path / "s.pt"))
    hook = DETECTION.distillation(str(save(SPEC, tmp_path / "t.pt")), network, Teaching(answers=1.0))
    assert isinstance(hook, DistillationHook)
    assert not hook.teacher.training
    assert not any("bn." in name for name in hook.teacher.state_dict())
    assert not any(parameter.requires_grad for parameter in hook.teacher.parameters())


def test_wider_network_of_the_same_answers_may_teach(tmp_path: Path) -> None:
    pruned = replace(SPEC, widths={"model.0": 5, "model.3.cv3": 11})
    teacher = load_teacher(save(SPEC, tmp_path / "t.pt"), spec=pruned, names=NAMES)
    assert teacher.spec == SPEC


@pytest.mark.parametrize(
    ("spec", "names", "message"),
    [
        (replace(SPEC, num_classes=2), NAMES[:2], r"got classes \['RBC', 'WBC'\], expected the student's \['RBC'"),
        (SPEC, ("WBC", "RBC", "Platelets"), r"got classes \['WBC', 'RBC'"),
        (ModelSpec.from_yaml("yolov5n", num_classes=3), NAMES, r"got strides \[8, 16, 32\], .* \[8, 16\]"),
        (replace(SPEC, anchors=((10.0, 14.0) * 3, (30.0, 61.0) * 3)), NAMES, r"got anchors \[\(10\.0, 14\.0"),
    ],
    ids=["classes", "order", "strides", "anchors"],
)
def test_teacher_of_other_answers_is_refused(
    tmp_path: Path, spec: ModelSpec, names: tuple[str, ...], message: str
) -> None:
    path = save(spec, tmp_path / "t.pt", names=names)
    with pytest.raises(ConfigError, match=message) as caught:
        load_teacher(path, spec=SPEC, names=NAMES)
    assert "\n" not in str(caught.value)
    assert "; give the dense checkpoint" in str(caught.value)


def test_logits_are_compared_at_a_temperature_and_weighed_by_its_square() -> None:
    # At temperature 4 the teacher's probabilities are .75 and .25, and the student's one half each.
    teacher = torch.tensor([[4 * LN3, 0.0], [0.0, 0.0]])
    student = torch.zeros(2, 2, requires_grad=True)
    result = LogitsDistillation()(student, teacher)
    result.total.backward()
    # .75 ln(.75 / .5) + .25 ln(.25 / .5), in one of the two images; times 4^2.
    assert result.total.item() == pytest.approx(0.130812 / 2 * 16, abs=1e-5)
    assert result.parts.tolist() == pytest.approx([0.130812 / 2 * 16], abs=1e-5)
    # 4^2 / 4 times the difference of the probabilities, mean over two images.
    assert student.grad is not None
    assert student.grad.tolist() == [pytest.approx([-0.5, 0.5]), pytest.approx([0.0, 0.0])]


def test_classifier_that_answers_as_its_teacher_has_loss_zero() -> None:
    logits = torch.randn(5, 7, generator=torch.Generator().manual_seed(0), requires_grad=True)
    result = LogitsDistillation()(logits, logits.detach())
    result.total.backward()
    assert result.total.item() == pytest.approx(0, abs=1e-6)
    assert logits.grad is not None
    assert logits.grad.abs().max() < 1e-6


def test_constant_added_to_all_logits_changes_nothing() -> None:
    logits = torch.randn(5, 7, generator=torch.Generator().manual_seed(0))
    assert LogitsDistillation()(logits + 3, logits).total.item() == pytest.approx(0, abs=1e-5)
