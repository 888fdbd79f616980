"""Classifiers train with the Trainer and hooks of detectors, to the same result however often they are killed."""

from __future__ import annotations

import json
import logging
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from interruption import KillAfter, Killed, assert_same_weights
from torch import nn

from commands import classify as classification
from commands.classify import classifier_spec, make_classifier, read_pictures, train_classifier
from commands.classify_config import ClassifierConfig
from engine.evaluation.classification_scores import ClassificationLoss, score, score_classifier
from engine.training.hooks import Hook
from engine.training.trainer import Trainer
from models.classifiers import ClassifierSpec, build_classifier, load_classifier
from utils.datasets.classes.loader import Normalisation, PictureLoader
from utils.datasets.classes.pictures import PictureData, PictureSet, read_picture_file, write_picture_file
from utils.errors import CheckpointError, ConfigError, TrainingError
from utils.storage.checkpoint import load_checkpoint, save_checkpoint


def small_pictures(*, train: int = 48, test: int = 20, chw: tuple[int, int, int] = (1, 28, 28)) -> PictureData:
    """Noise, brighter in one half of the picture or the other: two classes that are easy to tell apart."""
    generator = torch.Generator().manual_seed(0)

    def split(count: int) -> PictureSet:
        labels = torch.arange(count) % 2
        images = torch.randint(0, 128, (count, *chw), generator=generator, dtype=torch.uint8)
        half = chw[2] // 2
        images[labels == 0, :, :, :half] += 100
        images[labels == 1, :, :, half:] += 100
        return PictureSet(images=images, labels=labels, names=("left", "right"))

    return PictureData(train=split(train), test=split(test))


def config_in(folder: Path, **settings: Any) -> ClassifierConfig:
    defaults: dict[str, Any] = {
        "epochs": 3,
        "batch_size": 16,
        "device": "cpu",
        "amp": "off",
        "augment": "crop",
        "noplots": True,
        "project": str(folder / "runs"),
    }
    return ClassifierConfig(**{**defaults, **settings})


def test_lenet5_learns_real_digits(shared: Path, tmp_path: Path) -> None:
    digits = read_picture_file(shared / "data/classification/mnist.npz")
    few = replace(digits, train=digits.train.first(3000), test=digits.test.first(1000))
    config = config_in(tmp_path, epochs=2, batch_size=64, augment="none", amp="auto")
    result = train_classifier(make_classifier(config, few), few, config=config)
    assert result.final_accuracy > 0.8


def test_network_with_norms_learns_real_photographs(shared: Path, tmp_path: Path) -> None:
    photographs = read_picture_file(shared / "data/classification/cifar10_subset.npz")
    few = replace(photographs, train=photographs.train.first(1000), test=photographs.test.first(300))
    config = config_in(tmp_path, model="vanilla", epochs=3, batch_size=50, augment="crop-flip")
    result = train_classifier(make_classifier(config, few), few, config=config)
    assert result.final_accuracy > 0.3


def test_run_folder_holds_result_curves_and_checkpoints(tmp_path: Path) -> None:
    data, config = small_pictures(), config_in(tmp_path, noplots=False)
    model = make_classifier(config, data)
    result = train_classifier(model, data, config=config)
    names = {path.name for path in result.folder.iterdir()}
    assert {"opt.yaml", "result.json", "results.csv", "results.png", "weights"} <= names
    assert any(name.startswith("events.out.tfevents") for name in names)
    written = json.loads((result.folder / "result.json").read_text())
    assert written["accuracies"] == list(result.accuracies)
    assert (written["final_accuracy"], written["epochs"]) == (result.final_accuracy, 3)
    header = (result.folder / "results.csv").read_text().splitlines()[0]
    assert header == "epoch,train/class_loss,metrics/accuracy,metrics/loss,lr/norm,lr/weight,lr/bias"
    # The files give the accuracies that were told, exactly.
    for path, accuracy in ((result.best, result.best_accuracy), (result.last, result.final_accuracy)):
        loaded = load_classifier(path)
        assert score_classifier(loaded.model, data.test, spec=loaded.spec).accuracy == accuracy
        assert loaded.names == ("left", "right")
    assert not model.training
    assert all(
        torch.equal(load_classifier(result.last).model.state_dict()[k], v) for k, v in model.state_dict().items()
    )


