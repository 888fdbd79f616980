"""prune.py and slim.py towards milliseconds, by a table with invented times, and what they refuse."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from latency_tables import invented_table
from refusal import Place, make_place, refusal, run
from tiny import TINY_CFG
from torch import nn

from commands.prune import run_pruning
from commands.prune_config import PruneConfig
from commands.slim import run_slimming, slim
from commands.slim_config import SlimConfig
from models.classifiers import LeNet5
from models.classifiers.spec import ClassifierSpec
from models.detector import build_model
from models.load import load_model
from models.spec import ModelSpec
from pruning.channels.graph import ChannelGraph
from pruning.selection.latency import LatencyTable
from pruning.selection.latency_cost import LatencyCost
from utils.errors import ConfigError
from utils.storage.checkpoint import Checkpoint, save_checkpoint

IMAGE = (3, 64, 64)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A place whose network has scales in [0, 1), with a table of its layers in table.json."""
    place = make_place(tmp_path_factory.mktemp("latency"))
    torch.manual_seed(0)
    spec = ModelSpec.from_yaml(TINY_CFG)
    model = build_model(spec)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0, 1)
    names = ("RBC", "WBC", "Platelets")
    save_checkpoint(Checkpoint(spec=spec.to_dict(), names=names, weights=model.state_dict()), place.weights)
    table_of(place).save(place.root / "table.json")
    return place


def table_of(place: Place) -> LatencyTable:
    model = load_model(place.weights).model
    return invented_table(model, ChannelGraph.of(model), IMAGE, fixed_ms=0.1)


def prune_config(place: Place, **settings: Any) -> PruneConfig:
    values = {
        "weights": str(place.weights),
        "img_size": 64,
        "shortcuts": "tied",
        "latency_table": str(place.root / "table.json"),
        "noplots": True,
        "device": "cpu",
        "project": str(place.root / "runs"),
    }
    return PruneConfig(**{**values, **settings})


def test_cut_network_is_as_fast_as_asked_and_the_report_says_so(place: Place) -> None:
    result = run_pruning(prune_config(place, target="speedup=2", name="speedup"))
    assert result.folder is not None
    table = table_of(place)
    dense = load_model(place.weights).model
    before = LatencyCost.of(dense, ChannelGraph.of(dense), IMAGE, table).milliseconds()
    small = load_model(result.folder / "pruned_model.pt").model
    after = LatencyCost.of(small, ChannelGraph.of(small), IMAGE, table).milliseconds()
    assert 0.35 * before < after <= before / 2
    assert result.report.after.milliseconds == pytest.approx(after)
    assert f"predicted {before:.2f} ms -> {after:.2f} ms ({before / after:.2f}x faster)" in result.report.totals()
    written = json.loads((result.folder / "result.json").read_text())
    assert written["report"]["before"]["milliseconds"] == pytest.approx(before)
    assert LatencyTable.load(result.folder / "latency.json") == table
    # Widths are those of the table, in which four channels take as long as one.
    assert {len(kept) % 4 for kept in result.plan.keep.values()} == {0}


def test_rounding_that_is_given_replaces_the_widths_of_the_table(place: Place) -> None:
    result = run_pruning(prune_config(place, target="speedup=1.5", round="3", dry_run=True))
    widths = {len(kept) for kept in result.plan.keep.values()}
    assert widths
    assert {width % 3 for width in widths} <= {0} | {width % 3 for width in (8, 16, 32)}


