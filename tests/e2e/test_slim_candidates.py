"""slim.py --start auto: networks to start from, probed and compared, and the run that goes on with one of them."""

from __future__ import annotations

import json
import logging
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from interruption import KillAfter, Killed, assert_same_weights
from latency_tables import invented_table
from refusal import make_place, refusal
from tiny import TINY_CFG
from tiny_classes import write_class_folder
from tiny_slim import line_config, slimmed

from commands.slim import run_slimming, slim
from commands.slim_candidates import starting_points
from commands.slim_config import SlimConfig
from commands.slim_report import SlimResult
from commands.train import run_training
from deploy.latency.networks import Subject
from models.classifiers import LeNet5, build_classifier
from models.classifiers.spec import ClassifierSpec
from models.detector import build_model
from models.load import load_model
from models.spec import ModelSpec
from pruning.channels.graph import ChannelGraph
from pruning.selection.latency import LatencyTable
from pruning.selection.starting import Candidate
from utils.config.cli import config_from_values, parse
from utils.storage.checkpoint import Checkpoint, load_checkpoint, save_checkpoint

for package in ("ncnn", "pnnx"):
    pytest.importorskip(package, reason=f"the {package} package is not installed")

NAMES = ("RBC", "WBC", "Platelets")
# Of the larger network, and of the smaller one, which has more pixels to win.
SIZES = {"large": (64, 48, 32), "small": (64, 80, 48, 32)}


def write_networks(folder: Path) -> tuple[str, str]:
    """The tiny network twice as wide and as it is, untrained: large.pt and small.pt."""
    values = yaml.safe_load(Path(TINY_CFG).read_text())
    torch.manual_seed(0)
    made = []
    for name, width in (("large", 0.25), ("small", 0.125)):
        (folder / f"{name}.yaml").write_text(yaml.safe_dump({**values, "width_multiple": width}))
        spec = ModelSpec.from_yaml(folder / f"{name}.yaml")
        checkpoint = Checkpoint(spec=spec.to_dict(), names=NAMES, weights=build_model(spec).state_dict())
        save_checkpoint(checkpoint, folder / f"{name}.pt")
        made.append(str(folder / f"{name}.pt"))
    return made[0], made[1]


def auto_config(folder: Path, **settings: Any) -> SlimConfig:
    """Probes of one epoch of both networks."""
    large, small = write_networks(folder)
    own = {"start": "auto", "cfg": "", "weights": large, "candidates": (small,), "probe_epochs": 1}
    return line_config(folder, **{**own, "target": "macs=50%", "distill": 0.0, **settings})


