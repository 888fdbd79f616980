"""Sparsity training as a run: what it writes, resuming, strength zero, two processes, and what is refused."""

from __future__ import annotations

import csv
import json
import logging
import os
import socket
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp
from interruption import KillAfter, Killed, assert_same_weights
from refusal import make_place, refusal
from tiny import tiny_config
from torch import nn

from commands.prune import run_pruning
from commands.prune_config import PruneConfig
from commands.train import run_training
from commands.train_config import TrainConfig
from commands.train_result import TrainResult
from commands.train_sparsity import run_sparsity_training, sparsity_hooks
from commands.train_sparsity_config import SparsityConfig
from engine.training.hooks import Hook
from engine.training.trainer import Trainer
from models.detector import build_model
from models.load import load_model
from models.spec import ModelSpec
from pruning.sparsity.monitor import SparsityMonitor
from pruning.surgery.plan import PLAN_NAME
from tasks.task import Network
from utils.errors import ConfigError
from utils.storage.checkpoint import load_checkpoint


def sparse_config(folder: Path, **settings: Any) -> SparsityConfig:
    """Two epochs of the tiny network, with more force than it stands for long."""
    plain = tiny_config(folder)
    values = {field.name: getattr(plain, field.name) for field in fields(plain)}
    return SparsityConfig(**{**values, "sr": 0.3, **settings})


def trained(config: SparsityConfig) -> TrainResult:
    result = run_sparsity_training(config)
    assert result is not None
    return result


