"""The report of a real run of slim.py: the same numbers as its stages wrote, one page that loads nothing."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from refusal import make_place, refusal, run
from tiny import tiny_config
from tiny_classes import classifier_config, write_class_folder

from commands.export import run_export
from commands.export_config import ExportConfig
from commands.slim import run_slimming
from commands.slim_config import SlimConfig
from commands.train_config import TrainConfig

STAGES = ["dense", "round1/sparse", "round1/prune", "round1/finetune"]


def slim_settings(plain: TrainConfig, **settings: Any) -> SlimConfig:
    """The shortest trainings of a dense network and of one round, without export."""
    values = {field.name: getattr(plain, field.name) for field in fields(plain)}
    own = {"epochs": 2, "finetune_epochs": 1, "sr": 0.3, "target": "params=50%", "round": "none"}
    stages = ("dense", "sparse", "prune", "finetune")
    return SlimConfig(**{**values, **own, "dense_epochs": plain.epochs, "stages": stages, **settings})


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a dense network, one round, and two exported files."""
    root = tmp_path_factory.mktemp("report")
    folder = root / "runs/exp"
    run_slimming(slim_settings(tiny_config(root, noplots=False)))
    run_export(
        ExportConfig(
            weights=str(folder / "round1/finetune/weights/best.pt"),
            include=("torchscript", "onnx"),
            img_size=(64,),
            data=str(root / "data/tiny.yaml"),
            threads=1,
            workers=0,
            project=str(folder),
            name="export",
        )
    )
    return folder


def test_end_of_the_run_writes_its_report(folder: Path) -> None:
    content = read(folder / "report.json")
    assert [row["stage"] for row in content["networks"]] == STAGES
    assert "artefacts" not in content
    assert (folder / "report.html").stat().st_size > 20_000


@pytest.fixture(scope="module")
def content(folder: Path) -> dict[str, Any]:
    """report.json, written again from the command line, now that files were exported."""
    run("slim", ["--report", str(folder)])
    found: dict[str, Any] = read(folder / "report.json")
    return found


def test_every_number_is_that_of_a_stage(content: dict[str, Any], folder: Path) -> None:
    dense, cut, tuned = (read(folder / stage / "result.json") for stage in (STAGES[0], STAGES[2], STAGES[3]))
    rows = {row["stage"]: row for row in content["networks"]}
    measured = [dense["metrics"], cut["before"], cut["after"], tuned["metrics"]]
    for stage, metrics in zip(STAGES, measured, strict=True):
        assert rows[stage]["scores"] == {name: metrics[name] for name in ("AP50", "AP")}
        assert rows[stage]["images"] == metrics["images"] == 8
        by_class = {row["class"]: row["scores"][stage] for row in content["classes"]}
        assert by_class == metrics["per_class"]
    for name in ("parameters", "macs", "megabytes"):
        before, after = (cut["report"][side][name] for side in ("before", "after"))
        assert [rows[stage][name] for stage in STAGES] == [before, before, after, after]
        assert content["answer"][name] == {"before": before, "after": after, "factor": before / after}
    assert [(rows[stage]["epochs"], rows[stage]["seconds"]) for stage in ("dense", "round1/finetune")] == [
        (result["epochs"], result["seconds"]) for result in (dense, tuned)
    ]
    widths = {row["layer"]: (row["before"], row["after"]) for row in content["layers"]}
    assert widths == {
        name: (width, [cut["report"]["after"]["widths"][name]])
        for name, width in cut["report"]["before"]["widths"].items()
    }


def test_artefacts_have_the_numbers_of_their_verification(content: dict[str, Any], folder: Path) -> None:
    reports = read(folder / "export/result.json")["reports"]
    assert [row["format"] for row in content["artefacts"]] == ["torchscript", "onnx"]
    for row, report in zip(content["artefacts"], reports, strict=True):
        network, own = report["latency"]
        assert row["stage"] == "round1/finetune"
        assert (row["path"], row["passed"], row["precision"]) == (report["path"], report["passed"], "fp32")
        assert (row["milliseconds"], row["median_ms"], row["network_ms"]) == (
            *(own["fastest"], own["median"]),
            network["fastest"],
        )
        assert (row["network_megabytes"], row["megabytes"]) == tuple(report["megabytes"])
        assert (row["network_score"], row["score"]) == tuple(report["ap"])
        assert row["same_boxes"] == report["same_boxes"]
        assert row["output_error"] == max(head["largest"] for head in report["heads"])
    timed = {(row["runtime"], row["milliseconds"]) for row in content["candidates"]}
    assert {(row["format"], row["milliseconds"]) for row in content["artefacts"]} <= timed
    assert content["answer"]["ship"] in content["artefacts"]


