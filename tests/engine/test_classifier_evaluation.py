"""What is counted of a classifier, against numbers worked out by hand."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_classes import small_pictures
from torch import Tensor, nn

from engine.evaluation.classification import ClassificationScores, ClassificationSet
from engine.evaluation.evaluator import Evaluator
from engine.losses.classification import ClassificationLoss
from models.classifiers import ClassifierSpec, build_classifier
from tasks.classifier_data import check_data, in_order_of
from tasks.task import Network
from utils.datasets.classes.pictures import PictureSet
from utils.errors import ConfigError


def evaluated(network: Any, pictures: PictureSet, *, batch_size: int = 2) -> ClassificationScores:
    """On images in [0, 1]."""
    channels = pictures.image_chw[0]
    data = ClassificationSet(pictures=pictures, mean=(0.0,) * channels, std=(1.0,) * channels, batch_size=batch_size)
    found = Evaluator(data=data, device=torch.device("cpu")).evaluate(network)
    assert isinstance(found, ClassificationScores)
    return found


def numbered(labels: list[int], *, num_classes: int) -> PictureSet:
    """One-pixel pictures that are numbered from 0 in their only byte."""
    images = torch.arange(len(labels), dtype=torch.uint8).view(-1, 1, 1, 1)
    return PictureSet(images=images, labels=torch.tensor(labels), names=tuple(map(str, range(num_classes))))


def network_of(num_classes: int, names: tuple[str, ...] = ()) -> Network:
    spec = ClassifierSpec(name="", num_classes=num_classes, image_chw=(1, 1, 1), mean=(0.0,), std=(1.0,))
    return Network(model=nn.Identity(), spec=spec, names=names)


def answers(rows: list[list[float]]) -> Callable[[Tensor], Tensor]:
    """A network that gives a row of logits for each picture number."""
    return lambda images: torch.tensor(rows)[(images * 255).round().long().flatten()]


def test_confusion_has_predictions_in_rows_and_truth_in_columns() -> None:
    rows = [[3.0, 1, 2], [3.0, 1, 2], [0.0, 0, 9], [0.0, 0, 9], [0.0, 5, 0]]
    evaluation = evaluated(answers(rows), numbered([0, 2, 2, 2, 0], num_classes=3))
    assert evaluation.confusion.tolist() == [[1, 0, 1], [1, 0, 0], [0, 0, 2]]
    assert evaluation.accuracy == evaluation.score == evaluation.fitness == pytest.approx(3 / 5)
    assert evaluation.headline == {"accuracy": evaluation.accuracy}
    assert evaluation.numbers() == {"accuracy": evaluation.accuracy, "loss": evaluation.loss}
    assert evaluation.images == 5
    assert evaluation.class_counts.tolist() == [2, 0, 3]
    assert evaluation.class_accuracies == [pytest.approx(1 / 2), None, pytest.approx(2 / 3)]


def test_top5_counts_the_five_largest_logits() -> None:
    falling = [float(-number) for number in range(7)]
    evaluation = evaluated(answers([falling] * 4), numbered([0, 4, 5, 6], num_classes=7), batch_size=3)
    assert evaluation.top5 == pytest.approx(2 / 4)
    assert evaluation.accuracy == pytest.approx(1 / 4)


def test_five_classes_have_no_top5() -> None:
    evaluation = evaluated(answers([[0.0] * 5]), numbered([0], num_classes=5))
    assert evaluation.top5 is None
    assert evaluation.to_dict()["top5"] is None
    assert "top-5" not in evaluation.as_text()


def test_ties_are_counted_as_the_accuracy_counts_them() -> None:
    evaluation = evaluated(answers([[1.0] * 8] * 8), numbered(list(range(8)), num_classes=8))
    assert evaluation.confusion.diagonal().sum() / 8 == evaluation.accuracy == 1 / 8
    assert evaluation.top5 == pytest.approx(5 / 8)


def test_time_is_told_by_stage() -> None:
    seconds = evaluated(answers([[1.0, 0]]), numbered([0], num_classes=2)).seconds
    assert list(seconds) == ["preprocess", "inference", "metrics"]
    assert min(seconds.values()) >= 0


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_logits_that_are_no_numbers_are_not_finite(value: float) -> None:
    evaluation = evaluated(answers([[1.0, 0], [value, 0]]), numbered([0, 1], num_classes=2))
    assert not evaluation.is_finite
    assert evaluated(answers([[1.0, 0]]), numbered([0], num_classes=2)).is_finite


def test_result_is_plain_data_and_text_lists_few_classes_or_all_when_asked(tmp_path: Path) -> None:
    pictures = numbered([0, 0, 2], num_classes=3)
    evaluation = evaluated(answers([[9.0, 0, 0], [0.0, 9, 0], [0.0, 0, 9]]), pictures)
    result = json.loads(json.dumps(evaluation.to_dict()))
    assert (result["accuracy"], result["images"], result["top5"]) == (pytest.approx(2 / 3), 3, None)
    assert result["per_class"][0] == {"name": "0", "images": 2, "accuracy": 0.5}
    assert result["per_class"][1] == {"name": "1", "images": 0, "accuracy": None}
    assert result["confusion"] == [[1, 0, 0], [1, 0, 0], [0, 0, 1]]
    # A third of log(1 + 2 / e^9) + log(2 + e^9) + log(1 + 2 / e^9).
    loss = (2 * math.log(1 + 2 * math.exp(-9)) + math.log(2 + math.exp(9))) / 3
    assert result["loss"] == pytest.approx(loss, rel=1e-5)
    assert evaluation.as_text().splitlines() == [
        f"accuracy 0.6667, loss {loss:.4f} on 3 images",
        "       0        2 images, 0.5000 right",
        "       1        0 images, none",
        "       2        1 images, 1.0000 right",
    ]
    many = evaluated(answers([[9.0, *[0.0] * 29]]), numbered([0], num_classes=30))
    assert len(many.as_text().splitlines()) == 1
    assert len(many.as_text(is_verbose=True).splitlines()) == 31
    evaluation.save(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["confusion_matrix.png"]


def test_few_images_are_spread_evenly_and_a_count_of_zero_is_all() -> None:
    data = ClassificationSet(pictures=numbered([0] * 10, num_classes=2), mean=(0.0,), std=(1.0,))
    assert len(data.few(5).pictures) == 5
    assert len(data.few(0).pictures) == len(data.few(99).pictures) == 10
    kept = data.few(2).pictures.images
    assert isinstance(kept, Tensor)
    first, second = kept.flatten().tolist()
    assert second - first >= 5


def test_cross_entropy_of_two_logits_by_hand() -> None:
    logits = torch.tensor([[0.0, math.log(3.0)], [0.0, 0.0]])
    found = ClassificationLoss()(logits, torch.tensor([1, 0]))
    # -log(3/4) and -log(1/2)
    assert float(found.total) == pytest.approx((math.log(4 / 3) + math.log(2)) / 2)
    assert found.parts.tolist() == pytest.approx([float(found.total)])
    # Smoothed by .2, the first label is .9 and .1: .9 log(4/3) + .1 log 4.
    smooth = ClassificationLoss(label_smoothing=0.2)(logits[:1], torch.tensor([1]))
    assert float(smooth.total) == pytest.approx(0.9 * math.log(4 / 3) + 0.1 * math.log(4))


def test_scores_count_every_picture_once_whatever_the_batches() -> None:
    pictures = small_pictures(test=7).test

    def brighter_half(images: Tensor) -> Tensor:
        """Logits that are right for all pictures."""
        sums = images.sum((1, 2))
        return torch.stack((sums[:, :14].sum(1), sums[:, 14:].sum(1)), 1)

    for size in (2, 7):
        found = evaluated(brighter_half, pictures, batch_size=size)
        assert (found.accuracy, found.images) == (1.0, 7)
    always_left = evaluated(lambda images: torch.tensor([[1.0, 0.0]]).repeat(len(images), 1), pictures, batch_size=3)
    assert always_left.accuracy == pytest.approx(4 / 7)
    # Four times log(1 + 1/e), three times that plus 1.
    assert always_left.loss == pytest.approx(math.log(1 + math.exp(-1)) + 3 / 7)


def test_judging_leaves_the_mode_of_the_network() -> None:
    model, pictures = build_classifier("vanilla", num_classes=2).train(), small_pictures(chw=(3, 32, 32)).test
    before = {name: value.clone() for name, value in model.state_dict().items()}
    evaluated(model, pictures)
    assert model.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    evaluated(model.eval(), pictures)
    assert not model.training


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
    with pytest.raises(ConfigError, match=finding):
        check_data(network_of(num_classes), pictures, weights="best.pt", data="p.npz")


@pytest.mark.parametrize(("names", "warnings"), [(("a", "b"), 0), ((), 0), (("b", "a"), 1)])
def test_other_words_for_the_classes_are_told_of(
    names: tuple[str, ...], warnings: int, caplog: pytest.LogCaptureFixture
) -> None:
    pictures = PictureSet(
        images=torch.zeros(1, 1, 1, 1, dtype=torch.uint8), labels=torch.tensor([0]), names=("a", "b")
    )
    check_data(network_of(2, names), pictures, weights="best.pt", data="p.npz")
    assert caplog.text.count("best.pt and p.npz have different class names") == warnings


def test_labels_follow_their_names_into_the_order_of_the_network() -> None:
    pictures = numbered([0, 1, 2, 0], num_classes=3)
    ordered = in_order_of(pictures, ("2", "0", "1"))
    assert (ordered.names, ordered.labels.tolist()) == (("2", "0", "1"), [1, 2, 0, 1])
    assert [ordered.names[label] for label in ordered.labels] == ["0", "1", "2", "0"]
    for names in (("0", "1", "2"), ("a", "b", "c"), ()):
        assert in_order_of(pictures, names) is pictures
