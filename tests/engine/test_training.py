"""Whole training runs on a tiny network: files, resuming, hooks, and what goes wrong."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from interruption import KillAfter, Killed, assert_same_weights
from tiny import tiny_config, tiny_data
from torch import Tensor

from commands.train import run_training
from commands.train_config import TrainConfig
from engine.training.hooks import Hook, Step
from engine.training.trainer import Trainer
from tasks.task import Network
from utils.errors import CheckpointError, ConfigError, TrainingError
from utils.storage.checkpoint import load_checkpoint


def weights_of(path: Path) -> dict[str, Tensor]:
    return load_checkpoint(path).best_weights


def test_run_folder_holds_checkpoints_result_and_curves(tmp_path: Path) -> None:
    result = run_training(tiny_config(tmp_path, noplots=False))
    assert result is not None
    names = {path.name for path in result.folder.iterdir()}
    assert {"opt.yaml", "hyp.yaml", "results.csv", "results.png", "labels.jpg", "train_batch0.jpg"} <= names
    assert {"confusion_matrix.png", "F1_curve.png", "PR_curve.png", "val_batch0_pred.jpg"} <= names
    written = json.loads((result.folder / "result.json").read_text())
    assert {"best_epoch", "metrics", "seconds", "images_per_second", "checkpoints"} <= written.keys()
    assert {"AP", "AP50", "AR100", "per_class"} <= written["metrics"].keys()
    assert Path(written["checkpoints"]["best"]).exists()
    assert len((result.folder / "results.csv").read_text().splitlines()) == 3


@pytest.mark.parametrize("killed_in", [0, 1])
def test_resumed_run_ends_with_bit_identical_weights(tmp_path: Path, killed_in: int) -> None:
    config = tiny_config(tmp_path, image_weights=True, multi_scale=True, close_mosaic=1)
    whole = run_training(replace(config, name="whole"))
    with pytest.raises(Killed):
        run_training(replace(config, name="killed"), hooks=lambda *_: [KillAfter(killed_in)])
    last = tmp_path / "runs/killed/weights/last.pt"
    last.with_name(".last.pt.1.tmp").write_bytes(b"half a checkpoint")
    resumed = run_training(TrainConfig(resume=str(last)))
    assert whole is not None
    assert resumed is not None
    assert_same_weights(whole.last, resumed.last)
    assert_same_weights(whole.best, resumed.best)
    assert sorted(path.name for path in last.parent.iterdir()) == ["best.pt", "last.pt"]
    assert (whole.folder / "results.csv").read_text() == (resumed.folder / "results.csv").read_text()


def test_resume_without_a_path_takes_the_newest_run(tmp_path: Path) -> None:
    config = tiny_config(tmp_path)
    with pytest.raises(Killed):
        run_training(config, hooks=lambda *_: [KillAfter(1)])
    resumed = run_training(TrainConfig(resume="latest", project=config.project))
    assert resumed is not None
    assert resumed.epochs == 2


def test_finished_run_is_not_resumed(tmp_path: Path) -> None:
    result = run_training(tiny_config(tmp_path, epochs=1))
    assert result is not None
    with pytest.raises(CheckpointError, match="complete"):
        run_training(TrainConfig(resume=str(result.last)))


def test_same_seed_gives_the_same_weights_and_another_seed_others(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, epochs=1)
    first, second, third = (
        run_training(replace(config, name=name, seed=seed)) for name, seed in (("a", 0), ("b", 0), ("c", 1))
    )
    assert first is not None
    assert second is not None
    assert third is not None
    assert_same_weights(first.last, second.last)
    one, other = weights_of(first.last), weights_of(third.last)
    assert not all(torch.equal(one[name], other[name]) for name in one)


def test_hook_that_does_nothing_leaves_training_bit_identical(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, epochs=1)
    plain = run_training(replace(config, name="plain"))
    hooked = run_training(replace(config, name="hooked"), hooks=lambda *_: [Hook()])
    assert plain is not None
    assert hooked is not None
    assert_same_weights(plain.last, hooked.last)


class Recorder(Hook):
    """Writes down which seam was reached."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def before_training(self, trainer: Trainer) -> None:
        self.seen.append("before")

    def after_loss(self, trainer: Trainer, step: Step) -> Tensor:
        self.seen.append("loss")
        return step.loss

    def gradients_ready(self, trainer: Trainer) -> None:
        assert all(p.grad is not None for p in trainer.model.parameters())
        self.seen.append("gradients")

    def weights_updated(self, trainer: Trainer) -> None:
        self.seen.append("updated")

    def epoch_end(self, trainer: Trainer) -> None:
        self.seen.append("epoch")

    def end(self, trainer: Trainer) -> None:
        self.seen.append("end")


