"""slim.py: rounds of sparsity training, pruning and fine-tuning, killed and resumed, and what it refuses."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from interruption import KillAfter, Killed, assert_same_weights
from refusal import make_place, refusal
from tiny_slim import slim_config, slim_in_two_processes, slimmed, written_at

from commands.finetune import finetuning_hooks
from commands.slim import run_slimming
from commands.slim_config import SlimConfig
from commands.slim_report import StageResult
from models.complexity import count_macs, count_parameters
from models.load import load_model
from utils.config.cli import RESUME_LATEST
from utils.storage.checkpoint import load_checkpoint

STAGES = [f"round{number}/{stage}" for number in (1, 2) for stage in ("sparse", "prune", "finetune")]
# The dense network has 15688 parameters.
DENSE = 15688


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("slim")


@pytest.fixture(scope="module")
def rows(place: Path) -> Sequence[StageResult]:
    """A finished run in runs/exp."""
    return slimmed(slim_config(place)).stages


def test_every_round_makes_the_network_smaller_by_the_same_factor(rows: Sequence[StageResult]) -> None:
    assert [row.stage for row in rows] == STAGES
    parameters = [row.parameters for row in rows]
    assert parameters[0] == DENSE
    assert parameters[1] == parameters[2] == parameters[3] <= 0.4**0.5 * DENSE + 1
    assert parameters[4] == parameters[5] <= 0.4 * DENSE
    # Not much smaller either: the widest channel here has some 200 parameters.
    assert parameters[1] > 0.4**0.5 * DENSE - 250
    assert parameters[4] > 0.4 * DENSE - 250
    assert rows[4].macs < rows[1].macs < rows[0].macs
    assert rows[4].megabytes < rows[1].megabytes < rows[0].megabytes


def test_table_and_result_say_what_the_networks_are(rows: Sequence[StageResult], place: Path) -> None:
    for row in rows:
        model = load_model(row.weights).model
        assert (count_parameters(model), count_macs(model, (3, 64, 64))) == (row.parameters, row.macs)
    written = json.loads((place / "runs/exp/result.json").read_text())
    assert [stage["stage"] for stage in written["stages"]] == STAGES
    assert written["stages"][4]["parameters"] == rows[4].parameters
    assert written["weights"] == written["stages"][-1]["weights"] == str(rows[-1].weights)
    cut = json.loads((place / "runs/exp/round2/prune/result.json").read_text())
    tuned = json.loads((place / "runs/exp/round2/finetune/result.json").read_text())
    assert [row.scores["AP"] for row in rows[3:]] == [cut["before"]["AP"], cut["after"]["AP"], tuned["metrics"]["AP"]]
    names = ("AP50", "AP")
    assert [{name: stage[name] for name in names} for stage in written["stages"]] == [row.scores for row in rows]
    assert all(tuple(row.scores) == names for row in rows)


def test_first_sparse_network_teaches_every_fine_tuning(rows: Sequence[StageResult], place: Path) -> None:
    folder = place / "runs/exp"
    for number in (1, 2):
        config = load_checkpoint(folder / f"round{number}/finetune/weights/last.pt").config
        assert (config["teacher"], config["distill"]) == (str(folder / "round1/sparse/weights/last.pt"), 1.0)
        written = (folder / f"round{number}/finetune/results.csv").read_text()
        assert "distill/obj_loss" in written
        assert "distill/features_loss" in written, "in later rounds by the plan of all cuts so far"


def test_later_rounds_keep_anchors_and_names_and_start_from_the_round_before(
    rows: Sequence[StageResult], place: Path
) -> None:
    first, last = (load_model(rows[index].weights) for index in (0, -1))
    assert last.model.spec.anchors == first.model.spec.anchors
    assert last.names == first.names
    config = load_checkpoint(place / "runs/exp/round2/sparse/weights/last.pt").config
    assert config["weights"] == str(place / "runs/exp/round1/finetune/weights/best.pt")


def test_resumed_run_repeats_no_stage_and_ends_with_the_same_weights(
    rows: Sequence[StageResult], place: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder = place / "runs/killed"
    with monkeypatch.context() as patched:
        patched.setattr(
            "commands.finetune.finetuning_hooks", lambda *given: [*finetuning_hooks(*given), KillAfter(1)]
        )
        with pytest.raises(Killed):
            run_slimming(slim_config(place, name="killed"))
    assert not (folder / "result.json").exists()
    finished = written_at(folder / "round1/sparse") | written_at(folder / "round1/prune")
    with caplog.at_level(logging.INFO):
        resumed = slimmed(SlimConfig(resume=str(folder))).stages  # all other settings are those of the run
    assert f"{folder / 'round1/sparse'} is complete" in caplog.text
    assert f"resuming {folder / 'round1/finetune'} after epoch 1 of 2" in caplog.text
    assert written_at(folder / "round1/sparse") | written_at(folder / "round1/prune") == finished
    assert [(row.stage, row.scores, row.macs) for row in resumed] == [
        (row.stage, row.scores, row.macs) for row in rows
    ]
    for whole, again in zip(rows, resumed, strict=True):
        assert_same_weights(whole.weights, again.weights)


def test_complete_run_is_only_told_again(
    rows: Sequence[StageResult], place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(config: Any) -> None:
        raise AssertionError(f"{config.name} is run again")

    shutil.copytree(place / "runs/exp", place / "again/runs/exp")
    monkeypatch.setattr("commands.slim_stages.run_pruning", run)
    monkeypatch.setattr("commands.slim_stages.run_sparsity_training", run)
    monkeypatch.setattr("commands.slim_stages.run_finetuning", run)
    found = slimmed(SlimConfig(resume=RESUME_LATEST, project=str(place / "again/runs"))).stages
    assert [(row.stage, row.scores) for row in found] == [(row.stage, row.scores) for row in rows]


def test_round_without_target_cuts_a_share_and_rounds_widths(tmp_path: Path) -> None:
    settings = {"target": "", "percent": 0.5, "round": "pow2", "distill": 0.0, "finetune_epochs": 1, "rounds": 1}
    config = slim_config(tmp_path, sparsity="kernel", sr=1e-4, nosave=True, **settings)
    dense, cut, tuned = slimmed(config).stages
    assert cut.parameters < dense.parameters
    assert {width.bit_count() for width in load_model(tuned.weights).model.spec.widths.values()} == {1}
    assert load_checkpoint(tuned.weights).config["teacher"] == ""


def test_two_processes_share_one_run_folder(tmp_path: Path) -> None:
    stages = ("dense", "sparse", "prune", "finetune", "export")
    config = slim_config(tmp_path, rounds=1, finetune_epochs=1, dense_epochs=1, amp="off", distill=0.0, stages=stages)
    slim_in_two_processes(config, rows=4)
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["exp"]
    written = json.loads((tmp_path / "runs/exp/result.json").read_text())
    assert written["stages"][-1]["parameters"] <= 0.4 * DENSE
    assert Path(written["export"]["path"]).is_dir()


def test_run_folder_that_holds_a_run_is_not_used_again(rows: Sequence[StageResult], place: Path) -> None:
    config = slim_config(place, exist_ok=True)
    before = written_at(place / "runs/exp")
    with pytest.raises(ValueError, match=r"--exist-ok .*exp: it contains a run; --resume .*exp continues with it"):
        run_slimming(config)
    assert written_at(place / "runs/exp") == before


def test_teacher_without_distillation_is_a_warning(place: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ValueError, match="cannot be reached"):
        run_slimming(replace(slim_config(place), teacher="t.pt", distill=0.0, target="params=1", name="none"))
    assert "--teacher t.pt is not used without --distill, such as --distill 1" in caplog.text


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--rounds", "0"], "--rounds 0: expected at least 1"),
        (["--target", "params=100"], "target of 100 parameters cannot be reached with these roundings"),
        (["--round", "64"], "--round 64 exceeds every width: the widest layer to prune has 32 channels"),
        (["--distill", "1", "--teacher", "none.pt"], "none.pt"),
        (["--weights", "none.pt"], "none.pt"),
        (["--resume"], "--resume: no run in"),
        (["--resume", "nowhere"], "--resume nowhere: no folder of a run of slim.py; give one such as runs/slim/exp"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_mistake_is_told_in_one_line_before_anything_is_trained(
    tmp_path: Path, arguments: list[str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    here = make_place(tmp_path)
    assert line in refusal("slim", [*here.arguments("slim"), *arguments], capsys)
    assert not here.project.exists()
