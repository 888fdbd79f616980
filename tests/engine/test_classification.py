"""Classifiers train with the Trainer and hooks of detectors, to the same result however often they are killed."""

from __future__ import annotations

import csv
import json
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from interruption import KillAfter, Killed, assert_same_weights
from tiny_classes import classifier_config, small_pictures, trained
from torch import nn

from commands.train_config import TrainConfig
from commands.train_recipe import read_hyp
from commands.train_result import TrainResult
from engine.evaluation.classification import ClassificationSet
from engine.evaluation.evaluator import Evaluation, Evaluator
from engine.training.hooks import Hook
from engine.training.trainer import Trainer
from models.classifiers import ClassifierSpec, build_classifier, load_classifier
from tasks.classification import Classification
from tasks.classifier_data import new_spec
from tasks.task import Data, Network
from utils.config.hyp import Hyp
from utils.datasets.classes.pictures import PictureSet, read_picture_file, write_picture_file
from utils.errors import CheckpointError, ConfigError, PruningError, TrainingError
from utils.storage.checkpoint import load_checkpoint, save_checkpoint


def accuracies(result: TrainResult) -> list[float]:
    """The accuracy on the test images after each epoch."""
    with (result.folder / "results.csv").open(newline="", encoding="utf-8") as file:
        return [float(row["metrics/accuracy"]) for row in csv.DictReader(file)]


def measured(network: Any, pictures: PictureSet, spec: ClassifierSpec) -> Evaluation:
    data = ClassificationSet(pictures=pictures, mean=spec.mean, std=spec.std)
    return Evaluator(data=data, device=torch.device("cpu")).evaluate(network)


class Seen:
    """Keeps the network of a run, as a factory of no hooks."""

    model: nn.Module

    def __call__(self, network: Network, config: TrainConfig, folder: Path) -> Sequence[Hook]:
        self.model = network.model
        return ()


def test_lenet5_learns_real_digits(shared: Path, tmp_path: Path) -> None:
    digits = read_picture_file(shared / "data/classification/mnist.npz")
    few = replace(digits, train=digits.train.first(3000), test=digits.test.first(1000))
    config = classifier_config(tmp_path, epochs=2, batch_size=64, augment="none", amp="auto")
    assert trained(config, few).final["accuracy"] > 0.8


def test_network_with_norms_learns_real_photographs(shared: Path, tmp_path: Path) -> None:
    photographs = read_picture_file(shared / "data/classification/cifar10_subset.npz")
    few = replace(photographs, train=photographs.train.first(1000), test=photographs.test.first(300))
    config = classifier_config(tmp_path, cfg="vanilla", epochs=3, batch_size=50, augment="crop-flip")
    assert trained(config, few).final["accuracy"] > 0.3


def test_run_folder_holds_result_curves_and_checkpoints(tmp_path: Path) -> None:
    data, config, seen = small_pictures(), classifier_config(tmp_path, noplots=False), Seen()
    result = trained(config, data, hooks=seen)
    names = {path.name for path in result.folder.iterdir()}
    assert {"opt.yaml", "hyp.yaml", "result.json", "results.csv", "results.png", "weights"} <= names
    assert "confusion_matrix.png" in names
    assert any(name.startswith("events.out.tfevents") for name in names)
    written = json.loads((result.folder / "result.json").read_text())
    per_epoch = accuracies(result)
    assert written["final"] == result.final
    assert (written["final"]["accuracy"], written["epochs"], len(per_epoch)) == (per_epoch[-1], 3, 3)
    assert written["metrics"]["accuracy"] == result.evaluation.score == max(per_epoch)
    assert written["best_epoch"] == result.best_epoch
    header = (result.folder / "results.csv").read_text().splitlines()[0]
    assert header == "epoch,train/class_loss,metrics/accuracy,metrics/loss,lr/norm,lr/weight,lr/bias"
    # The files give the accuracies that were told, exactly.
    for path, accuracy in ((result.best, per_epoch[result.best_epoch]), (result.last, per_epoch[-1])):
        loaded = load_classifier(path)
        assert measured(loaded.model, data.test, loaded.spec).score == accuracy
        assert loaded.names == ("left", "right")
    assert not seen.model.training
    weights = load_classifier(result.last).model.state_dict()
    assert all(torch.equal(weights[name], value) for name, value in seen.model.state_dict().items())


