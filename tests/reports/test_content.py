"""The numbers of a report: each is one that a stage wrote, and what no stage wrote is not there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hand_run import BEST, HandRun, content_of, metrics, report, size

from reports.content import SECTIONS
from reports.reading import SlimRun
from reports.text import headline
from reports.write import page_of
from utils.errors import ConfigError


@pytest.fixture
def run(tmp_path: Path) -> HandRun:
    return HandRun.create(tmp_path / "exp")


def test_networks_have_the_scores_and_sizes_of_their_stages(run: HandRun) -> None:
    run.training("dense", 0.6)
    run.round(sparse=0.5, tuned=0.45)
    content = content_of(run)
    rows = {row["stage"]: row for row in content["networks"]}
    assert {stage: row["scores"]["AP"] for stage, row in rows.items()} == {
        "dense": 0.6,
        "round1/sparse": 0.5,  # the network that was cut, not that of the best epoch
        "round1/prune": 0.1,
        "round1/finetune": 0.45,
    }
    assert [row["parameters"] for row in rows.values()] == [10_000, 10_000, 4_000, 4_000]
    assert [row.get("epochs") for row in rows.values()] == [10, 10, None, 10]
    assert rows["round1/sparse"]["weights"] == "round1/sparse/weights/last.pt"
    assert rows["round1/prune"]["weights"] == "round1/prune/pruned_model.pt"
    (cat, dog) = content["classes"]
    assert (cat["class"], dog["class"]) == ("cat", "dog")
    assert cat["scores"]["round1/finetune"] == metrics(0.45)["per_class"]["cat"]


def test_section_without_data_is_left_out(run: HandRun) -> None:
    run.training("dense", 0.6)
    content = content_of(run)
    assert {name for name in SECTIONS if name in content} == {
        *("answer", "networks", "classes", "commands", "environments")
    }
    assert headline(content) == "Nothing is pruned yet: this run has no finished cut"


def test_rounds_are_in_order_and_layers_have_a_width_for_each(run: HandRun) -> None:
    run.training("dense", 0.6)
    for number in (1, 2, 10):
        run.round(number, before=size(10_000 // number), after=size(4_000 // number))
    content = content_of(run)
    assert [row["stage"] for row in content["networks"][1:]] == [
        f"round{number}/{kind}" for number in (1, 2, 10) for kind in ("sparse", "prune", "finetune")
    ]
    assert content["layers"][0] == {"layer": "model.0.conv", "before": 100, "after": [40, 20, 4]}
    assert content["answer"]["stage"] == "round10/finetune"


def test_removed_layer_has_no_channels(run: HandRun) -> None:
    after = size(4_000)
    del after["widths"]["model.1.conv"]
    run.round(after=after)
    assert content_of(run)["layers"][1] == {"layer": "model.1.conv", "before": 200, "after": [0]}


def test_unfinished_round_is_about_the_last_network_that_is_finished(run: HandRun) -> None:
    run.round()
    run.training("round2/sparse", 0.4)
    content = content_of(run)
    assert content["answer"]["stage"] == "round1/finetune"
    assert content["networks"][-1]["scores"]["AP"] == 0.4
    assert "parameters" not in content["networks"][-1]


def test_sizes_of_networks_that_were_not_cut_are_those_of_the_whole_run(run: HandRun) -> None:
    run.training("dense", 0.6)
    listed = {"stages": [{"stage": "dense", "parameters": 77, "macs": 5, "megabytes": 0.1}]}
    (run.path / "result.json").write_text(json.dumps(listed))
    assert content_of(run)["networks"][0]["parameters"] == 77


def test_scales_and_scans_are_those_of_their_stages(run: HandRun) -> None:
    run.round()
    epochs = [{"below_hundredth": share} for share in (0.0, 0.25, 0.5)]
    ridges = [[0, 4], [1, 3], [2, 2]]
    own = {"strength": 0.1, "verdict": "right", "reason": "it fell", "epochs": epochs}
    scales = {"aim": 0.5, "force": [0, 1, 2], "gamma": {**own, "edges": [0, 1, 2], "ridges": ridges}, "filter": own}
    (run.path / "round1/sparse/sparsity.json").write_text(json.dumps(scales))
    (run.path / "round1/sparse/filter_ridge.png").write_bytes(b"png")
    scan = {
        "points": [{"percent": 0.0, "AP": 0.5, "AP50": 0.7}],
        "recommended": 0.5,
        "cliff": [0.6, 0.7],
        "limit": 0.9,
    }
    run.cut("round1/prune", (size(10_000), size(4_000)), scan=scan)
    content = content_of(run)
    gamma, kernels = content["scales"]
    assert (gamma["scale"], gamma["verdict"], gamma["below_hundredth"]) == ("gamma", "right", [0.0, 0.25, 0.5])
    assert gamma["ridges"] == [{"epoch": epoch, "channels": row} for epoch, row in enumerate(ridges)]
    assert kernels["plot"] == "round1/sparse/filter_ridge.png"
    assert content["scans"] == [{"stage": "round1/prune", **scan}]


def test_scan_beside_the_rounds_belongs_to_the_network_that_was_cut(run: HandRun) -> None:
    run.round()
    scan = {
        "points": [{"percent": 0.0, "AP": 0.5, "AP50": 0.7}],
        "recommended": 0.5,
        "cliff": [0.6, 0.7],
        "limit": 0.9,
    }
    own = {"weights": f"{run.path}/round1/sparse/weights/last.pt"}
    command = {"command": "/clone/prune.py --scan"}
    run.cut("scan", (size(10_000), size(5_000)), scan=scan, config=own, environment=command)
    (run.path / "scan.png").touch()
    content = content_of(run)
    assert content["scans"] == [{"stage": "round1/sparse", **scan}]
    assert content["commands"][-1] == {"command": "python prune.py --scan", "stages": ["scan"]}
    assert [row["stage"] for row in content["networks"]][-1] == "round1/finetune"
    assert content["answer"]["stage"] == "round1/finetune"


def test_long_trainings_show_some_histograms_the_first_and_the_last_among_them(run: HandRun) -> None:
    run.round()
    own = {"verdict": "right", "edges": [0, 1], "ridges": [[epoch] for epoch in range(101)]}
    (run.path / "round1/sparse/sparsity.json").write_text(json.dumps({"gamma": own}))
    epochs = [ridge["epoch"] for ridge in content_of(run)["scales"][0]["ridges"]]
    assert len(epochs) <= 24
    assert (epochs[0], epochs[-1]) == (0, 100)


def test_classifiers_have_accuracies_and_their_interval(run: HandRun) -> None:
    def accuracy(value: float) -> dict[str, Any]:
        rows = [{"name": "left", "images": 50, "accuracy": value}, {"name": "right", "images": 50, "accuracy": 1.0}]
        return {"accuracy": value, "loss": 1.0, "images": 100, "per_class": rows}

    run.write("round1/sparse", {"metrics": accuracy(0.7), "epochs": 3, "seconds": 5.0})
    cut = {"report": {"before": size(10_000), "after": size(4_000)}, "checkpoint": "pruned_model.pt"}
    run.write("round1/prune", {**cut, "before": accuracy(0.7), "after": accuracy(0.4)})
    run.write("round1/finetune", {"metrics": accuracy(0.8), "epochs": 3, "seconds": 5.0})
    content = content_of(run)
    assert (content["task"], content["scores"]) == ("classification", ["accuracy"])
    assert content["classes"][0]["scores"]["round1/finetune"] == {"accuracy": 0.8}
    low, high = content["answer"]["score"]["interval"]
    assert 0.7 < low < 0.8 < high < 0.9
    assert headline(content).endswith("accuracy .800 where it was .700")
    assert "examples" not in content


def test_cut_that_was_not_measured_has_no_scores(run: HandRun) -> None:
    run.training("dense", 0.6)
    run.cut("round1/prune", (size(10_000), size(4_000)), before=None, after=None)
    content = content_of(run)
    assert content["networks"][1]["scores"] == {}
    assert "score" not in content["answer"]
    assert headline(content) == "Export round1/prune/pruned_model.pt: 2.5 times smaller"


def test_commands_are_as_typed_and_appear_once(run: HandRun) -> None:
    run.round()
    run.training("dense", 0.6, environment={"command": "/clone/train.py --data 'my data.yaml'", "python": "3.12"})
    content = content_of(run)
    assert content["commands"] == [
        {"command": "python train.py --data 'my data.yaml'", "stages": ["dense"]},
        {
            "command": "python slim.py --rounds 1",
            "stages": ["round1/sparse", "round1/prune", "round1/finetune"],
        },
    ]
    assert [row["environment"]["python"] for row in content["environments"]] == ["3.12", "3.11"]


@pytest.mark.parametrize(
    ("stage", "text", "message"),
    [
        ("dense", "{", "dense/result.json cannot be read: .*; repeat the stage that writes it"),
        ("dense", "[]", "dense/result.json: expected the result of a stage; repeat the stage"),
        ("dense", "{}", "dense/result.json has no 'metrics'; repeat the stage dense"),
        ("round1/prune", "{}", "prune/result.json has no 'report'; repeat the stage round1/prune"),
    ],
)
def test_damaged_result_is_named(run: HandRun, stage: str, text: str, message: str) -> None:
    run.training("dense", 0.6)
    run.round()
    (run.path / stage / "result.json").write_text(text)
    with pytest.raises(ConfigError, match=message):
        content_of(run)


def test_folder_of_another_run_is_refused(tmp_path: Path, run: HandRun) -> None:
    with pytest.raises(ConfigError, match=r"no folder of a run of slim.py; give one such as runs/slim/exp"):
        SlimRun.read(tmp_path)
    with pytest.raises(ConfigError, match=r"no stage of this run is finished; --resume .*exp continues with it"):
        SlimRun.read(run.path)


def test_layers_that_int8_costs_most_in_are_listed_by_file(run: HandRun) -> None:
    run.training("dense", 0.6)
    run.round()
    run.export(report("x/best_int8_ncnn_model", ms=1.0, ap=(0.45, 0.44)), weights=BEST)
    common = {"weight_bits": 8, "value_bits": 8, "error": 0.01, "alone": 0.1}
    ends = {"low": -0.3, "high": 5.0, "kept_low": -0.3, "kept_high": 4.0}
    shares = enumerate([0.02] * 5 + [0.7] + [0.01] * 20)
    layers = [{"layer": f"model.{number}", "share": share, **common, **ends} for number, share in shares]
    (run.path / "export/layers_ncnn.json").write_text(json.dumps(layers))
    (run.path / "export/layers_ncnn.png").touch()
    (row,) = content_of(run)["rounding"]
    assert (row["format"], row["rounded"], row["plot"]) == ("ncnn", 26, "export/layers_ncnn.png")
    assert row["layers"][0]["layer"] == "model.5"
    assert len(row["layers"]) == 8
    page = page_of(content_of(run), folder=run.path)
    assert "What int8 costs, by layer" in page
    assert "model.5" in page
    assert "-0.30 to 4.00" in page