def test_classifier_is_pruned_to_milliseconds(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, image = LeNet5(), (1, 28, 28)
    spec = ClassifierSpec(name="lenet5", num_classes=10, image_chw=image, mean=(0.5,), std=(0.5,))
    save_checkpoint(
        Checkpoint(spec=spec.to_dict(), names=tuple("0123456789"), weights=model.state_dict()), tmp_path / "a.pt"
    )
    table = invented_table(model, ChannelGraph.of(model, image_chw=image), image)
    table.save(tmp_path / "table.json")
    result = run_pruning(
        PruneConfig(
            weights=str(tmp_path / "a.pt"),
            criterion="kernel_l1",
            target="speedup=2",
            latency_table=str(tmp_path / "table.json"),
            dry_run=True,
            device="cpu",
        )
    )
    before, after = result.report.before.milliseconds, result.report.after.milliseconds
    assert before is not None
    assert after is not None
    assert 0 < after <= before / 2


def slim_config(place: Place, **settings: Any) -> SlimConfig:
    values = {
        "cfg": TINY_CFG,
        "data": str(place.data),
        "epochs": 1,
        "finetune_epochs": 1,
        "rounds": 2,
        "stages": ("sparse", "prune", "finetune"),
        "batch_size": 2,
        "img_size": (64,),
        "workers": 0,
        "noplots": True,
        "noautoanchor": True,
        "device": "cpu",
        "shortcuts": "tied",
        "sr": 0.001,
        "latency_table": str(place.root / "table.json"),
        "cache_dir": str(place.root / "cache"),
        "project": str(place.root / "slim"),
    }
    return SlimConfig(**{**values, **settings})


@pytest.mark.slow
def test_rounds_of_slim_cut_by_equal_factors_of_milliseconds(place: Place) -> None:
    result = run_slimming(slim_config(place, target="speedup=2.25"))
    assert result is not None
    rows = result.stages
    dense, first, last = (rows[index].milliseconds for index in (0, 1, 4))
    assert dense is not None
    assert first is not None
    assert last is not None
    assert 0.8 * dense / 1.5 < first <= dense / 1.5 * 1.001
    assert 0.8 * dense / 2.25 < last <= dense / 2.25 * 1.001
    assert LatencyTable.load(place.root / "slim/exp/latency.json") == table_of(place)


def test_slim_refuses_a_time_out_of_reach_before_any_training(
    place: Place, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def train(config: Any) -> None:
        raise AssertionError("trained")

    monkeypatch.setattr("commands.slim_stages.run_sparsity_training", train)
    arguments = ["--cfg", TINY_CFG, "--data", str(place.data), "--target", "ms=0.001", "--shortcuts", "tied"]
    arguments += ["--latency-table", str(place.root / "table.json"), "--img-size", "64", "--device", "cpu"]
    told = refusal("slim", [*arguments, "--project", str(place.root / "out")], capsys)
    assert "target of 0.001 ms cannot be reached" in told
    assert "the nearest is" in told
    assert not (place.root / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--target", "ms=0"], "--target ms=0: expected a form such as"),
        (["--target", "speedup=.5"], "--target speedup=.5: expected a form such as"),
        (["--target", "ms=1", "--threads", "0"], "--threads 0: expected at least 1"),
        (["--target", "ms=1", "--runtime", "onnx"], "was measured with runtime ncnn, expected onnx"),
        (["--target", "ms=1", "--precision", "int8"], "was measured with precision fp32, expected int8"),
        (["--target", "ms=1", "--threads", "2"], "was measured with threads 1, expected 2"),
        (["--target", "ms=1", "--img-size", "96"], "was measured with image 3x64x64, expected 3x96x96"),
        (["--target", "ms=1", "--latency-table", "none.json"], "--latency-table none.json: no such file"),
        (["--target", "ms=1", "--latency-table", "{bad}"], "bad.json is no latency table"),
        (["--target", "ms=1", "--latency-table", "{lacking}"], "layer model.9.m.1 is missing (conv 1x1"),
        (["--target", "ms=1", "--latency-table", "{listed}"], "a list of layers to time: run time_layers"),
        (["--target", "ms=0.001"], "target of 0.001 ms cannot be reached"),
        (["--target", "ms=0.001"], "the nearest is "),
        (["--latency-layers", "{phone}"], "leave --latency-table out"),
        (["--latency-layers", "{phone}", "--resume", "x"], "leave --latency-table out"),
        (["--latency-layers", "{phone}", "--latency-table", "", "--resume", "x"], "leave --resume out"),
        (["--latency-layers", "{phone}", "--latency-table", "", "--runtime", "onnx"], "leave --runtime onnx out"),
        (["--latency-layers", "{occupied}", "--latency-table", ""], "occupied exists and contains no layers.json"),
    ],
)
def test_refusals_are_one_line_and_write_nothing(
    place: Place, capsys: pytest.CaptureFixture[str], arguments: list[str], expected: str
) -> None:
    bad, lacking, listed = (place.root / f"{name}.json" for name in ("bad", "lacking", "listed"))
    phone, occupied = place.root / "phone", place.root / "occupied"
    occupied.mkdir(exist_ok=True)
    (occupied / "notes.txt").write_text("mine")
    bad.write_text('{"format_version": 1, "layers": 3}')
    listed.write_text('{"format_version": 1, "networks": []}')
    table = table_of(place)
    last = next(reversed(table.layers))
    replace(table, layers={kind: times for kind, times in table.layers.items() if kind != last}).save(lacking)
    paths = {"bad": bad, "lacking": lacking, "listed": listed, "phone": phone, "occupied": occupied}
    given = [argument.format(**paths) for argument in arguments]
    first = ["--weights", str(place.weights), "--img-size", "64", "--project", str(place.root / "refused")]
    table_given = [] if "--latency-table" in given else ["--latency-table", str(place.root / "table.json")]
    told = refusal("prune", [*first, *table_given, *given], capsys)
    assert expected in told
    assert not (place.root / "refused").exists()
    assert not phone.exists()


def test_layers_for_another_device_are_written_and_nothing_else(
    place: Place, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place.root)
    before = place.snapshot()
    folder = place.root / "phone_of_prune"
    given = ["--weights", str(place.weights), "--img-size", "64", "--threads", "4"]
    run("prune", [*given, "--latency-layers", str(folder)])
    written = json.loads((folder / "layers.json").read_text())
    assert written["conditions"] == {"runtime": "ncnn", "precision": "fp32", "threads": 4, "image_chw": [3, 64, 64]}
    outside = {path for path in place.snapshot() if not path.startswith(str(folder))}
    assert outside == before.keys()


def test_slim_writes_the_layers_of_what_it_would_train(place: Place) -> None:
    folder = place.root / "phone_of_slim"
    given = slim_config(place, latency_table="", latency_layers=str(folder), project=str(place.root / "not_slim"))
    assert slim(given)
    heads = [
        row for row in json.loads((folder / "layers.json").read_text())["layers"] if row["kind"]["end"] == "last"
    ]
    assert [row["outputs"] for row in heads] == [[24], [24]]  # three anchors of three classes
    assert not (place.root / "not_slim").exists()


def test_slim_does_not_resume_and_list_layers_in_one(place: Place) -> None:
    with pytest.raises(ConfigError, match="--latency-layers only writes .*; leave --resume out"):
        slim_config(place, latency_table="", latency_layers="phone", resume="slim")


def test_tensorrt_without_a_table_is_refused(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--weights", str(place.weights), "--target", "ms=1", "--runtime", "tensorrt"]
    assert "tensorrt: " in refusal("prune", arguments, capsys)