@pytest.mark.parametrize("killed_in", [0, 1, 2])
def test_killed_run_ends_as_if_it_had_not_been(tmp_path: Path, killed_in: int) -> None:
    data = small_pictures()
    config = classifier_config(tmp_path, optimizer="ranger", schedule="flat", label_smoothing=0.1)
    whole = trained(replace(config, name="whole"), data)
    with pytest.raises(Killed):
        trained(replace(config, name="killed"), data, hooks=lambda *_: [KillAfter(killed_in)])
    last = tmp_path / "runs/killed/weights/last.pt"
    resumed = trained(TrainConfig(resume=str(last), device="cpu"), data)
    assert_same_weights(whole.last, resumed.last)
    assert_same_weights(whole.best, resumed.best)
    assert whole.evaluation.score == resumed.evaluation.score
    assert (whole.folder / "results.csv").read_text() == (resumed.folder / "results.csv").read_text()


def test_run_killed_before_its_result_gets_it_by_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def kill(*args: Any, **settings: Any) -> None:
        raise Killed

    data, config = small_pictures(), classifier_config(tmp_path, epochs=2)
    with monkeypatch.context() as patched:
        patched.setattr("commands.train.finish_run", kill)
        with pytest.raises(Killed):
            trained(config, data)
    again = replace(config, resume="latest")
    result = trained(again, data)
    assert (len(accuracies(result)), result.epochs) == (2, 2)
    assert result.final["accuracy"] == accuracies(result)[-1]
    assert (result.folder / "result.json").exists()
    with pytest.raises(CheckpointError, match="this run is complete; to train on from it use --weights"):
        trained(again, data)


def test_run_whose_optimiser_state_does_not_fit_is_not_resumed(tmp_path: Path) -> None:
    data, config = small_pictures(), classifier_config(tmp_path)
    with pytest.raises(Killed):
        trained(config, data, hooks=lambda *_: [KillAfter(1)])
    last = next(tmp_path.glob("**/last.pt"))
    checkpoint = load_checkpoint(last)
    assert checkpoint.optimizer is not None
    entries = checkpoint.optimizer["state"][0]
    entries |= {name: value.flatten()[:0] for name, value in entries.items()}
    save_checkpoint(checkpoint, last)
    with pytest.raises(CheckpointError, match=r"last.pt cannot be resumed: optimizer state of .* is float32 \(0,\)"):
        trained(replace(config, resume="latest"), data)


def test_run_of_another_network_is_not_resumed(tmp_path: Path) -> None:
    data, config = small_pictures(), classifier_config(tmp_path)
    with pytest.raises(Killed):
        trained(config, data, hooks=lambda *_: [KillAfter(1)])
    other = build_classifier("vgg11", num_classes=2, in_channels=1)
    with pytest.raises(CheckpointError, match="last.pt do not fit the network lenet5 .*; give another file"):
        trained(replace(config, resume="latest"), data, own=other)


def test_hook_that_does_nothing_leaves_training_bit_identical(tmp_path: Path) -> None:
    data, config = small_pictures(), classifier_config(tmp_path, epochs=1)
    plain = trained(replace(config, name="plain"), data)
    hooked = trained(replace(config, name="hooked"), data, hooks=lambda *_: [Hook()])
    assert_same_weights(plain.last, hooked.last)


def test_seed_decides_the_run(tmp_path: Path) -> None:
    data, config = small_pictures(), classifier_config(tmp_path, epochs=1)
    first, second, third = (
        trained(replace(config, name=name, seed=seed), data) for name, seed in (("a", 0), ("b", 0), ("c", 1))
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
    config = classifier_config(
        tmp_path, epochs=10, batch_size=2, lr0=0.01, schedule="multistep", milestones=(0.5, 0.75), warmup_epochs=1
    )
    trained(config, data, hooks=lambda *_: [rates])
    assert len(rates.seen) == 80
    assert rates.seen[:9] == pytest.approx([0.01 * step / 8 for step in range(9)])
    assert [rates.seen[step] for step in (39, 40, 59, 60, 79)] == pytest.approx([0.01, 1e-3, 1e-3, 1e-4, 1e-4])


@pytest.mark.parametrize(("schedule", "is_told"), [("cosine", True), ("multistep", False)])
def test_milestones_of_another_schedule_are_told_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, schedule: str, is_told: bool
) -> None:
    milestones: dict[str, Any] = {"schedule": schedule, "milestones": (0.5, 0.75)}
    trained(classifier_config(tmp_path, epochs=1, **milestones), small_pictures(train=4, test=4))
    found = "without --schedule multistep; without effect: --milestones" in caplog.text
    assert found == is_told


