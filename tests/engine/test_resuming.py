"""A last.pt whose parts do not fit the run ends `--resume` with one line, before a step is made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from interruption import KillAfter, Killed, assert_same_weights
from tiny import tiny_config

from commands.train import run_training
from commands.train_config import TrainConfig
from engine.training.optim import OPTIMIZERS, STATE_ENTRIES, build_optimizer
from engine.training.resuming import resume_
from engine.training.schedule import Schedule
from engine.training.trainer import Trainer, TrainerSettings
from models.classifiers import build_classifier
from utils.config.hyp import Hyp
from utils.errors import CheckpointError
from utils.storage.checkpoint import Checkpoint, load_checkpoint, save_checkpoint

NAMES = sorted(OPTIMIZERS)
CPU = torch.device("cpu")


def trainer_after_steps(name: str, *, steps: int = 2) -> Trainer:
    """A Trainer whose optimiser has moved every weight."""
    torch.manual_seed(0)
    model = build_classifier("lenet5", num_classes=2, in_channels=1)
    trainer = Trainer(
        model,
        loss=None,  # type: ignore[arg-type] - no epoch is run
        optimizer=build_optimizer(name, model, lr=0.01, momentum=0.9, weight_decay=0.0),  # type: ignore[arg-type]
        schedule=Schedule(name="cosine", hyp=Hyp(), epochs=2, batches=2, accumulate=1),
        loader=None,  # type: ignore[arg-type]
        settings=TrainerSettings(epochs=2, device=CPU),
    )
    for step in range(steps):
        for parameter in model.parameters():
            parameter.grad = torch.full_like(parameter, 0.1 * (step + 1))
        trainer.optimizer.step()
    return trainer


def checkpoint_of(trainer: Trainer, folder: Path) -> Checkpoint:
    """As it comes back from a file."""
    made = Checkpoint(
        spec={},
        names=("a", "b"),
        weights=trainer.model.state_dict(),
        optimizer=trainer.optimizer.state_dict(),
        training_state=trainer.resumable_state(),
        epoch=0,
    )
    save_checkpoint(made, folder / "last.pt")
    return load_checkpoint(folder / "last.pt")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("steps", [0, 2])
def test_what_was_saved_comes_back_to_the_bit(name: str, steps: int, tmp_path: Path) -> None:
    first, second = trainer_after_steps(name, steps=steps), trainer_after_steps(name, steps=1)
    resume_(second, checkpoint_of(first, tmp_path), where="last.pt")
    expected, got = first.optimizer.state_dict(), second.optimizer.state_dict()
    assert got["state"].keys() == expected["state"].keys()
    for position, entries in expected["state"].items():
        assert set(entries) == set(STATE_ENTRIES[type(first.optimizer)])
        assert all(torch.equal(entries[key], got["state"][position][key]) for key in entries)
    assert second.state.epoch == 0


Change = Callable[[dict[str, Any]], object]


def entry_of(optimizer: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """The state of the third parameter, and the name of its last entry."""
    entries = optimizer["state"][2]
    return entries, list(entries)[-1]


def change_entry(change: Callable[[torch.Tensor], Any]) -> Change:
    def apply(optimizer: dict[str, Any]) -> None:
        entries, key = entry_of(optimizer)
        entries[key] = change(entries[key])

    return apply


def remove_entry(optimizer: dict[str, Any]) -> None:
    entries, key = entry_of(optimizer)
    del entries[key]


DAMAGE: dict[str, tuple[Change, str]] = {
    "too small": (change_entry(lambda value: value.flatten()[:1]), r"KEY is float32 \(1,\), expected float32 \("),
    "another shape": (change_entry(lambda value: value[..., None]), r"KEY is float32 .*, 1\), expected float32 \("),
    "doubles": (change_entry(lambda value: value.double()), r"KEY is float64 .* expected float32 \("),
    "integers": (change_entry(lambda value: value.long()), "KEY is int64 .* expected float32"),
    "no tensor": (change_entry(lambda value: "x"), "KEY is str .* expected float32"),
    "nothing": (change_entry(lambda value: None), "KEY is NoneType .* expected float32"),
    "an entry less": (remove_entry, "NAME (lacks 'KEY'|is missing)"),
    "an entry more": (lambda o: o["state"][2].update(more=torch.zeros(1)), "NAME has a surplus 'more'"),
    "a parameter less": (lambda o: o["state"].pop(2), "NAME is missing"),
    "a parameter more": (lambda o: o["state"].update({99: {}}), "optimizer state has a surplus '99'"),
    "a parameter without a dictionary": (lambda o: o["state"].update({2: 3}), "NAME is missing"),
    "a group less": (lambda o: o["param_groups"].pop(), "optimizer has 2 groups of parameters, expected 3"),
    "a group more": (lambda o: o["param_groups"].append({"params": []}), "optimizer has 4 groups"),
    "a group of others": (lambda o: o["param_groups"][1]["params"].pop(), "optimizer group 1 lists other parameters"),
    "no groups": (lambda o: o.pop("param_groups"), "optimizer has no 'param_groups'"),
    "no state": (lambda o: o.pop("state"), "optimizer has no 'state'"),
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("damage", DAMAGE)
def test_state_that_does_not_fit_is_named_and_changes_nothing(name: str, damage: str, tmp_path: Path) -> None:
    trainer = trainer_after_steps(name)
    checkpoint = checkpoint_of(trainer_after_steps(name, steps=3), tmp_path)
    assert checkpoint.optimizer is not None
    _, key = entry_of(checkpoint.optimizer)
    change, words = DAMAGE[damage]
    change(checkpoint.optimizer)
    third = trainer.optimizer.param_groups[1]["params"][2]  # LeNet has no norms, so group 1 is the first
    (parameter,) = (name for name, value in trainer.model.named_parameters() if value is third)
    before = {n: value.clone() for n, value in trainer.optimizer.state[third].items()}
    with pytest.raises(CheckpointError) as caught:
        resume_(trainer, checkpoint, where="runs/exp/weights/last.pt")
    pattern = words.replace("KEY", key).replace("NAME", f"optimizer state of {parameter}")
    assert caught.match(f"^weights runs/exp/weights/last.pt cannot be resumed: .*{pattern}.*; use an undamaged copy")
    assert "\n" not in str(caught.value)
    assert all(torch.equal(value, before[n]) for n, value in trainer.optimizer.state[third].items())


@pytest.mark.parametrize("name", ["adam", "adamw", "ranger"])
@pytest.mark.parametrize("value", [torch.zeros(3), torch.tensor(2), 2.0])
def test_count_of_steps_is_a_float_without_axes(name: str, value: Any, tmp_path: Path) -> None:
    checkpoint = checkpoint_of(trainer_after_steps(name), tmp_path)
    assert checkpoint.optimizer is not None
    checkpoint.optimizer["state"][0]["step"] = value
    with pytest.raises(CheckpointError, match=r"step is .*, expected float32 \(\)"):
        resume_(trainer_after_steps(name), checkpoint, where="last.pt")


@pytest.mark.parametrize("entry", ["best_fitness", "best_epoch", "scaler", "hooks"])
def test_counters_that_are_missing_are_named(entry: str, tmp_path: Path) -> None:
    checkpoint = checkpoint_of(trainer_after_steps("sgd"), tmp_path)
    del checkpoint.training_state[entry]
    with pytest.raises(CheckpointError, match=f"training_state lacks a valid '{entry}'"):
        resume_(trainer_after_steps("sgd"), checkpoint, where="last.pt")


def test_scaler_without_its_scale_is_named(tmp_path: Path) -> None:
    trainer = trainer_after_steps("sgd")
    trainer.scaler = torch.amp.GradScaler("cpu", enabled=True)
    checkpoint = checkpoint_of(trainer, tmp_path)
    resume_(trainer, checkpoint, where="last.pt")
    del checkpoint.training_state["scaler"]["scale"]
    with pytest.raises(CheckpointError, match="the scaler of fp16 lacks a valid 'scale'"):
        resume_(trainer, checkpoint, where="last.pt")


def killed_run(folder: Path, **settings: Any) -> Path:
    """The last.pt of a detector's run that was killed in its second epoch."""
    with pytest.raises(Killed):
        run_training(tiny_config(folder, name="killed", **settings), hooks=lambda *_: [KillAfter(1)])
    return folder / "runs/killed/weights/last.pt"