def test_seams_come_in_order_and_steps_follow_accumulation(tmp_path: Path) -> None:
    recorder = Recorder()
    # 8 images in 4 batches, steps of 2 batches; no warm-up.
    config = tiny_config(tmp_path, epochs=1, batch_size=2, nominal_batch=4)
    hyp = tmp_path / "hyp.yaml"
    hyp.write_text("warmup_epochs: 0\n")
    run_training(replace(config, hyp=str(hyp)), hooks=lambda *_: [recorder])
    step = ["loss", "loss", "gradients", "updated"]
    assert recorder.seen == ["before", *step, *step, "epoch", "end"]


class Poison(Hook):
    """Makes the weights useless in the second epoch."""

    def weights_updated(self, trainer: Trainer) -> None:
        if trainer.state.epoch == 1:
            with torch.no_grad():
                next(trainer.model.parameters()).fill_(float("nan"))


def test_loss_that_is_not_finite_stops_with_epoch_batch_images_and_rate(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"epoch 1, batch 1, at learning rate .* images .*BloodImage.*jpg"):
        run_training(tiny_config(tmp_path), hooks=lambda *_: [Poison()])
    kept = load_checkpoint(tmp_path / "runs/exp/weights/last.pt")
    assert kept.epoch == 0
    assert all(tensor.isfinite().all() for tensor in kept.weights.values())


def test_run_killed_before_its_result_was_written_gets_it_by_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        """Stands for kill -9: nothing after it runs."""

    def kill(*args: Any, **settings: Any) -> None:
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr("commands.train.finish_run", kill)
        with pytest.raises(Killed):
            run_training(tiny_config(tmp_path))
    last = tmp_path / "runs/exp/weights/last.pt"
    before = last.read_bytes()
    result = run_training(TrainConfig(resume=str(last), device="cpu"))
    assert result is not None
    assert (result.folder / "result.json").exists()
    assert (result.epochs, result.best_epoch) == (2, load_checkpoint(result.best).epoch)
    assert last.read_bytes() == before
    with pytest.raises(CheckpointError, match="this run is complete"):
        run_training(TrainConfig(resume=str(last)))


def test_frozen_layers_keep_their_weights(tmp_path: Path) -> None:
    started: dict[str, Tensor] = {}

    def remember(network: Network, config: TrainConfig, folder: Path) -> Sequence[Hook]:
        started.update({name: p.detach().clone() for name, p in network.model.named_parameters()})
        return ()

    result = run_training(tiny_config(tmp_path, freeze=(3,), nosave=True, epochs=1), hooks=remember)
    assert result is not None
    trained = weights_of(result.last)
    moved = {
        name.split(".")[1] for name, value in started.items() if not torch.allclose(value, trained[name], atol=1e-3)
    }
    assert moved.isdisjoint({"0", "1", "2"})
    assert moved


def test_patience_stops_a_run_that_no_longer_improves(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        result = run_training(tiny_config(tmp_path, epochs=20, patience=2, lr0=1e-9))
    assert result is not None
    assert result.epochs < 20
    assert "--patience" in caplog.text


def test_save_period_keeps_checkpoints(tmp_path: Path) -> None:
    result = run_training(tiny_config(tmp_path, save_period=1))
    assert result is not None
    assert sorted(path.name for path in result.last.parent.iterdir()) == [
        "best.pt",
        "epoch0.pt",
        "epoch1.pt",
        "last.pt",
    ]


@pytest.mark.parametrize(
    "settings",
    [
        {"rect": True},
        {"quad": True},
        {"single_cls": True},
        {"notest": True},
        {"optimizer": "ranger", "schedule": "flat"},
        {"adam": True, "linear_lr": True},
        {"cache_images": True, "workers": 1},
        {"amp": "bf16"},
        {"noautoanchor": False},
        {"label_smoothing": 0.1},
    ],
    ids=lambda settings: "-".join(settings),
)
def test_every_way_of_training_gives_finite_weights(tmp_path: Path, settings: dict[str, Any]) -> None:
    result = run_training(tiny_config(tmp_path, epochs=1, **settings))
    assert result is not None
    assert all(tensor.isfinite().all() for tensor in weights_of(result.last).values())


def test_weights_of_another_class_count_start_a_run(tmp_path: Path) -> None:
    first = run_training(tiny_config(tmp_path, epochs=1))
    assert first is not None
    data = tiny_data(tmp_path / "two")
    data.write_text(data.read_text().replace("nc: 3", "nc: 4").replace("Platelets]", "Platelets, Other]"))
    second = run_training(
        tiny_config(tmp_path, epochs=1, cfg="", weights=str(first.best), data=str(data), name="two")
    )
    assert second is not None
    assert load_checkpoint(second.best).spec["num_classes"] == 4


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"freeze": (99,)}, "layers 0 to 9"),
        ({"device": "7"}, "usable GPUs"),
        ({"amp": "fp16"}, "needs a GPU"),
    ],
)
def test_settings_that_cannot_work_are_refused(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        run_training(tiny_config(tmp_path, **settings))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epochs": 0}, "--epochs 0"),
        ({"img_size": (1, 2, 3)}, "--img-size"),
        ({"rect": True, "image_weights": True}, "leave one out"),
    ],
)
def test_settings_are_checked_when_made(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TrainConfig(**settings)