def test_defaults_suit_the_optimizer() -> None:
    def hyp_of(**settings: Any) -> Hyp:
        return read_hyp(TrainConfig(**settings), Classification.recipe)

    assert (hyp_of().lr0, hyp_of().momentum, hyp_of().warmup_momentum) == (0.05, 0.9, 0.9)
    ranger = hyp_of(optimizer="ranger")
    assert (ranger.lr0, ranger.momentum, ranger.warmup_momentum) == (1e-3, 0.95, 0.95)
    given = hyp_of(optimizer="ranger", lr0=0.5, momentum=0.8)
    assert (given.lr0, given.momentum, given.warmup_momentum) == (0.5, 0.8, 0.8)


def test_hyper_parameters_of_the_command_line_override_those_of_the_file(tmp_path: Path) -> None:
    file = tmp_path / "own.yaml"
    file.write_text("lr0: 0.3\nmomentum: 0.7\nwarmup_momentum: 0.2\nweight_decay: 0.1\n")
    config = TrainConfig(hyp=str(file), lrf=0.5, weight_decay=0.2, warmup_epochs=2.0, label_smoothing=0.1)
    hyp = read_hyp(config, Classification.recipe)
    assert (hyp.lr0, hyp.lrf, hyp.momentum, hyp.warmup_momentum) == (0.3, 0.5, 0.7, 0.2)
    assert (hyp.weight_decay, hyp.warmup_epochs, hyp.label_smoothing) == (0.2, 2.0, 0.1)


@pytest.mark.parametrize(
    ("settings", "finding"),
    [
        ({"epochs": 0}, "--epochs 0: expected at least 1"),
        ({"batch_size": 1}, "--batch-size 1: expected at least 2"),
        ({"label_smoothing": 1.0}, "--label-smoothing 1.0"),
        ({"weight_decay": -0.1}, "--weight-decay -0.1: expected at least 0"),
        ({"warmup_epochs": -1.0}, "--warmup-epochs -1.0: expected at least 0"),
        ({"milestones": (0.8, 0.5)}, "expected growing shares of the run"),
        ({"milestones": (0.5, 1.0)}, "expected growing shares of the run"),
        ({"lr0": 0.0}, "lr0: got 0.0, expected more than 0"),
        ({"lr0": float("nan")}, "expected a finite number"),
    ],
)
def test_setting_out_of_range_is_refused_and_leaves_no_folder(
    tmp_path: Path, settings: dict[str, Any], finding: str
) -> None:
    with pytest.raises(ConfigError, match=finding):
        trained(classifier_config(tmp_path, **settings), small_pictures())
    assert not (tmp_path / "runs").exists()


def test_data_are_those_of_the_settings(tmp_path: Path) -> None:
    images = torch.zeros(4, 28, 28, dtype=torch.uint8).numpy()
    labels = torch.arange(4).numpy()
    write_picture_file(tmp_path / "p.npz", {"x_train": images, "y_train": labels, "x_test": images, "y_test": labels})
    assert len(Classification().read_data(TrainConfig(data=str(tmp_path / "p.npz"))).train) == 4


def test_training_goes_on_from_a_file_and_refuses_one_for_other_data(tmp_path: Path) -> None:
    data, config = small_pictures(), classifier_config(tmp_path, epochs=1)
    first = trained(config, data)
    tuned = replace(config, weights=str(first.best), name="tuned", lr0=1e-9, weight_decay=0.0)
    assert trained(tuned, data).evaluation.score == first.evaluation.score
    with pytest.raises(
        ConfigError,
        match=r"has 2 classes and takes images of \(1, 28, 28\), but .* has 2 and images of \(3, 32, 32\)",
    ):
        trained(replace(tuned, name="large"), small_pictures(chw=(3, 32, 32)))
    assert not (tmp_path / "runs/large").exists()


