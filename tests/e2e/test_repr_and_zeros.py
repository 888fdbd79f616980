"""RePr, unstructured pruning and frozen zeros in whole runs of a tiny detector."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from interruption import KillAfter, Killed, assert_same_weights
from tiny import TINY_CFG, tiny_config
from tiny_classes import classifier_config, small_pictures, trained

from commands.finetune import finetuning_hooks, run_finetuning
from commands.finetune_config import FinetuneConfig
from commands.prune import PruneResult, run_pruning
from commands.prune_config import PruneConfig
from commands.train import HookFactory, no_hooks, run_training
from commands.train_config import TrainConfig
from commands.train_result import TrainResult
from models.detector import build_model
from models.load import load_model
from models.spec import ModelSpec
from pruning.zeros.masks import prunable_weights, zero_masks
from tasks.choose import DETECTION
from utils.config.cli import RESUME_LATEST
from utils.errors import ConfigError
from utils.storage.checkpoint import Checkpoint, save_checkpoint
from utils.storage.run_folder import plain

NAMES = ("RBC", "WBC", "Platelets")
DENSE = ModelSpec.from_yaml(TINY_CFG)
SHORT: dict[str, Any] = {"repr": True, "repr_s1": 1, "repr_s2": 1, "repr_cycles": 1}


def save(path: Path) -> str:
    torch.manual_seed(0)
    model = build_model(DENSE)
    save_checkpoint(Checkpoint(spec=DENSE.to_dict(), names=NAMES, weights=model.state_dict()), path)
    return str(path)


def share_of_zeros(path: Path) -> float:
    weights = prunable_weights(load_model(path).model).values()
    return sum(int((weight == 0).sum()) for weight in weights) / sum(weight.numel() for weight in weights)


def finished(result: TrainResult | None) -> TrainResult:
    assert result is not None
    return result


def killed_in(epoch: int, hooks: HookFactory) -> HookFactory:
    return lambda *given: [*hooks(*given), KillAfter(epoch)]


def pruned(folder: Path, **settings: Any) -> PruneResult:
    values = {"weights": save(folder / "dense.pt"), "project": str(folder / "prune"), "device": "cpu", "img_size": 64}
    return run_pruning(PruneConfig(**{**values, "workers": 0, "noplots": True, **settings}))


def checkpoint_of(result: PruneResult) -> Path:
    assert result.folder is not None
    return result.folder / "pruned_model.pt"


def finetuning_of(folder: Path, weights: Path, **settings: Any) -> FinetuneConfig:
    values = plain(tiny_config(folder)) | {"cfg": "", "img_size": (64,), "freeze": (0,), "weights": str(weights)}
    return FinetuneConfig(**{**values, **settings})


def test_detector_trains_with_repr_and_goes_on_after_a_kill(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, epochs=3, optimizer="ranger", **SHORT)
    whole = finished(run_training(replace(config, name="whole")))
    with pytest.raises(Killed):
        run_training(replace(config, name="killed"), hooks=killed_in(2, no_hooks))
    resumed = finished(run_training(TrainConfig(resume=RESUME_LATEST, project=config.project)))
    assert_same_weights(whole.last, resumed.last)
    records = [json.loads((result.folder / "repr.json").read_text()) for result in (whole, resumed)]
    assert records[0] == records[1]
    assert records[0]["metric"] == "AP"
    assert list(records[0]["curve"]) == ["0", "1", "2"]
    assert "repr/filters_off" in (whole.folder / "results.csv").read_text().splitlines()[0]


def test_cycles_that_do_not_fit_are_refused_before_training(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not fit a run of 2"):
        run_training(tiny_config(tmp_path, epochs=2, **SHORT))
    with pytest.raises(ConfigError, match="RePr ratio is 1.5: expected a share between 0 and 1"):
        run_training(tiny_config(tmp_path, epochs=3, **SHORT, repr_ratio=1.5))
    assert not (tmp_path / "runs").exists()


def test_classifier_trains_with_repr_and_goes_on_after_a_kill(tmp_path: Path) -> None:
    config, pictures = classifier_config(tmp_path, cfg="vanilla", **SHORT), small_pictures(chw=(3, 32, 32))
    whole = trained(replace(config, name="whole"), pictures)
    with pytest.raises(Killed):
        trained(replace(config, name="killed"), pictures, hooks=killed_in(2, no_hooks))
    resumed = trained(TrainConfig(resume=RESUME_LATEST, project=config.project), pictures)
    assert_same_weights(whole.last, resumed.last)
    records = [json.loads((result.folder / "repr.json").read_text()) for result in (whole, resumed)]
    assert records[0] == records[1]
    assert records[0]["metric"] == "accuracy"
    assert list(records[0]["curve"]) == ["0", "1", "2"]
    assert "repr/filters_off" in (whole.folder / "results.csv").read_text().splitlines()[0]


def test_finetuning_takes_repr_as_well(tmp_path: Path) -> None:
    config = finetuning_of(tmp_path, Path(save(tmp_path / "dense.pt")), epochs=3, **SHORT)
    assert (finished(run_finetuning(config)).folder / "repr.json").exists()


def test_unstructured_alone_cuts_no_channel(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        result = pruned(tmp_path, unstructured=0.9)
    assert result.model.spec == DENSE
    assert share_of_zeros(checkpoint_of(result)) == pytest.approx(0.9, abs=1e-4)
    assert "90.0%" in caplog.text


def test_unstructured_goes_on_from_cut_channels(tmp_path: Path) -> None:
    result = pruned(tmp_path, percent=0.3, criterion="kernel_l1", unstructured=0.5, unstructured_scope="layer")
    assert result.model.spec.widths
    assert share_of_zeros(checkpoint_of(result)) == pytest.approx(0.5, abs=0.001)


def test_protected_layers_keep_their_weights(tmp_path: Path) -> None:
    result = pruned(tmp_path, unstructured=0.9, protect=("model.0.*", "model.9.*"))
    assert "model.0.conv.weight" not in zero_masks(result.model)
    assert "model.9.m.0.weight" not in zero_masks(result.model)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"unstructured": 1.0}, "--unstructured 1.0: expected a share from 0 up to, not including, 1"),
        ({"unstructured_scope": "layer"}, "--unstructured-scope is for single weights; give --unstructured"),
    ],
)
def test_unstructured_settings_without_meaning_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        PruneConfig(weights="a.pt", **settings)


@pytest.mark.parametrize(("is_frozen", "expected"), [(True, 0.9), (False, 0.0)])
def test_finetuning_keeps_zeros_only_when_asked(tmp_path: Path, is_frozen: bool, expected: float) -> None:
    weights = checkpoint_of(pruned(tmp_path, unstructured=0.9, unstructured_scope="layer"))
    config = finetuning_of(tmp_path, weights, freeze_zeros=is_frozen, adam=True)
    result = finished(run_finetuning(config))
    before, after = zero_masks(load_model(weights).model), load_model(result.last).model
    assert share_of_zeros(result.last) == pytest.approx(expected, abs=0.05)
    if is_frozen:
        assert all(not after.get_parameter(name)[~mask].any() for name, mask in before.items())


def test_finetuning_with_frozen_zeros_goes_on_after_a_kill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = finetuning_of(tmp_path, checkpoint_of(pruned(tmp_path, unstructured=0.9)), freeze_zeros=True)
    whole = finished(run_finetuning(replace(config, name="whole")))
    with monkeypatch.context() as patched:
        patched.setattr("commands.finetune.finetuning_hooks", killed_in(1, finetuning_hooks))
        with pytest.raises(Killed):
            run_finetuning(replace(config, name="killed"))
    resumed = finished(run_finetuning(FinetuneConfig(resume=RESUME_LATEST, project=config.project)))
    assert_same_weights(whole.last, resumed.last)


def test_freezing_a_network_without_zeros_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    weights = Path(save(tmp_path / "dense.pt"))
    network = DETECTION.load(weights)
    with caplog.at_level(logging.WARNING):
        hooks = finetuning_hooks(network, finetuning_of(tmp_path, weights, freeze_zeros=True), tmp_path)
    assert "has no weight of exactly 0, so nothing is frozen" in caplog.text
    assert len(hooks) == 1