def test_scales_are_those_of_the_sparse_training(content: dict[str, Any], folder: Path) -> None:
    gamma = read(folder / "round1/sparse/sparsity.json")["gamma"]
    (own,) = content["scales"]
    assert (own["verdict"], own["reason"], own["strength"]) == (gamma["verdict"], gamma["reason"], gamma["strength"])
    assert own["below_hundredth"] == [epoch["below_hundredth"] for epoch in gamma["epochs"]]
    assert [ridge["channels"] for ridge in own["ridges"]] == gamma["ridges"]
    assert len(gamma["ridges"]) == 3  # before training and after each epoch
    assert len({sum(ridge) for ridge in gamma["ridges"]}) == 1


def test_intervals_and_examples_come_from_the_boxes_that_were_written(content: dict[str, Any], folder: Path) -> None:
    for row in content["networks"]:
        assert ("interval" in row) == (row["stage"] in ("dense", "round1/finetune"))
        if "interval" in row:
            low, high = row["interval"]
            assert low <= high
    own = content["examples"]
    confident = [
        sum(box["score"] >= own["confidence"] for box in read(folder / stage / "predictions.json"))
        for stage in (own["before"], own["after"])
    ]
    assert own["boxes_of_both"] + own["boxes_lost"] == confident[0]
    assert own["boxes_of_both"] + own["boxes_new"] == confident[1]
    assert own["images"] == 8


def test_report_says_how_to_repeat_the_run(content: dict[str, Any], folder: Path) -> None:
    dense = read(folder / "dense/result.json")["environment"]
    first = content["environments"][0]
    assert first["environment"] == {name: value for name, value in dense.items() if name != "command"}
    assert first["environment"]["machine"]
    assert sorted(stage for row in content["commands"] for stage in row["stages"]) == sorted([*STAGES, "export"])
    assert content["settings"]["target"] == "params=50%"


def test_writing_it_again_changes_nothing(content: dict[str, Any], folder: Path) -> None:
    before = {name: (folder / name).read_bytes() for name in ("report.json", "report.html")}
    run("slim", ["--report", str(folder)])
    assert {name: (folder / name).read_bytes() for name in before} == before
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        {"dense", "export", "opt.yaml", "report.html", "report.json", "result.json", "round1"}
    )


def test_classifiers_have_a_report_of_their_accuracy(tmp_path: Path) -> None:
    data = write_class_folder(tmp_path / "photos")
    plain = classifier_config(
        tmp_path, data=str(data), cfg="torchvision:resnet18", img_size=(32,), epochs=1, augment="none"
    )
    own = {"epochs": 1, "target": "", "percent": 0.3, "shortcuts": "tied", "sr": 1e-3}
    run_slimming(slim_settings(plain, stages=("sparse", "prune", "finetune"), **own))
    folder = tmp_path / "runs/exp"
    content = read(folder / "report.json")
    tuned = read(folder / "round1/finetune/result.json")["metrics"]
    assert (content["task"], content["answer"]["reference"]) == ("classification", "round1/sparse")
    assert content["networks"][-1]["scores"] == {"accuracy": tuned["accuracy"]}
    by_class = {row["class"]: row["scores"]["round1/finetune"]["accuracy"] for row in content["classes"]}
    assert by_class == {row["name"]: row["accuracy"] for row in tuned["per_class"]}
    low, high = content["networks"][-1]["interval"]
    assert low <= tuned["accuracy"] <= high
    assert "accuracy" in (folder / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("nowhere", "nowhere: no folder of a run of slim.py; give one such as runs/slim/exp"),
        ("images", "images: no folder of a run of slim.py; give one such as runs/slim/exp"),
        ("begun", "begun: no stage of this run is finished; --resume"),
        ("damaged", "damaged/dense/result.json cannot be read"),
    ],
)
def test_what_is_no_run_is_told_in_one_line(
    tmp_path: Path, path: str, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    place = make_place(tmp_path)
    for name in ("begun", "damaged"):
        (tmp_path / name / "dense").mkdir(parents=True)
        (tmp_path / name / "opt.yaml").write_text("data: data.yaml\n")
    (tmp_path / "damaged/dense/result.json").write_text('{"metrics": ')
    before = place.snapshot()
    assert line in refusal("slim", ["--report", str(tmp_path / path)], capsys)
    assert place.snapshot() == before