def rows_of(result: TrainResult) -> list[dict[str, str]]:
    with (result.folder / "results.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> TrainResult:
    """A finished run."""
    # Large shifts would be clipped together with the scales.
    force = {"sr": 0.3, "beta_ratio": 0.0, "scale_rate": 10.0, "lrf": 0.2}
    return trained(sparse_config(tmp_path_factory.mktemp("sparse"), epochs=3, noplots=False, **force))


def test_run_reports_shares_verdict_and_a_ridge(run: TrainResult) -> None:
    report = json.loads((run.folder / "sparsity.json").read_text())
    history = report["gamma"]["epochs"]
    assert len(history) == len(report["force"]) == 4, "the start and three epochs"
    assert report["force"][0] == 0.0
    assert report["gamma"]["strength"] == 0.3
    assert report["gamma"]["verdict"] in ("too slow", "right", "too fast")
    assert report["gamma"]["next"]["sr"] > 0
    assert (run.folder / "gamma_ridge.png").stat().st_size > 1000
    columns = {f"sparsity/gamma_{name}" for name in ("below_0.01", "below_0.001", "prunable", "at_aim")}
    assert columns <= rows_of(run)[0].keys()
    assert [float(row["sparsity/gamma_at_aim"]) for row in rows_of(run)] == pytest.approx(
        [stats["at_aim"] for stats in history[1:]]
    )


def test_force_follows_rate_and_decay(run: TrainResult) -> None:
    # Cosine from 1 to .2 at a sixth, a half and five sixths of the run, times 1, .7 and .4; one batch warms up.
    report = json.loads((run.folder / "sparsity.json").read_text())
    first, second, third = 0.2 + 0.4 * (1 + 3**0.5 / 2), 0.7 * (0.2 + 0.4), 0.4 * (0.2 + 0.4 * (1 - 3**0.5 / 2))
    assert report["force"] == pytest.approx([0.0, first, first + second, first + second + third])


def test_scales_fall_and_the_checkpoint_has_the_usual_momentum(run: TrainResult) -> None:
    history = json.loads((run.folder / "sparsity.json").read_text())["gamma"]["epochs"]
    assert history[-1]["at_aim"] < 0.9 * history[0]["at_aim"]
    norms = [module for module in load_model(run.last).model.modules() if isinstance(module, nn.BatchNorm2d)]
    assert {norm.momentum for norm in norms} == {0.03}


def test_every_epoch_tells_the_verdict(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        trained(sparse_config(tmp_path, sparsity="mixed", srb=1e-6, src=1e-6, epochs=2))
    lines = [record.getMessage() for record in caplog.records if "of channels below 1e-2" in record.getMessage()]
    assert [line.split(":")[0] for line in lines] == ["gamma", "filter"] * 2
    assert "too slow" in lines[-2]
    assert "; try --scale-rate " in lines[-2]
    assert " --srb " in lines[-2]
    assert "; try --src " in lines[-1]


@pytest.mark.parametrize("setting", [{"sr": 0.0}, {"st": False}, {"sparsity": "mixed", "srb": 0.0, "src": 0.0}])
def test_strength_zero_is_train_py_to_the_bit(
    tmp_path: Path, setting: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    plain = run_training(tiny_config(tmp_path, epochs=1, name="plain"))
    zero = trained(sparse_config(tmp_path, epochs=1, name="zero", **setting))
    assert plain is not None
    assert_same_weights(plain.last, zero.last)
    assert "this is plain training" in caplog.text
    assert not (zero.folder / "sparsity.json").exists()


def killed_and_resumed(config: SparsityConfig, monkeypatch: pytest.MonkeyPatch, *, epoch: int) -> TrainResult:
    """The result of a run that was killed in this epoch and then went on."""
    with monkeypatch.context() as patched:
        patched.setattr(
            "commands.train_sparsity.sparsity_hooks", lambda *given: [*sparsity_hooks(*given), KillAfter(epoch)]
        )
        with pytest.raises(Killed):
            run_sparsity_training(replace(config, name="killed"))
    return trained(SparsityConfig(resume="latest", project=config.project))


def test_resumed_run_ends_with_the_same_weights_and_the_whole_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = sparse_config(tmp_path, sparsity="residual")
    whole = trained(replace(config, name="whole"))
    resumed = killed_and_resumed(config, monkeypatch, epoch=1)
    assert resumed.folder.name == "killed"
    assert_same_weights(whole.last, resumed.last)
    for name in ("sparsity.json", "results.csv"):
        assert (whole.folder / name).read_text() == (resumed.folder / name).read_text()
    assert not (resumed.folder / "gamma_ridge.png").exists(), "--noplots"


def auto_config(folder: Path, weights: Path, **settings: Any) -> SparsityConfig:
    """Four epochs in which channels fade that were chosen before."""
    own = {
        "weights": str(weights),
        "cfg": "",
        "sr": "auto",
        "target": "macs=60%",
        "shortcuts": "tied",
        "round": "none",
        "epochs": 4,
    }
    return sparse_config(folder, **{**own, **settings})


def test_chosen_channels_reach_zero_and_their_cut_costs_nothing(tmp_path: Path, run: TrainResult) -> None:
    config = auto_config(tmp_path, run.last, noplots=False)
    result = trained(config)
    plan = result.folder / PLAN_NAME
    report = json.loads((result.folder / "sparsity.json").read_text())["gamma"]
    assert report["strength"] is None
    assert "verdict" not in report
    assert report["epochs"][0]["below_thousandth"] < 0.1
    pruned = run_pruning(
        PruneConfig(
            weights=str(result.last),
            plan=str(plan),
            data=config.data,
            img_size=64,
            project=str(tmp_path / "prune"),
            workers=0,
        )
    )
    before, after = pruned.report.before, pruned.report.after
    assert after.macs <= 0.6 * before.macs
    norms = [module for module in load_model(result.last).model.modules() if isinstance(module, nn.BatchNorm2d)]
    kept = [module for module in pruned.model.modules() if isinstance(module, nn.BatchNorm2d)]
    scales, own = (torch.cat([norm.weight.detach().abs() for norm in some]) for some in (norms, kept))
    assert int((scales == 0).sum()) == len(scales) - len(own), "all that is cut is at zero, and nothing else"
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        heads, left = load_model(result.last).model(images), pruned.model(images)
    for head, other in zip(heads, left, strict=True):
        torch.testing.assert_close(head, other, rtol=1e-4, atol=1e-4)


def test_a_resumed_choice_is_the_same_choice(
    tmp_path: Path, run: TrainResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = auto_config(tmp_path, run.last)
    whole = trained(replace(config, name="whole"))
    resumed = killed_and_resumed(config, monkeypatch, epoch=2)
    assert_same_weights(whole.last, resumed.last)
    for name in (PLAN_NAME, "sparsity.json", "results.csv"):
        assert (whole.folder / name).read_text() == (resumed.folder / name).read_text()


@pytest.mark.parametrize("settings", [{"sparsity": "kernel"}, {"amp": "bf16", "shortcuts": "tied", "adam": True}])
def test_every_way_of_sparsity_training_gives_finite_weights(tmp_path: Path, settings: dict[str, Any]) -> None:
    result = trained(sparse_config(tmp_path, epochs=1, **{"sr": 1e-3, **settings}))
    assert all(value.isfinite().all() for value in load_checkpoint(result.last).best_weights.values())


def test_network_with_layers_without_batch_norm_can_be_watched(tmp_path: Path) -> None:
    model = build_model(ModelSpec.from_yaml("yolov5s-mobilenetv3-small-075", num_classes=3))
    network = Network(model=model, spec=model.spec, names=("RBC", "WBC", "Platelets"))
    *_, monitor = sparsity_hooks(network, sparse_config(tmp_path, sr=1e-3), tmp_path)
    assert isinstance(monitor, SparsityMonitor)
    unused: Any = None
    monitor.before_training(unused)
    assert monitor.stats["gamma"][0]["at_aim"] == 1.0


class FinalScales(Hook):
    """Keeps all scales at the end, one file per process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def end(self, trainer: Trainer) -> None:
        norms = [module for module in trainer.model.modules() if isinstance(module, nn.BatchNorm2d)]
        torch.save(torch.cat([norm.weight.detach() for norm in norms]), self.folder / f"{trainer.process.rank}.pt")


def train_in_process(rank: int, port: int, config: SparsityConfig, folder: Path) -> None:
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1")
    os.environ["MASTER_PORT"] = str(port)
    torch.set_num_threads(1)

    def hooks(network: Network, config: TrainConfig, run_folder: Path) -> Sequence[Hook]:
        return [*sparsity_hooks(network, config, run_folder), FinalScales(folder)]

    run_training(config, hooks=hooks)


def test_two_processes_keep_the_same_scales(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    config = sparse_config(tmp_path, epochs=1, sync_bn=True, amp="off", notest=True, scale_rate=3.0)
    mp.spawn(train_in_process, args=(port, config, tmp_path), nprocs=2)  # type: ignore[no-untyped-call]
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    assert torch.equal(first, second)
    assert first.mean() < 1
    assert (tmp_path / "runs/exp/sparsity.json").exists()


def test_strength_that_a_variant_does_not_use_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    trained(sparse_config(tmp_path, sparsity="mixed", sr=0.001, epochs=1, notest=True))
    assert "--sparsity mixed; without effect: --sr" in caplog.text


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sr": -1.0}, r"--sr -1.0: expected 0 or a positive number, such as 0.001"),
        ({"srb": float("nan")}, r"--srb nan: expected 0 or a positive number"),
        ({"beta_ratio": float("inf")}, r"--beta-ratio inf: expected 0 or a positive number"),
        ({"scale_rate": -1.0}, r"--scale-rate -1.0: expected 0 or a positive number"),
        ({"sr": "auto"}, r"--sr auto chooses among channels that have learnt something; give trained --weights"),
        ({"sr": "auto", "sparsity": "kernel"}, r"--sr auto fades scales of batch norms, not kernel"),
        ({"sr": "auto", "weights": "a.pt", "target": "speed=3"}, r"--target speed=3: expected a form such as"),
        ({"aim": 1.0}, r"--aim 1.0: expected a share between 0 and 1"),
        ({"evolve": 3}, r"--evolve is not for sparsity training; search hyper-parameters with train.py"),
    ],
)
def test_settings_are_checked_when_made(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SparsityConfig(**settings)


def test_script_refuses_in_one_line_and_makes_no_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = make_place(tmp_path)
    line = refusal("train_sparsity", [*place.arguments("train_sparsity"), "--sr", "-1"], capsys)
    assert line == "--sr -1.0: expected 0 or a positive number, such as 0.001"
    assert not place.project.exists()


def test_scale_that_is_no_number_is_refused_with_its_layer(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = make_place(tmp_path)
    content = torch.load(place.weights, weights_only=True)
    content["weights"]["model.2.bn.weight"][3] = float("nan")
    torch.save(content, place.weights)
    arguments = [*place.arguments("train_sparsity"), "--cfg", "", "--weights", str(place.weights)]
    assert "1 of 16 values of model.2.bn.weight are NaN" in refusal("train_sparsity", arguments, capsys)