def written_at(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("auto")


@pytest.fixture(scope="module")
def whole(place: Path) -> SlimResult:
    """A run in runs/exp for which a network that needs no cut is best, since none has learnt anything."""
    return slimmed(auto_config(place))


def test_dense_network_is_recommended_trained_and_exported(whole: SlimResult, place: Path) -> None:
    folder = place / "runs/exp"
    start = json.loads((folder / "start.json").read_text())
    names = [f"{number}_{name}_{size}" for number, (name, size) in enumerate(networks_and_sizes(), 1)]
    assert [row["name"] for row in start["candidates"]] == names
    assert [tuple(row["img_size"]) for row in start["candidates"]] == [(size,) for _, size in networks_and_sizes()]
    costs = [row["cost"] for row in start["candidates"]]
    assert start["limit"] == pytest.approx(costs[0] / 2)
    assert costs[2] == pytest.approx(costs[0] / 4)
    fits = {row["name"]: row["cost"] for row in start["candidates"] if row["cost"] <= start["limit"]}
    assert start["recommended"] == max(fits, key=lambda name: fits[name])
    assert "pruning will not pay here" in start["reason"]
    assert start["stages"] == ["dense", "export"]
    assert [row.stage for row in whole.stages] == ["dense"]
    assert whole.stages[0].macs == fits[start["recommended"]]
    assert whole.exported is not None
    assert whole.passed


def networks_and_sizes() -> list[tuple[str, int]]:
    return [(name, size) for name, sizes in SIZES.items() for size in sizes]


def test_probes_are_short_trainings_with_the_same_settings(whole: SlimResult, place: Path) -> None:
    configs = [
        load_checkpoint(place / f"runs/exp/start/{number}_{name}_{size}/weights/last.pt").config
        for number, (name, size) in enumerate(networks_and_sizes(), 1)
    ]
    assert [tuple(config["img_size"]) for config in configs] == [(size,) for _, size in networks_and_sizes()]
    own = ("weights", "img_size", "name")
    first, *others = ({key: value for key, value in config.items() if key not in own} for config in configs)
    assert first["epochs"] == 1
    assert all(other == first for other in others)


def test_settings_are_then_those_of_a_run_that_was_given_the_network(whole: SlimResult, place: Path) -> None:
    folder = place / "runs/exp"
    start = json.loads((folder / "start.json").read_text())
    best = next(row for row in start["candidates"] if row["name"] == start["recommended"])
    opt = yaml.safe_load((folder / "opt.yaml").read_text())
    assert (opt["start"], opt["candidates"], opt["stages"]) == ("weights", [], ["dense", "export"])
    assert (opt["weights"], opt["img_size"]) == (best["weights"], best["img_size"])
    assert opt["target"] == f"macs={start['limit']:.0f}"
    trained = load_checkpoint(folder / "dense/weights/last.pt").config
    assert (trained["weights"], list(trained["img_size"])) == (best["weights"], best["img_size"])
    exported = json.loads((folder / "export/result.json").read_text())["config"]
    assert exported["img_size"] == 2 * best["img_size"]


def test_command_that_is_printed_makes_the_same_run(whole: SlimResult, place: Path) -> None:
    start = json.loads((place / "runs/exp/start.json").read_text())
    words = shlex.split(start["command"])
    assert words[:2] == ["python", "slim.py"]
    opt = config_from_values(SlimConfig, yaml.safe_load((place / "runs/exp/opt.yaml").read_text()), where="opt.yaml")
    assert parse(SlimConfig, words[2:], bare={}) == replace(opt, probe_epochs=SlimConfig.probe_epochs)
    result = json.loads((place / "runs/exp/result.json").read_text())
    best = next(row for row in start["candidates"] if row["name"] == start["recommended"])
    expected = {name: best[name] for name in ("weights", "img_size", "cut_to")}
    assert result["start"] == {**expected, "reason": start["reason"], "command": start["command"]}
    report = json.loads((place / "runs/exp/report.json").read_text())
    assert report["answer"]["start"] == result["start"]


def test_smaller_network_with_more_pixels_is_cut_where_its_probe_is_best(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # Untrained networks have learnt nothing, so the scores of the probes are given.
    def score(config: Any, folder: Path, candidate: Candidate, comparison: Any) -> float:
        return 0.5 if candidate.name == "5_small_80" else 0.1

    monkeypatch.setattr("commands.slim_candidates._probe", score)
    config = auto_config(tmp_path, target="macs=30%", preset="quick", stages=())
    with caplog.at_level(logging.INFO):
        result = slimmed(config)
    start = json.loads((tmp_path / "runs/exp/start.json").read_text())
    assert start["recommended"] == "5_small_80"
    assert start["reason"].startswith(f"start from {tmp_path}/small.pt at 80 px and prune it from ")
    assert [row.stage for row in result.stages] == ["round1/sparse", "round1/prune", "round1/finetune"]
    assert result.stages[0].macs > start["limit"] >= result.stages[-1].macs
    assert f"the same by hand:\n{start['command']}" in caplog.text
    again = parse(SlimConfig, shlex.split(start["command"])[2:], bare={})
    assert (again.weights, again.img_size, again.preset) == (config.candidates[0], (80,), "")
    # Run as it is printed, it goes through the same stages to the same network.
    repeated = slimmed(replace(again, project=str(tmp_path / "again")))
    assert_same_weights(result.stages[-1].weights, repeated.stages[-1].weights)
    assert "start" not in json.loads((tmp_path / "again/exp/result.json").read_text())


@pytest.mark.parametrize("before", [0, 3])
def test_run_that_is_killed_in_a_probe_repeats_none(
    whole: SlimResult, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: int
) -> None:
    config = auto_config(place, name=f"killed{before}", project=str(tmp_path))
    folder, trained = tmp_path / f"killed{before}", []

    def train(own: Any) -> Any:
        trained.append(own.name)
        return run_training(own, hooks=lambda *given: [KillAfter(0)]) if len(trained) > before else run_training(own)

    with monkeypatch.context() as patched:
        patched.setattr("commands.slim_candidates.run_training", train)
        with pytest.raises(Killed):
            run_slimming(config)
    assert yaml.safe_load((folder / "opt.yaml").read_text())["start"] == "auto"
    assert not (folder / "start.json").exists()
    made = {name: written_at(folder / "start" / name) for name in trained[:-1]}
    assert len(made) == before
    resumed = slimmed(SlimConfig(resume=str(folder)))
    assert {name: written_at(folder / "start" / name) for name in made} == made
    start = json.loads((folder / "start.json").read_text())
    whole_start = json.loads((place / "runs/exp/start.json").read_text())
    assert start.pop("command") != whole_start.pop("command")  # each names its own folder
    assert start == whole_start
    assert_same_weights(whole.stages[0].weights, resumed.stages[0].weights)


def test_complete_run_compares_nothing_again(whole: SlimResult, place: Path) -> None:
    before = written_at(place / "runs/exp/start") | {"": (place / "runs/exp/start.json").stat().st_mtime_ns}
    again = slimmed(SlimConfig(resume=str(place / "runs/exp")))
    after = written_at(place / "runs/exp/start") | {"": (place / "runs/exp/start.json").stat().st_mtime_ns}
    assert after == before
    assert [row.scores for row in again.stages] == [row.scores for row in whole.stages]


def test_interrupted_probe_says_how_to_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(config: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("commands.slim_candidates.run_training", interrupt)
    with pytest.raises(KeyboardInterrupt, match=f"python slim.py --resume {tmp_path}/runs/exp continues this run"):
        run_slimming(auto_config(tmp_path))


def test_smaller_network_is_pruned_where_none_is_small_enough(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        result = slimmed(auto_config(tmp_path, target="params=15%", noautoanchor=True))
    start = json.loads((tmp_path / "runs/exp/start.json").read_text())
    # An image size changes no number of parameters.
    assert [row["name"] for row in start["candidates"]] == ["1_large_64", "2_small_64"]
    assert start["recommended"] == "2_small_64"
    assert "no candidate is fast or small enough as it is" in start["reason"]
    assert [row.stage for row in result.stages] == ["round1/sparse", "round1/prune", "round1/finetune"]
    assert result.stages[-1].parameters <= start["limit"]
    assert f"recommended: {start['reason']}" in caplog.text
    assert "no candidate has learnt anything in 1 epochs; give more --probe-epochs" in caplog.text


def test_candidates_of_a_time_are_rows_that_the_report_plots(tmp_path: Path) -> None:
    config = auto_config(tmp_path)
    model = load_model(config.weights).model
    table = invented_table(model, ChannelGraph.of(model), (3, 64, 64), fixed_ms=0.1)
    table.save(tmp_path / "table.json")
    timed = auto_config(tmp_path, target="speedup=1.5", latency_table=str(tmp_path / "table.json"))
    result = slimmed(timed)
    rows = json.loads((tmp_path / "runs/exp/result.json").read_text())["candidates"]
    assert [row["name"] for row in rows] == ["large 64 px, 1 epochs", "small 64 px, 1 epochs"]  # that of the table
    assert rows[1]["milliseconds"] < rows[0]["milliseconds"]
    assert result.stages[0].milliseconds == pytest.approx(rows[1]["milliseconds"])
    assert {row["runtime"] for row in rows} == {"ncnn"}
    assert LatencyTable.load(tmp_path / "runs/exp/latency.json") == table
    report = json.loads((tmp_path / "runs/exp/report.json").read_text())
    plotted = [row["name"] for row in report["candidates"] if row.get("is_alternative")]
    assert plotted == [row["name"] for row in rows]


def test_smaller_network_with_more_pixels_is_timed_at_its_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed = []

    def table(subject: Subject, conditions: Any, path: str = "") -> LatencyTable:
        timed.append((subject.image_chw[1], bool(path)))
        return invented_table(subject.model, ChannelGraph.of(subject.model), subject.image_chw, fixed_ms=0.1)

    monkeypatch.setattr("commands.prune_latency.latency_table", table)
    points = starting_points(auto_config(tmp_path, target="speedup=2"))
    # The smaller network shares the table of the larger one at all sizes but that which it alone has.
    assert timed == [(64, False), (48, False), (32, False), (64, True), (80, False), (48, True), (32, True)]
    costs = {own.name: own.cost for own in points.comparison.candidates}
    assert costs["4_small_64"] < costs["5_small_80"] < costs["1_large_64"]
    assert points.tables["5_small_80"].conditions.image_chw == (3, 80, 80)


def test_dry_run_shows_costs_and_cuts_and_writes_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        assert slim(auto_config(tmp_path, dry_run=True))
    table = next(message for message in caplog.messages if message.startswith("network")).splitlines()
    assert len(table) == 1 + 7 + 1
    assert table[1].split()[-1] == "50%"
    assert caplog.messages[-1] == "dry run: nothing was written"
    assert not (tmp_path / "runs").exists()


def test_networks_that_cannot_reach_the_target_are_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = auto_config(tmp_path, target="params=12500", min_channels=16)
    with caplog.at_level(logging.INFO):
        points = starting_points(config)
    assert [candidate.name for candidate in points.comparison.candidates] == ["2_small_64"]
    assert "large.pt at 64 px is left out: target of" in caplog.text


def test_classifiers_are_compared_at_the_size_that_they_have(tmp_path: Path) -> None:
    data = write_class_folder(tmp_path / "data")
    spec = ClassifierSpec(name="vanilla", num_classes=2, image_chw=(3, 32, 32), mean=(0.5,) * 3, std=(0.5,) * 3)
    model = build_classifier("vanilla", num_classes=2)
    for name in ("a", "b"):
        checkpoint = Checkpoint(spec=spec.to_dict(), names=("left", "right"), weights=model.state_dict())
        save_checkpoint(checkpoint, tmp_path / f"{name}.pt")
    config = SlimConfig(
        data=str(data),
        weights=str(tmp_path / "a.pt"),
        candidates=(str(tmp_path / "b.pt"),),
        start="auto",
        target="macs=50%",
        sr=0.1,
        device="cpu",
        cache_dir=str(tmp_path / "cache"),
    )
    points = starting_points(config)
    assert [candidate.weights for candidate in points.comparison.candidates] == [config.weights, *config.candidates]
    assert points.comparison.metric == "accuracy"


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--weights", "{tiny}"], "--start auto compares networks by what they must reach; give --target"),
        (["--target", "macs=50%"], "--start auto compares trained networks; give --weights, such as yolov5s.pt"),
        (
            ["--target", "macs=50%", "--weights", "{tiny}", "--candidates", "none.pt"],
            "--candidates none.pt: no such file; give a checkpoint such as yolov5n.pt",
        ),
        (["--target", "macs=50%", "--weights", "none.pt"], "--weights none.pt: no such file"),
        (
            ["--target", "macs=50%", "--weights", "{tiny}", "--candidates", "{classifier}"],
            "classifier.pt is for classification, --weights",
        ),
        (["--target", "macs=50%", "--weights", "{tiny}", "--stages", "prune"], "leave --stages out"),
        (["--target", "macs=50%", "--weights", "{tiny}", "--cfg", "yolov5n.yaml"], "leave --cfg out"),
        (
            ["--target", "macs=50%", "--weights", "{tiny}", "--probe-epochs", "0"],
            "--probe-epochs 0: expected at least",
        ),
        (["--target", "params=1", "--weights", "{tiny}"], "target of 1 parameters cannot be reached"),
        (
            ["--target", "ms=1", "--weights", "{tiny}", "--latency-table", "none.json"],
            "--latency-table none.json: no such file",
        ),
        (["--start", "weights", "--candidates", "{tiny}"], "--start auto compares them; add it"),
        (["--start", "best"], "best"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistakes_are_told_before_anything_is_trained(
    tmp_path: Path, arguments: list[str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    here = make_place(tmp_path)
    spec = ClassifierSpec(name="lenet5", num_classes=10, image_chw=(1, 28, 28), mean=(0.5,), std=(0.5,))
    weights = LeNet5().state_dict()
    names = tuple("0123456789")
    save_checkpoint(Checkpoint(spec=spec.to_dict(), names=names, weights=weights), tmp_path / "classifier.pt")
    given = [text.format(tiny=here.weights, classifier=tmp_path / "classifier.pt") for text in arguments]
    common = [*here.arguments("slim"), "--cfg", "", "--start", "auto", "--sr", "0.1"]
    assert line in refusal("slim", [*common, *given], capsys)
    assert not here.project.exists()
