"""What is counted of a classifier, against numbers worked out by hand."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from engine.evaluation.classification import ClassifierEvaluation, check_same_task, evaluate_classifier
from models.classifiers import ClassifierSpec
from utils.datasets.classes.pictures import PictureData, PictureSet
from utils.errors import ConfigError


def evaluated(
    network: Callable[[Tensor], Tensor], labels: list[int], *, num_classes: int, batch_size: int = 2
) -> ClassifierEvaluation:
    """On one-pixel pictures that are numbered from 0 in their only byte."""
    pictures = PictureSet(
        images=torch.arange(len(labels), dtype=torch.uint8).view(-1, 1, 1, 1),
        labels=torch.tensor(labels),
        names=tuple(map(str, range(num_classes))),
    )
    return evaluate_classifier(network, pictures, spec=spec_of(num_classes), batch_size=batch_size)


def spec_of(num_classes: int) -> ClassifierSpec:
    return ClassifierSpec(name="", num_classes=num_classes, image_chw=(1, 1, 1), mean=(0.0,), std=(1.0,))


def answers(rows: list[list[float]]) -> Callable[[Tensor], Tensor]:
    """A network that gives a row of logits for each picture number."""
    return lambda images: torch.tensor(rows)[(images * 255).round().long().flatten()]


def test_confusion_has_predictions_in_rows_and_truth_in_columns() -> None:
    rows = [[3.0, 1, 2], [3.0, 1, 2], [0.0, 0, 9], [0.0, 0, 9], [0.0, 5, 0]]
    evaluation = evaluated(answers(rows), [0, 2, 2, 2, 0], num_classes=3)
    assert evaluation.confusion.tolist() == [[1, 0, 1], [1, 0, 0], [0, 0, 2]]
    assert evaluation.scores.accuracy == pytest.approx(3 / 5)
    assert evaluation.scores.count == 5
    assert evaluation.class_counts.tolist() == [2, 0, 3]
    assert evaluation.class_accuracies == [pytest.approx(1 / 2), None, pytest.approx(2 / 3)]


def test_top5_counts_the_five_largest_logits() -> None:
    falling = [float(-number) for number in range(7)]
    evaluation = evaluated(answers([falling] * 4), [0, 4, 5, 6], num_classes=7, batch_size=3)
    assert evaluation.top5 == pytest.approx(2 / 4)
    assert evaluation.scores.accuracy == pytest.approx(1 / 4)


def test_five_classes_have_no_top5() -> None:
    assert evaluated(answers([[0.0] * 5]), [0], num_classes=5).top5 is None


def test_ties_are_counted_as_the_accuracy_counts_them() -> None:
    evaluation = evaluated(answers([[1.0] * 8] * 8), list(range(8)), num_classes=8)
    assert evaluation.confusion.diagonal().sum() / 8 == evaluation.scores.accuracy == 1 / 8
    assert evaluation.top5 == pytest.approx(5 / 8)


def test_time_is_told_by_stage() -> None:
    seconds = evaluated(answers([[1.0, 0]]), [0], num_classes=2).seconds
    assert list(seconds) == ["inference", "rest"]
    assert min(seconds.values()) >= 0


@pytest.mark.parametrize(
    ("num_classes", "side", "finding"),
    [
        (3, 1, r"best.pt has 3 classes and takes images of \(1, 1, 1\), but p.npz has 2 and images of \(1, 1, 1\)"),
        (2, 4, r"best.pt has 2 classes and takes images of \(1, 1, 1\), but p.npz has 2 and images of \(1, 4, 4\)"),
    ],
)
def test_pictures_of_another_task_are_refused(num_classes: int, side: int, finding: str) -> None:
    pictures = PictureSet(
        images=torch.zeros(1, 1, side, side, dtype=torch.uint8), labels=torch.tensor([0]), names=("a", "b")
    )
    data = PictureData(train=pictures, test=pictures)
    with pytest.raises(ConfigError, match=finding):
        check_same_task(spec_of(num_classes), data, names=(), weights="best.pt", name="p.npz")


@pytest.mark.parametrize(("names", "warnings"), [(("a", "b"), 0), ((), 0), (("b", "a"), 1)])
def test_other_words_for_the_classes_are_told_of(
    names: tuple[str, ...], warnings: int, caplog: pytest.LogCaptureFixture
) -> None:
    pictures = PictureSet(
        images=torch.zeros(1, 1, 1, 1, dtype=torch.uint8), labels=torch.tensor([0]), names=("a", "b")
    )
    data = PictureData(train=pictures, test=pictures)
    check_same_task(spec_of(2), data, names=names, weights="best.pt", name="p.npz")
    assert caplog.text.count("best.pt and p.npz have different class names") == warnings
