"""prune.py --criterion taylor --iterative: what it writes, that it survives being killed, and what it refuses."""

from __future__ import annotations

import json
import logging
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from refusal import NAMES, Place, make_place, refusal, run
from tiny import ROOT, TINY_CFG

from commands.prune import PruneResult, run_pruning
from commands.prune_config import PruneConfig
from models.complexity import count_macs
from models.detector import build_model
from models.load import load_model
from models.spec import ModelSpec
from pruning.surgery.cut import apply_plan
from pruning.surgery.plan import PruningPlan
from utils.storage.checkpoint import Checkpoint, load_checkpoint, save_checkpoint

IMAGE = (3, 64, 64)
FLAGS = {
    "criterion": "taylor",
    "iterative": True,
    "target": "macs=50%",
    "step": 30,
    "updates": 1,
    "taylor_batches": 1,
    "batch_size": 2,
    "img_size": 64,
    "workers": 0,
    "device": "cpu",
    "noplots": True,
}
# The same run in a process of its own that is killed in the middle of writing its third round.
KILLED = """
import os, signal, sys, torch
torch.set_num_threads(THREADS)
from pathlib import Path
from commands import prune_rounds as iterative_run
from commands.prune import run_pruning
from commands.prune_config import PruneConfig
save = iterative_run.save_checkpoint
def save_or_die(checkpoint, path):
    if checkpoint.training_state["round"]["number"] == 2:
        Path(path).with_name(f".{Path(path).name}.1.tmp").write_bytes(b"half")
        os.kill(os.getpid(), signal.SIGKILL)
    save(checkpoint, path)
iterative_run.save_checkpoint = save_or_die
run_pruning(PruneConfig(**SETTINGS))
"""


def settings_of(place: Place, **settings: Any) -> dict[str, Any]:
    places = {"weights": str(place.weights), "data": str(place.data), "project": str(place.project)}
    return {**FLAGS, **places, **settings}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return make_place(tmp_path_factory.mktemp("iterative"))


@pytest.fixture(scope="module")
def finished(place: Place) -> PruneResult:
    return run_pruning(PruneConfig(**settings_of(place, name="whole", noplots=False)))


def folder_of(result: PruneResult) -> Path:
    assert result.folder is not None
    return result.folder


def test_run_folder_is_that_of_every_pruning(finished: PruneResult) -> None:
    expected = {"pruned_model.pt", "plan.json", "pruned.yaml", "channels.txt", "kept_channels.png", "rounds.png"}
    assert {path.name for path in folder_of(finished).iterdir()} == {*expected, "result.json", "opt.yaml"}
    written = json.loads((folder_of(finished) / "result.json").read_text())
    assert written["report"]["after"]["macs"] <= 0.5 * written["report"]["before"]["macs"]
    assert {"AP", "AP50"} <= written["before"].keys() == written["after"].keys()
    assert (written["config"]["iterative"], written["config"]["resume"]) == (True, "")


def test_scores_after_each_round_are_kept(place: Place, finished: PruneResult) -> None:
    written = json.loads((folder_of(finished) / "result.json").read_text())
    rounds = written["rounds"]
    assert [row["round"] for row in rounds] == list(range(len(rounds)))
    assert len(rounds) > 2
    assert (rounds[0]["channels_pruned"], rounds[0]["loss"]) == (0.0, 0.0)
    assert [row["macs_pruned"] for row in rounds] == sorted(row["macs_pruned"] for row in rounds)
    report = written["report"]
    assert rounds[-1]["macs_pruned"] == pytest.approx(1 - report["after"]["macs"] / report["before"]["macs"])
    for row, whole in ((rounds[0], written["before"]), (rounds[-1], written["after"])):
        assert {name: row[name] for name in ("AP50", "AP")} == {name: whole[name] for name in ("AP50", "AP")}
    assert (folder_of(finished) / "rounds.png").stat().st_size > 1000
    assert all(score.loss > 0 for score in finished.rounds[1:])


