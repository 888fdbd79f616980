"""A task's batches, loss and short training at a constant rate."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice

import pytest
import torch
from torch import Tensor, nn

from benchmarks.taylor_oracle import classification_task
from engine.losses.detection import LossParts
from engine.training.task import TrainingTask
from models.classifiers import LeNet5
from utils.datasets.classes.pictures import PictureSet
from utils.errors import TrainingError

IMAGE = (1, 28, 28)


def noise_task() -> TrainingTask:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (32, *IMAGE), generator=generator, dtype=torch.uint8)
    names = tuple("0123456789")
    return classification_task(PictureSet(images=images, labels=torch.arange(32) % 10, names=names), batch_size=8)


class SumLoss:
    """The sum of all outputs, plus a constant."""

    names = ("sum",)

    def __init__(self, constant: float = 0.0) -> None:
        self.constant = constant

    def __call__(self, outputs: Tensor, targets: Tensor) -> LossParts:
        total = outputs.sum() + self.constant
        return LossParts(total=total, parts=total.detach()[None])


def task_of_one_image(value: int, chw: tuple[int, int, int], loss: SumLoss) -> TrainingTask:
    images = torch.full((1, *chw), value, dtype=torch.uint8)
    pictures = PictureSet(images=images, labels=torch.zeros(1, dtype=torch.int64), names=("a",))
    return replace(classification_task(pictures, batch_size=1), loss=loss)


def test_updates_are_plain_gradient_steps() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(1, 1, bias=False))
    nn.init.constant_(model[1].weight, 1.0)
    # The pixel 51 / 255 is the gradient; Nesterov's first step is 1 + momentum times as long as it at the rate.
    loss = task_of_one_image(51, (1, 1, 1), SumLoss()).train_(model, updates=1, lr=1.0, momentum=0.5, decay=0.0)
    assert loss == pytest.approx(0.2)
    assert model[1].weight.item() == pytest.approx(1.0 - 1.0 * 0.2 * 1.5)
    assert model[1].weight.grad is None


def test_loss_that_is_no_number_ends_the_training() -> None:
    task, model = task_of_one_image(255, IMAGE, SumLoss(float("inf"))), LeNet5().eval()
    with pytest.raises(TrainingError, match="the loss became NaN or infinite .* 0.1; lower the learning rate"):
        task.train_(model, updates=1, lr=0.1)
    assert not model.training


def test_rate_and_momentum_do_not_change_from_update_to_update() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(1, 1, bias=False))
    nn.init.constant_(model[1].weight, 1.0)
    task_of_one_image(255, (1, 1, 1), SumLoss()).train_(model, updates=3, lr=0.1, momentum=0.5, decay=0.0)
    # Velocities 1, 1.5 and 1.75; Nesterov steps by gradient + momentum x velocity.
    assert model[1].weight.item() == pytest.approx(1.0 - 0.1 * (1.5 + 1.75 + 1.875))


def test_loss_is_the_mean_over_the_updates() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(1, 1, bias=False))
    nn.init.constant_(model[1].weight, 1.0)
    task = task_of_one_image(255, (1, 1, 1), SumLoss())
    assert task.train_(model, updates=3, lr=0.1, momentum=0.5, decay=0.0) == pytest.approx((1.0 + 0.85 + 0.675) / 3)
    assert task.train_(model, updates=0, lr=0.1) == 0.0


@pytest.mark.parametrize("is_terminal", [True, False])
def test_short_training_shows_no_progress(
    is_terminal: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: is_terminal, raising=False)
    monkeypatch.setattr("utils.progress.SECONDS_BETWEEN_LINES", 0.0)
    noise_task().train_(LeNet5(), updates=2, lr=0.01)
    assert capsys.readouterr().err == ""


def test_batches_depend_on_the_number_alone() -> None:
    first, again, other = (next(noise_task().batches(number)).targets for number in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_batches_go_on_with_those_of_the_next_numbers() -> None:
    task = noise_task()
    ahead = [batch.targets for batch in islice(task.batches(1), 4, 8)]
    assert all(torch.equal(*pair) for pair in zip(ahead, (batch.targets for batch in task.batches(2)), strict=False))