def test_network_that_is_not_the_one_named_is_refused_and_leaves_no_folder(tmp_path: Path) -> None:
    data, config = small_pictures(), classifier_config(tmp_path, epochs=1)
    own = build_classifier("vgg11", num_classes=2, in_channels=1)
    with pytest.raises(ConfigError, match="--cfg lenet5: a network of your own is given as well; leave one of them"):
        trained(config, data, own=own)
    assert not (tmp_path / "runs").exists()
    weights = str(trained(config, data).last)
    with pytest.raises(PruningError, match="--cfg vanilla and --weights .* disagree: the weights are of lenet5;"):
        trained(replace(config, cfg="vanilla", weights=weights, name="other"), data)
    assert not (tmp_path / "runs/other").exists()


def test_network_for_other_pictures_is_refused() -> None:
    large = small_pictures(chw=(1, 32, 32))
    data = Data(train=large.train, val=large.test)
    with pytest.raises(ConfigError, match=r"--cfg lenet5: no network for images of \(1, 32, 32\)"):
        new_spec(build_classifier("lenet5", num_classes=2, in_channels=1), data, name="lenet5")
    with pytest.raises(ConfigError, match=r"give logits of \(2, 10\), expected \(2, 2\)"):
        new_spec(build_classifier("vgg11", in_channels=1), data, name="vgg11")


def small_network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))


def test_network_of_ones_own_trains_under_an_empty_name(tmp_path: Path) -> None:
    data, config, own = small_pictures(), classifier_config(tmp_path, cfg="", epochs=1), small_network()
    result = trained(config, data, own=own)
    assert load_checkpoint(result.last).spec["name"] == ""
    loaded = load_classifier(result.last, skeleton=small_network())
    assert all(torch.equal(value, own.state_dict()[name]) for name, value in loaded.model.state_dict().items())
    with pytest.raises(CheckpointError, match="name no network of this project; load them into one with skeleton="):
        load_classifier(result.last)


def test_network_of_ones_own_goes_on_from_its_file(tmp_path: Path) -> None:
    data, config = small_pictures(), classifier_config(tmp_path, cfg="", epochs=1)
    first = trained(config, data, own=small_network())
    tuned = replace(config, weights=str(first.last), name="tuned", lr0=1e-12, weight_decay=0.0)
    second = trained(tuned, data, own=small_network())
    one, two = load_checkpoint(first.last).weights, load_checkpoint(second.last).weights
    assert all(torch.allclose(one[name], two[name], atol=1e-6) for name in one)


def test_loss_that_is_not_finite_names_epoch_batch_and_pictures(tmp_path: Path) -> None:
    def poison(network: Network, config: TrainConfig, folder: Path) -> Sequence[Hook]:
        with torch.no_grad():
            next(network.model.parameters()).fill_(float("nan"))
        return ()

    with pytest.raises(TrainingError, match=r"\(class nan\) in epoch 0, batch 0, at learning rate 0, images number"):
        trained(classifier_config(tmp_path), small_pictures(), hooks=poison)


def test_epoch_is_told_with_accuracy_and_time_left(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        trained(classifier_config(tmp_path, epochs=1), small_pictures())
    (line,) = [record.getMessage() for record in caplog.records if record.getMessage().startswith("epoch 1/1")]
    assert "  class 0." in line
    assert "accuracy 0." in line
    assert line.endswith("0.0 min left")


def test_settings_of_detectors_are_one_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    trained(classifier_config(tmp_path, epochs=1, rect=True, workers=0), small_pictures())
    warnings = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert warnings == ["classification does not use them; without effect: --rect, --workers"]


def test_accumulated_batches_make_the_step_of_one_large_batch(tmp_path: Path) -> None:
    """The mean of the gradients of small batches is that of all their images; the network has no batch norms."""
    common = {"epochs": 1, "augment": "none", "nominal_batch": 24, "warmup_epochs": 0.0, "lrf": 1.0}
    weights = []
    for batch_size in (24, 8):
        name = f"batch{batch_size}"
        run = trained(
            classifier_config(tmp_path, batch_size=batch_size, name=name, **common), small_pictures(train=48)
        )
        weights.append(load_checkpoint(run.last).weights)
    for name, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][name], tensor, atol=1e-5, rtol=1e-4, msg=name)