def test_rounds_are_not_measured_if_not_asked_for(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("commands.prune_rounds.RoundScore.of", lambda *_: pytest.fail("a round is measured"))
    result = run_pruning(PruneConfig(**settings_of(place, name="untested", notest=True, noplots=False, step=100)))
    assert result.rounds == ()
    assert json.loads((folder_of(result) / "result.json").read_text())["rounds"] == []
    assert not (folder_of(result) / "rounds.png").exists()


def test_checkpoint_is_the_trained_small_network(place: Place, finished: PruneResult) -> None:
    loaded = load_model(folder_of(finished) / "pruned_model.pt").model
    assert count_macs(loaded, IMAGE) <= 0.5 * count_macs(load_model(place.weights).model, IMAGE)
    ours, written = finished.model.state_dict(), loaded.state_dict()
    assert all(torch.equal(ours[name], written[name]) for name in ours)
    assert not finished.model.training


def test_all_widths_are_rounded(finished: PruneResult) -> None:
    cut = {name: after for name, (before, after) in finished.report.widths.items() if after < before}
    assert cut
    assert all(width & (width - 1) == 0 for width in cut.values())


def test_shortcuts_are_left_alone_by_default(finished: PruneResult) -> None:
    assert finished.report.widths["model.3.m.0.cv1.conv"] == finished.report.widths["model.3.m.0.cv2.conv"] == (8, 8)


def test_plan_leads_from_the_dense_network_to_the_widths_and_places_that_were_kept(
    place: Place, finished: PruneResult
) -> None:
    dense = load_model(place.weights).model
    plan = PruningPlan.load(folder_of(finished) / "plan.json")
    assert plan == finished.plan
    cut = apply_plan(dense, plan)
    assert getattr(cut, "spec", None) == finished.model.spec
    # Two updates at a small rate move weights little: those kept are still nearest to themselves.
    kept = plan.keep["model.0.conv"]
    before, after = (model.get_parameter("model.0.conv.weight").detach() for model in (dense, finished.model))
    distances = torch.cdist(after.flatten(1), before.flatten(1))
    np.testing.assert_array_equal(distances.argmin(1).numpy(), kept)


def test_weights_changed_in_the_rounds(place: Place, finished: PruneResult) -> None:
    cut = apply_plan(load_model(place.weights).model, finished.plan)
    name = "model.9.m.0.bias"
    assert not torch.equal(cut.state_dict()[name], finished.model.state_dict()[name])


def test_killed_run_goes_on_to_the_same_network(
    place: Place, finished: PruneResult, caplog: pytest.LogCaptureFixture
) -> None:
    settings = settings_of(place, name="killed")
    code = KILLED.replace("SETTINGS", repr(settings)).replace("THREADS", str(torch.get_num_threads()))
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    folder = place.project / "killed"
    assert load_checkpoint(folder / "last_round.pt").training_state["round"]["number"] == 1
    assert not (folder / "pruned_model.pt").exists()
    with caplog.at_level(logging.INFO):
        resumed = run_pruning(PruneConfig(resume=str(folder), device="cpu"))
    assert f"going on in {folder} after round 1: " in caplog.text
    one, two = finished.model.state_dict(), resumed.model.state_dict()
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert resumed.plan.keep == finished.plan.keep
    assert {path.name for path in folder.iterdir()} == {
        path.name for path in folder_of(finished).iterdir() if path.suffix != ".png"
    }
    # Rounds before the kill were measured by the process that was killed.
    assert resumed.rounds == finished.rounds


def test_every_round_is_told_in_one_line(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        run_pruning(PruneConfig(**settings_of(place, percent=0.3, target="", round="none")))
    lines = [line for line in caplog.messages if line.startswith("round ")]
    # 55 of 184 channels, 30 in the first round and 25 in the second, of 232 that may be pruned at all.
    assert [line.split(",")[0] for line in lines] == ["round 1: 87.1 % of channels", "round 2: 76.3 % of channels"]
    assert all(
        re.search(r"% of MACs, .* % of parameters left, loss \d\.\d+, \d+\.\d min left$", line) for line in lines
    )
    assert lines[-1].endswith(", 0.0 min left")
    assert "after the last round: mAP50 0.000 -> 0.000" in caplog.text


def test_protected_layers_tied_shortcuts_and_least_widths_are_honoured(place: Place) -> None:
    limits = {"protect": ("model.4.conv",), "min_channels": 3, "shortcuts": "tied", "round": "none"}
    widths = run_pruning(PruneConfig(**settings_of(place, target="params=45%", step=60, **limits))).report.widths
    assert widths["model.4.conv"] == (32, 32)
    assert min(after for _, after in widths.values()) >= 3
    # What an addition joins stays equally wide, and may be cut.
    joined = [[widths[f"model.{c3}.{name}.conv"] for name in ("cv1", "m.0.cv2")] for c3 in (3, 5)]
    assert all(first == second for first, second in joined)
    assert any(after < before for (before, after), _ in joined)


def arguments(place: Place, *extra: str) -> list[str]:
    data = ["--data", str(place.data), "--batch-size", "2", "--workers", "0"]
    return [*place.arguments("prune"), *data, "--criterion", "taylor", "--iterative", *extra]


def damaged_round(place: Place) -> list[str]:
    """A folder whose state is the checkpoint of a network, not that of a round."""
    folder = place.root / "damaged"
    folder.mkdir()
    (folder / "last_round.pt").write_bytes(place.weights.read_bytes())
    return ["--resume", str(folder)]


@pytest.mark.parametrize(
    ("extra", "line"),
    [
        (["--criterion", "bn_gamma"], r"--iterative ranks by Taylor expansion, not bn_gamma; add --criterion taylor"),
        (["--percent", "0"], r"--percent 0.0 of 184 channels that may go is none; give more"),
        (["--target", "macs=100%"], r"--target macs=100%: the network has no more than .*; give less"),
        (
            ["--target", "macs=50"],
            r"target of 50 MACs cannot be reached .*; the nearest is \S+; lower --min-channels",
        ),
        (["--protect", "model.77*"], r"--protect model.77\* matches no layer"),
        (["--hyp", "none.yaml"], r"none.yaml"),
        (
            ["--resume", "nowhere"],
            r"--resume nowhere: there is no last_round.pt; give the folder of an --iterative run",
        ),
        (damaged_round, r"last_round.pt contains no round of prune.py --iterative; give another run folder"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(
    extra: Any, line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = make_place(tmp_path)
    given = extra(place) if callable(extra) else extra
    before = place.snapshot()
    assert re.search(line, refusal("prune", arguments(place, *given), capsys))
    assert place.snapshot() == before
    assert not place.project.exists()


def test_other_weights_than_at_the_start_are_refused_on_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    place = make_place(tmp_path)

    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("commands.prune_rounds.prune_iteratively", interrupted)
    with pytest.raises(SystemExit) as caught:
        run("prune", arguments(place))
    assert caught.value.code == 130
    folder = place.project / "exp"
    assert {path.name for path in folder.iterdir()} == {"opt.yaml", "last_round.pt"}
    other = build_model(replace(ModelSpec.from_yaml(TINY_CFG), widths={"model.0": 7}))
    save_checkpoint(Checkpoint(spec=other.spec.to_dict(), names=NAMES, weights=other.state_dict()), place.weights)
    line = refusal("prune", ["--resume", str(folder), "--device", "cpu"], capsys)
    assert line == f"--weights {place.weights} is not the network this run began with; put that file back"


def test_command_without_weights_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert "no --weights given; give the checkpoint to prune" in refusal("prune", ["--percent", "0.5"], capsys)