@pytest.mark.parametrize("killed_in", [0, 1, 2])
def test_killed_run_ends_as_if_it_had_not_been(tmp_path: Path, killed_in: int) -> None:
    data, config = small_pictures(), config_in(tmp_path, optimizer="ranger", schedule="flat", label_smoothing=0.1)
    whole = train_classifier(make_classifier(config, data), data, config=replace(config, name="whole"))
    with pytest.raises(Killed):
        train_classifier(
            make_classifier(config, data),
            data,
            config=replace(config, name="killed"),
            hooks=[KillAfter(killed_in)],
        )
    again = ClassifierConfig(resume=str(tmp_path / "runs/killed/weights/last.pt"), device="cpu")
    resumed = train_classifier(build_classifier("lenet5", num_classes=2, in_channels=1), data, config=again)
    assert_same_weights(whole.last, resumed.last)
    assert_same_weights(whole.best, resumed.best)
    assert whole.accuracies == resumed.accuracies
    assert (whole.folder / "results.csv").read_text() == (resumed.folder / "results.csv").read_text()


def test_run_killed_before_its_result_gets_it_by_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def kill(*args: Any, **settings: Any) -> None:
        raise Killed

    data, config = small_pictures(), config_in(tmp_path, epochs=2)
    with monkeypatch.context() as patched:
        patched.setattr(classification._Run, "finish", kill)
        with pytest.raises(Killed):
            train_classifier(make_classifier(config, data), data, config=config)
    again = replace(config, resume="latest")
    result = train_classifier(make_classifier(config, data), data, config=again)
    assert len(result.accuracies) == 2
    assert (result.folder / "result.json").exists()
    with pytest.raises(CheckpointError, match="this run is complete; to train on from it use --weights"):
        train_classifier(make_classifier(config, data), data, config=again)


def test_run_whose_optimiser_state_does_not_fit_is_not_resumed(tmp_path: Path) -> None:
    data, config = small_pictures(), config_in(tmp_path)
    with pytest.raises(Killed):
        train_classifier(make_classifier(config, data), data, config=config, hooks=[KillAfter(1)])
    last = next(tmp_path.glob("**/last.pt"))
    checkpoint = load_checkpoint(last)
    assert checkpoint.optimizer is not None
    entries = checkpoint.optimizer["state"][0]
    entries |= {name: value.flatten()[:0] for name, value in entries.items()}
    save_checkpoint(checkpoint, last)
    with pytest.raises(CheckpointError, match=r"last.pt cannot be resumed: optimizer state of .* is float32 \(0,\)"):
        train_classifier(make_classifier(config, data), data, config=replace(config, resume="latest"))


def test_run_of_another_network_is_not_resumed(tmp_path: Path) -> None:
    data, config = small_pictures(), config_in(tmp_path)
    with pytest.raises(Killed):
        train_classifier(make_classifier(config, data), data, config=config, hooks=[KillAfter(1)])
    other = build_classifier("vgg11", num_classes=2, in_channels=1)
    with pytest.raises(CheckpointError, match="last.pt: of another network .*; give the one that was trained"):
        train_classifier(other, data, config=replace(config, resume="latest"))


def test_hook_that_does_nothing_leaves_training_bit_identical(tmp_path: Path) -> None:
    data, config = small_pictures(), config_in(tmp_path, epochs=1)
    plain = train_classifier(make_classifier(config, data), data, config=replace(config, name="plain"))
    hooked = train_classifier(
        make_classifier(config, data), data, config=replace(config, name="hooked"), hooks=[Hook()]
    )
    assert_same_weights(plain.last, hooked.last)


