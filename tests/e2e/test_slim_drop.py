"""slim.py --max-map-drop: rounds until too much is lost, the network that is shipped, killed and resumed runs."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from interruption import KillAfter, Killed, assert_same_weights
from labelled_classifier import ClassifierPlace, make_classifier_place
from refusal import make_place, refusal
from tiny_slim import slim_in_two_processes, slimmed, written_at

from commands.finetune import finetuning_hooks
from commands.slim import run_slimming, slim
from commands.slim_config import SlimConfig
from commands.slim_report import SlimResult
from commands.train_config import TrainConfig
from engine.training.hooks import Hook
from pruning.selection.score_drop import DROP_NAME
from tasks.task import Network

RUNS = ("run_training", "run_sparsity_training", "run_pruning", "run_finetuning", "run_export")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> ClassifierPlace:
    """Weights that label all images right."""
    return make_classifier_place(tmp_path_factory.mktemp("drop"), "vanilla")


def drop_config(place: ClassifierPlace, **settings: Any) -> SlimConfig:
    """Two rounds to 64 % of the MACs that learn next to nothing, so that the second loses more than the first."""
    own = {"epochs": 1, "finetune_epochs": 1, "lr0": 1e-6, "round": "none", "target": "macs=64%"}
    own |= {"runtime": "torchscript", "max_map_drop": 0.99}
    return SlimConfig(**place.training(**{**own, **settings}))


def decision(folder: Path) -> dict[str, Any]:
    """The decision of a finished run."""
    found: dict[str, Any] = json.loads((folder / "result.json").read_text())["max_map_drop"]
    return found


@dataclass(frozen=True, kw_only=True)
class Finished:
    """A finished run."""

    result: SlimResult
    folder: Path

    @property
    def drop(self) -> dict[str, Any]:
        """Its decision."""
        return decision(self.folder)


@pytest.fixture(scope="module")
def far(place: ClassifierPlace) -> Finished:
    """A run that may lose nearly everything, without the most rounds given."""
    return Finished(result=slimmed(drop_config(place, name="far")), folder=place.project / "far")


def test_rounds_go_on_to_the_target_where_everything_is_allowed(far: Finished, place: ClassifierPlace) -> None:
    settings = yaml.safe_load((far.folder / "opt.yaml").read_text())
    assert (settings["rounds"], settings["stages"]) == (10, ["sparse", "prune", "finetune", "export"])
    assert [row["round"] for row in far.drop["rounds"]] == [1, 2]
    assert (far.drop["taken"], far.drop["dense"], far.drop["metric"]) == (2, 1.0, "accuracy")
    assert far.drop["ended"] == "--target macs=64% is reached"
    cuts = [row for row in far.result.stages if row.stage.endswith("prune")]
    dense = far.result.stages[0].macs
    for number, cut in enumerate(cuts, 1):
        assert 0.8**number * dense * 0.95 <= cut.macs <= 0.8**number * dense + 1
        assert far.drop["rounds"][number - 1]["target"] == f"macs={0.8**number * dense:.0f}"
    for row in far.drop["rounds"]:
        tuned = json.loads((far.folder / f"round{row['round']}/finetune/result.json").read_text())
        assert row["score"] == tuned["metrics"]["accuracy"]
        assert row["lost"] == 1 - row["score"]


def limit_between(far: Finished) -> float:
    """A drop that only the second round exceeds."""
    first, second = (float(row["lost"]) for row in far.drop["rounds"])
    assert 0 < first < second
    return (first + second) / 2


@pytest.fixture(scope="module")
def ended(far: Finished, place: ClassifierPlace) -> Finished:
    """A run of which the second round loses too much."""
    config = drop_config(place, name="ended", max_map_drop=limit_between(far))
    return Finished(result=slimmed(config), folder=place.project / "ended")


def test_network_of_the_round_before_the_one_that_lost_too_much_is_exported(far: Finished, ended: Finished) -> None:
    assert [row["round"] for row in ended.drop["rounds"]] == [1, 2]
    assert (ended.drop["taken"], ended.drop["ended"]) == (1, "")
    assert ended.drop["rounds"] == far.drop["rounds"]
    best = ended.folder / "round1/finetune/weights/best.pt"
    assert ended.result.weights == str(best)
    assert_same_weights(best, far.folder / "round1/finetune/weights/best.pt")
    assert json.loads((ended.folder / "export/result.json").read_text())["config"]["weights"] == str(best)
    lost = ended.drop["rounds"][1]["lost"]
    assert f"round 2 would have lost {lost:.4f}" in ended.result.as_text()
    assert json.loads((ended.folder / DROP_NAME).read_text()) == ended.drop


def test_report_ships_the_taken_round_and_says_what_the_next_one_costs(
    ended: Finished, place: ClassifierPlace
) -> None:
    content = json.loads((ended.folder / "report.json").read_text())
    answer = content["answer"]
    assert (answer["stage"], answer["reference"]) == ("round1/finetune", "uncut")
    assert answer["max_map_drop"] == ended.drop
    assert answer["score"]["before"] == 1
    assert answer["score"]["after"] == ended.drop["rounds"][0]["score"]
    assert answer["ship"]["stage"] == "round1/finetune"
    first = content["networks"][0]
    assert (first["stage"], first["weights"]) == ("uncut", str(place.weights))
    assert all(len(row["after"]) == 1 for row in content["layers"])  # the second cut is not shipped
    page = (ended.folder / "report.html").read_text(encoding="utf-8")
    assert f"round 2 would have lost {ended.drop['rounds'][1]['lost']:.4f}" in page


def test_dense_network_is_exported_where_the_first_round_loses_too_much(
    far: Finished, place: ClassifierPlace, caplog: pytest.LogCaptureFixture
) -> None:
    config = drop_config(place, name="dense", max_map_drop=far.drop["rounds"][0]["lost"] / 2)
    with caplog.at_level(logging.INFO):
        result = slimmed(config)
    folder = place.project / "dense"
    drop = decision(folder)
    assert (drop["taken"], len(drop["rounds"])) == (None, 1)
    assert drop["reason"] in caplog.text
    assert drop["reason"].startswith("taking the dense network, accuracy 1.0000: round 1 lost ")
    assert result.weights == str(place.weights)
    assert f"the dense network: {place.weights}" in result.as_text()
    assert result.exported is not None
    assert result.exported.path.name.startswith("dense")
    content = json.loads((folder / "report.json").read_text())
    assert (content["answer"]["stage"], content["answer"]["is_pruned"]) == ("uncut", False)
    assert content["answer"]["ship"]["path"] == str(result.exported.path)
    assert "layers" not in content
    assert f"{result.exported.path.name}, the dense network: no cut of this run is within" in (
        folder / "report.html"
    ).read_text(encoding="utf-8")


def kill_second_finetuning(network: Network, config: TrainConfig, folder: Path) -> list[Hook]:
    """Hooks of a fine-tuning of which that of the second round is killed."""
    killer = [KillAfter(0)] if folder.parent.name == "round2" else []
    return [*finetuning_hooks(network, config, folder), *killer]


def killed(*given: Any, **named: Any) -> None:
    raise Killed


def refused(config: Any, *rest: Any) -> None:
    raise AssertionError(f"{config.name} is run again")


def test_killed_runs_repeat_nothing_and_decide_alike(
    ended: Finished, place: ClassifierPlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = drop_config(place, name="killed", max_map_drop=ended.drop["allowed"])
    folder = place.project / "killed"
    with monkeypatch.context() as patched:
        patched.setattr("commands.finetune.finetuning_hooks", kill_second_finetuning)
        with pytest.raises(Killed):
            run_slimming(config)
    begun = {name: written_at(folder / name) for name in ("uncut", "round1", "round2/sparse", "round2/prune")}
    with monkeypatch.context() as patched:
        patched.setattr("commands.export.verify", killed)  # when all is decided
        with pytest.raises(Killed):
            run_slimming(SlimConfig(resume=str(folder)))
    assert {name: written_at(folder / name) for name in begun} == begun
    rounds = {name: written_at(folder / name) for name in ("uncut", "round1", "round2")}
    with monkeypatch.context() as patched:
        for name in RUNS[:-1]:
            patched.setattr(f"commands.slim_stages.{name}", refused)
        patched.setattr("commands.slim_start.open_evaluator", refused)
        resumed = slimmed(SlimConfig(resume=str(folder)))
    assert {name: written_at(folder / name) for name in rounds} == rounds
    assert decision(folder) == ended.drop
    assert_same_weights(Path(resumed.weights), Path(ended.result.weights))


def test_complete_run_is_only_told_again(ended: Finished, monkeypatch: pytest.MonkeyPatch) -> None:
    before = ended.drop
    for name in RUNS:
        monkeypatch.setattr(f"commands.slim_stages.{name}", refused)
    again = slimmed(SlimConfig(resume=str(ended.folder), stages=("export",)))
    assert (again.weights, ended.drop) == (ended.result.weights, before)
    slimmed(SlimConfig(resume=str(ended.folder), stages=("sparse", "prune", "finetune", "export")))
    assert ended.drop == before


def test_decision_is_made_again_from_the_results_of_the_rounds(
    ended: Finished, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = ended.drop
    (ended.folder / DROP_NAME).unlink()
    for name in RUNS:
        monkeypatch.setattr(f"commands.slim_stages.{name}", refused)
    slimmed(SlimConfig(resume=str(ended.folder)))
    assert ended.drop == before


def test_rounds_end_where_no_cut_reaches_the_next_target(place: ClassifierPlace) -> None:
    # Three layers of 28 channels leave 79 % of the MACs.
    own: dict[str, Any] = {"min_channels": 28, "stages": ("prune", "finetune")}
    result = slimmed(drop_config(place, name="least", **own))
    drop = decision(place.project / "least")
    assert [row["round"] for row in drop["rounds"]] == [1]
    assert drop["taken"] == 1
    assert "MACs cannot be reached" in drop["ended"]
    assert f"no further round: {drop['ended']}" in result.as_text()
    assert not (place.project / "least/round2").exists()


def test_rounds_end_after_the_most(place: ClassifierPlace) -> None:
    slimmed(drop_config(place, name="most", rounds=2, target="macs=30%", stages=("prune", "finetune")))
    drop = decision(place.project / "most")
    assert (drop["taken"], drop["ended"]) == (2, "all --rounds 2 are run")


def test_dense_training_of_the_run_is_what_rounds_are_compared_with(place: ClassifierPlace) -> None:
    own: dict[str, Any] = {"rounds": 2, "dense_epochs": 1, "stages": ("dense",)}
    slimmed(drop_config(place, name="own", **own))
    folder = place.project / "own"
    assert not (folder / DROP_NAME).exists()
    slimmed(SlimConfig(resume=str(folder), stages=("prune", "finetune")))
    dense = json.loads((folder / "dense/result.json").read_text())["metrics"]["accuracy"]
    assert decision(folder)["dense"] == dense
    assert not (folder / "uncut").exists()


def test_two_processes_decide_as_one(place: ClassifierPlace) -> None:
    slim_in_two_processes(drop_config(place, name="two", rounds=2, stages=("prune", "finetune")), rows=5)
    drop = decision(place.project / "two")
    assert (drop["dense"], len(drop["rounds"]), drop["taken"]) == (1, 2, 2)


def test_dry_run_shows_the_rounds_that_would_be_tried(
    place: ClassifierPlace, caplog: pytest.LogCaptureFixture
) -> None:
    before = written_at(place.root)
    with caplog.at_level(logging.INFO):
        assert slim(replace(drop_config(place, name="plan", max_map_drop=0.02), dry_run=True))
    assert written_at(place.root) == before
    lines = caplog.messages[-1].splitlines()
    assert [line.split()[0] for line in lines[1:-3] if not line.startswith(" ")] == [
        *(f"round{number}/{stage}" for number in (1, 2) for stage in ("sparse", "prune", "finetune")),
        "export",
    ]
    assert lines[-3] == (
        "rounds go on until more than 0.02 of the dense network's score is lost, at most so far: --target macs=64% "
        "is reached"
    )
    assert lines[-2].startswith("at most ")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--max-map-drop", "much"], "max-map-drop"),
        (
            ["--max-map-drop", "nan"],
            "--max-map-drop nan: expected points from 0 up to, not including, 1, such as 0.01",
        ),
        (["--max-map-drop", "-0.1"], "--max-map-drop -0.1: expected points from 0"),
        (["--max-map-drop", "1"], "--max-map-drop 1.0: expected points from 0"),
        (["--data", ""], "--max-map-drop compares scores on val; give --data"),
        (["--percent", "0.3"], "--percent and --max-map-drop both say how much to cut; leave one out"),
        (["--start", "auto", "--cfg", "", "--weights", "a.pt"], "--start auto compares networks by one cost"),
        (["--stages", "sparse", "prune"], "--max-map-drop cuts and fine-tunes by turns; add prune and finetune"),
        (["--stages", "sparse", "prune", "finetune", "--sr", "0.1"], "compares with the dense network; add dense"),
        (["--target", "params=90%", "--min-channels", "32"], "target of 1.412e+04 parameters cannot be reached"),
        (["--dense-epochs", "2"], "val has no labels, by which --max-map-drop decides; give labelled data"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistake_is_one_line_before_anything_is_trained(
    tmp_path: Path, arguments: list[str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    here = make_place(tmp_path)
    if "no labels" in line:
        (tmp_path / "labels/val/c.txt").write_text("")
    common = [*here.arguments("slim"), "--target", "macs=50%", "--max-map-drop", "0.01", "--runtime", "torchscript"]
    assert line in refusal("slim", [*common, *arguments], capsys)
    assert not here.project.exists()


def test_prune_does_not_take_a_drop(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    here = make_place(tmp_path)
    assert "--max-map-drop" in refusal("prune", [*here.arguments("prune"), "--max-map-drop", "0.01"], capsys)