def rewrite(last: Path, change: Callable[[Checkpoint], Checkpoint]) -> None:
    save_checkpoint(change(load_checkpoint(last)), last)


def without_momentum(checkpoint: Checkpoint) -> Checkpoint:
    assert checkpoint.optimizer is not None
    del checkpoint.optimizer["state"][0]["momentum_buffer"]
    return checkpoint


def with_first_shortened(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    name = next(iter(state))
    return {**state, name: state[name][:1]}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (without_momentum, "optimizer state of .* is missing"),
        (lambda c: replace(c, ema=None), "ema lacks 'model.0.conv.weight'"),
        (
            lambda c: replace(c, ema=with_first_shortened(c.ema)),
            r"ema 'model.0.conv.weight' has shape .* expected \(",
        ),
        (lambda c: replace(c, ema={**c.ema, "more": torch.ones(1)}), "ema has a surplus 'more'"),
        (lambda c: replace(c, weights=with_first_shortened(c.weights)), "weights 'model.0.conv.weight' has shape"),
    ],
)
def test_detectors_run_is_not_resumed_from_parts_that_do_not_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Checkpoint], Checkpoint], words: str
) -> None:
    def fail(*_: object) -> None:
        raise AssertionError("training has started")

    last = killed_run(tmp_path)
    rewrite(last, change)
    monkeypatch.setattr(Trainer, "fit", fail)
    with pytest.raises(CheckpointError, match=f"last.pt cannot be resumed: {words}"):
        run_training(TrainConfig(resume=str(last), device="cpu"))


def test_resumed_run_with_frozen_layers_equals_the_unbroken_one(tmp_path: Path) -> None:
    last = killed_run(tmp_path, freeze=(3,))
    whole = run_training(tiny_config(tmp_path, name="whole", freeze=(3,)))
    resumed = run_training(TrainConfig(resume=str(last), device="cpu"))
    assert whole is not None
    assert resumed is not None
    assert_same_weights(whole.last, resumed.last)