def test_seed_decides_the_run(tmp_path: Path) -> None:
    data, config = small_pictures(), config_in(tmp_path, epochs=1)
    first, second, third = (
        train_classifier(make_classifier(own, data), data, config=own)
        for own in (replace(config, name=name, seed=seed) for name, seed in (("a", 0), ("b", 0), ("c", 1)))
    )
    assert_same_weights(first.last, second.last)
    with pytest.raises(AssertionError):
        assert_same_weights(first.last, third.last)


class Rates(Hook):
    """Notes the learning rate of every step."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def gradients_ready(self, trainer: Trainer) -> None:
        self.seen.append(trainer.lr)


def test_multistep_with_warm_up_goes_through_the_given_milestones(tmp_path: Path) -> None:
    # 16 pictures in batches of 2: 8 steps an epoch, 80 in all; the warm-up of one epoch is a tenth of the run.
    data, rates = small_pictures(train=16, test=4), Rates()
    config = config_in(
        tmp_path, epochs=10, batch_size=2, lr0=0.01, schedule="multistep", milestones=(0.5, 0.75), warmup_epochs=1
    )
    train_classifier(make_classifier(config, data), data, config=config, hooks=[rates])
    assert len(rates.seen) == 80
    assert rates.seen[:9] == pytest.approx([0.01 * step / 8 for step in range(9)])
    assert [rates.seen[step] for step in (39, 40, 59, 60, 79)] == pytest.approx([0.01, 1e-3, 1e-3, 1e-4, 1e-4])


def test_defaults_suit_the_optimizer() -> None:
    assert (ClassifierConfig().hyp().lr0, ClassifierConfig().hyp().momentum) == (0.05, 0.9)
    ranger = ClassifierConfig(optimizer="ranger").hyp()
    assert (ranger.lr0, ranger.momentum, ranger.warmup_momentum) == (1e-3, 0.95, 0.95)
    assert ClassifierConfig(optimizer="ranger", lr0=0.5, momentum=0.8).hyp().lr0 == 0.5


@pytest.mark.parametrize(
    ("settings", "finding"),
    [
        ({"epochs": 0}, "--epochs 0: expected at least 1"),
        ({"batch_size": 1}, "--batch-size 1: expected at least 2"),
        ({"label_smoothing": 1.0}, "--label-smoothing 1.0"),
        ({"milestones": (0.8, 0.5)}, "expected growing shares of the run"),
        ({"milestones": (0.5, 1.0)}, "expected growing shares of the run"),
        ({"lr0": 0.0}, "lr0: got 0.0, expected more than 0"),
        ({"lr0": float("nan")}, "expected a finite number"),
    ],
)
def test_setting_out_of_range_is_refused(settings: dict[str, Any], finding: str) -> None:
    with pytest.raises(ConfigError, match=finding):
        ClassifierConfig(**settings)


def test_data_are_those_of_the_settings(tmp_path: Path) -> None:
    images = torch.zeros(4, 28, 28, dtype=torch.uint8).numpy()
    labels = torch.arange(4).numpy()
    write_picture_file(tmp_path / "p.npz", {"x_train": images, "y_train": labels, "x_test": images, "y_test": labels})
    assert len(read_pictures(ClassifierConfig(data=str(tmp_path / "p.npz"))).train) == 4


def test_training_goes_on_from_a_file_and_refuses_one_for_other_data(tmp_path: Path) -> None:
    data, config = small_pictures(), config_in(tmp_path, epochs=1)
    first = train_classifier(make_classifier(config, data), data, config=config)
    tuned = replace(config, weights=str(first.best), name="tuned", lr0=1e-9, weight_decay=0.0)
    second = train_classifier(make_classifier(tuned, data), data, config=tuned)
    assert second.best_accuracy == first.best_accuracy
    with pytest.raises(
        ConfigError,
        match=r"has 2 classes and takes images of \(1, 28, 28\), but .* has 2 and images of \(3, 32, 32\)",
    ):
        make_classifier(tuned, small_pictures(chw=(3, 32, 32)))


def test_network_that_is_not_the_one_named_is_refused_and_leaves_no_folder(tmp_path: Path) -> None:
    data = small_pictures()
    with pytest.raises(ConfigError, match="--model lenet5 has other layers than the VggCifar to be trained"):
        train_classifier(build_classifier("vgg11", num_classes=2, in_channels=1), data, config=config_in(tmp_path))
    assert not (tmp_path / "runs").exists()


def test_network_for_other_pictures_is_refused() -> None:
    large = small_pictures(chw=(1, 32, 32))
    with pytest.raises(ConfigError, match=r"--model lenet5: no network for images of \(1, 32, 32\)"):
        classifier_spec(build_classifier("lenet5", num_classes=2, in_channels=1), large, name="lenet5")
    with pytest.raises(ConfigError, match=r"give logits of \(2, 10\), expected \(2, 2\)"):
        classifier_spec(build_classifier("vgg11", in_channels=1), large, name="vgg11")


def test_network_of_ones_own_trains_under_an_empty_name(tmp_path: Path) -> None:
    data, config = small_pictures(), config_in(tmp_path, model="", epochs=1)
    own = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    result = train_classifier(own, data, config=config)
    skeleton = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    loaded = load_classifier(result.last, skeleton=skeleton)
    assert score_classifier(loaded.model, data.test, spec=loaded.spec).accuracy == result.final_accuracy


def test_loss_that_is_not_finite_names_epoch_batch_and_pictures(tmp_path: Path) -> None:
    data, config = small_pictures(), config_in(tmp_path, epochs=1)
    model = make_classifier(config, data)
    with torch.no_grad():
        next(model.parameters()).fill_(float("nan"))
    with pytest.raises(TrainingError, match=r"\(class nan\) in epoch 0, batch 0, at learning rate 0, images number"):
        train_classifier(model, data, config=config)


def test_epoch_is_told_with_accuracy_and_time_left(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data, config = small_pictures(), config_in(tmp_path, epochs=1)
    with caplog.at_level(logging.INFO):
        train_classifier(make_classifier(config, data), data, config=config)
    (line,) = [record.getMessage() for record in caplog.records if record.getMessage().startswith("epoch 1/1")]
    assert "  class 0." in line
    assert "accuracy 0." in line
    assert line.endswith("0.0 min left")


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
    data = small_pictures(test=7)
    normalisation = Normalisation.of((0.0,), (1.0,), device=torch.device("cpu"))

    def brighter_half(images: torch.Tensor) -> torch.Tensor:
        """Logits that are right for all pictures."""
        sums = images.sum((1, 2))
        return torch.stack((sums[:, :14].sum(1), sums[:, 14:].sum(1)), 1)

    for size in (2, 7):
        found = score(brighter_half, PictureLoader(data.test, batch_size=size, normalisation=normalisation))
        assert (found.accuracy, found.count) == (1.0, 7)
    always_left = score(
        lambda images: torch.tensor([[1.0, 0.0]]).repeat(len(images), 1),
        PictureLoader(data.test, batch_size=3, normalisation=normalisation),
    )
    assert always_left.accuracy == pytest.approx(4 / 7)
    # Four times log(1 + 1/e), three times that plus 1.
    assert always_left.loss == pytest.approx(math.log(1 + math.exp(-1)) + 3 / 7)


def test_judging_leaves_the_mode_of_the_network() -> None:
    model, data = build_classifier("vanilla", num_classes=2).train(), small_pictures(chw=(3, 32, 32))
    spec = ClassifierSpec(name="vanilla", num_classes=2, image_chw=(3, 32, 32), mean=(0.5,) * 3, std=(0.2,) * 3)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    score_classifier(model, data.test, spec=spec)
    assert model.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
