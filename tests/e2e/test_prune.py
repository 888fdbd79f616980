"""prune.py from a checkpoint to a smaller one, and what it refuses."""

from __future__ import annotations

import json
import logging
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from refusal import Place, make_place, refusal, run
from tiny import ROOT, TINY_CFG
from torch import nn

from commands.prune import PruneResult, run_pruning
from commands.prune_config import PruneConfig
from engine.training.task import TrainingTask
from models.complexity import count_macs
from models.detector import Detector, build_model
from models.load import load_model
from models.spec import ModelSpec
from pruning.selection.scan import scan
from pruning.surgery.plan import PruningPlan
from tasks.short_training import short_training
from utils.config.hyp import Hyp, load_hyp
from utils.errors import ConfigError
from utils.storage.checkpoint import Checkpoint, load_checkpoint, save_checkpoint

NAMES = ("RBC", "WBC", "Platelets")
FILES = {
    "pruned_model.pt",
    "plan.json",
    "pruned.yaml",
    "channels.txt",
    "kept_channels.png",
    "result.json",
    "opt.yaml",
}


def sparse_place(folder: Path) -> Place:
    """A place whose network has scales in [0, 1), so that half of them can go."""
    place = make_place(folder)
    torch.manual_seed(0)
    spec = ModelSpec.from_yaml(TINY_CFG)
    model = build_model(spec)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0, 1)
            nn.init.normal_(module.bias, 0, 0.1)
    save_checkpoint(Checkpoint(spec=spec.to_dict(), names=NAMES, weights=model.state_dict()), place.weights)
    return place


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return sparse_place(tmp_path)


def config_of(place: Place, **settings: Any) -> PruneConfig:
    values = {"weights": str(place.weights), "project": str(place.project), "device": "cpu", "img_size": 64}
    return PruneConfig(**{**values, "workers": 0, "noplots": True, **settings})


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Place, PruneResult]:
    """A finished pruning with everything it can write."""
    place = sparse_place(tmp_path_factory.mktemp("prune"))
    return place, run_pruning(config_of(place, data=str(place.data), noplots=False))


def folder_of(result: PruneResult) -> Path:
    assert result.folder is not None
    return result.folder


def outputs(model: Detector) -> list[torch.Tensor]:
    images = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return model(images)


def test_run_folder_holds_all_that_was_promised(finished: tuple[Place, PruneResult]) -> None:
    _, result = finished
    assert {path.name for path in folder_of(result).iterdir()} == FILES
    written = json.loads((folder_of(result) / "result.json").read_text())
    assert {"report", "before", "after", "threshold", "checkpoint", "config", "environment"} <= written.keys()
    assert written["report"]["after"]["parameters"] < 0.6 * written["report"]["before"]["parameters"]
    assert written["report"]["after"]["macs"] == count_macs(result.model, (3, 64, 64))
    assert {"AP", "AP50"} <= written["before"].keys() == written["after"].keys()


def test_checkpoint_is_the_pruned_network(finished: tuple[Place, PruneResult]) -> None:
    _, result = finished
    loaded = load_model(folder_of(result) / "pruned_model.pt")
    assert loaded.names == NAMES
    assert loaded.model.spec == result.model.spec
    assert loaded.model.spec.widths["model.0"] in (1, 2, 4, 8)
    for found, expected in zip(outputs(loaded.model), outputs(result.model), strict=True):
        assert torch.equal(found, expected)


def test_fresh_process_loads_the_checkpoint_without_the_pruning_package(
    finished: tuple[Place, PruneResult], tmp_path: Path
) -> None:
    _, result = finished
    torch.save(outputs(result.model), tmp_path / "expected.pt")
    code = f"""
import sys, torch
torch.set_num_threads(1)
from models.load import load_model
model = load_model({str(folder_of(result) / "pruned_model.pt")!r}).model
images = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
with torch.no_grad():
    heads = model(images)
expected = torch.load({str(tmp_path / "expected.pt")!r}, weights_only=True)
assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(heads, expected, strict=True))
assert not [name for name in sys.modules if name.partition(".")[0] == "pruning"]
print("same")
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.stdout, done.returncode) == ("same\n", 0), done.stderr


def test_yaml_builds_the_pruned_network(finished: tuple[Place, PruneResult]) -> None:
    place, result = finished
    yaml = str(folder_of(result) / "pruned.yaml")
    assert ModelSpec.from_yaml(yaml) == result.model.spec
    arguments = place.arguments("train")
    arguments[arguments.index("--cfg") + 1] = yaml
    run("train", [*arguments, "--name", "again", "--weights", str(folder_of(result) / "pruned_model.pt")])
    trained = load_checkpoint(place.project / "again/weights/last.pt")
    assert trained.spec["widths"] == dict(result.model.spec.widths)


def test_plan_file_repeats_the_cut(finished: tuple[Place, PruneResult]) -> None:
    place, result = finished
    again = run_pruning(config_of(place, plan=str(folder_of(result) / "plan.json"), name="planned"))
    first, second = (load_checkpoint(folder_of(r) / "pruned_model.pt").weights for r in (result, again))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert again.plan == result.plan == PruningPlan.load(folder_of(again) / "plan.json")


def test_pruned_checkpoint_can_be_pruned_again(finished: tuple[Place, PruneResult]) -> None:
    place, result = finished
    again = run_pruning(
        config_of(place, weights=str(folder_of(result) / "pruned_model.pt"), percent=0.3, round="none")
    )
    assert again.report.after.parameters < result.report.after.parameters
    assert again.report.before.widths == result.report.after.widths


def test_table_threshold_and_change_are_told(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        run_pruning(config_of(place, data=str(place.data), percent=0.5))
    text = caplog.text
    assert "pruning 92 of 184 channels (50.0%) below 0." in text
    assert "; above 0." in text
    assert re.search(r"model\.0\.conv +8 +4 ", text)
    assert re.search(r"model\.9\.m\.0 +24 +24\n", text)
    assert re.search(r"parameters 15,688 -> [\d,]+ \(\d\.\d\dx fewer\)", text)
    assert "before any fine-tuning: mAP50 0.000 -> 0.000, mAP 0.000 -> 0.000" in text


def test_project_that_cannot_be_written_to_is_refused_before_the_work(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasks.detection.Detection.load", lambda *_: pytest.fail("it is read"))
    with pytest.raises(ConfigError, match="is not a writable folder; choose another folder"):
        run_pruning(config_of(place, project=str(place.data / "runs")))


def test_dry_run_writes_nothing(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    before = place.snapshot()
    with caplog.at_level(logging.INFO):
        result = run_pruning(config_of(place, dry_run=True, data=str(place.data)))
    assert place.snapshot() == before
    assert not place.project.exists()
    assert (result.folder, result.before) == (None, None)
    assert "dry run: nothing was written" in caplog.text


def test_percent_zero_without_rounding_is_the_same_network_to_the_bit(place: Place) -> None:
    result = run_pruning(config_of(place, percent=0.0))
    before, after = load_model(place.weights).model, load_model(folder_of(result) / "pruned_model.pt").model
    assert before.spec == after.spec
    one, two = before.state_dict(), after.state_dict()
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_bottlenecks_are_removed_and_the_checkpoint_loads(place: Place) -> None:
    result = run_pruning(config_of(place, drop_bottlenecks=("all",)))
    assert result.report.widths["model.3.m.0.cv1.conv"] == (8, 0)
    loaded = load_model(folder_of(result) / "pruned_model.pt").model
    assert loaded.spec.layers[3].number == 0
    assert "model.3.m.0.cv1.conv.weight" not in loaded.state_dict()
    assert ModelSpec.from_yaml(folder_of(result) / "pruned.yaml") == loaded.spec
    plan = str(folder_of(result) / "plan.json")
    assert run_pruning(config_of(place, plan=plan)).report == result.report


def test_constants_are_carried_unless_switched_off(place: Place) -> None:
    dense = outputs(load_model(place.weights).model)

    def distance(**settings: Any) -> float:
        pruned = outputs(run_pruning(config_of(place, percent=0.2, dry_run=True, **settings)).model)
        return sum(float((a - b).abs().mean()) for a, b in zip(dense, pruned, strict=True))

    assert distance() < distance(constants=False)


@pytest.mark.parametrize(
    "settings",
    [
        {"criterion": "kernel_l1"},
        {"criterion": "fpgm", "round": "8", "round_direction": "up"},
        {"bn_percent": 0.6, "conv_percent": 0.3},
        {"shortcuts": "tied", "min_channels": 4},
        {"target": "params=40%", "protect": ("model.0.conv",)},
        {"cfg": TINY_CFG, "percent": 0.6, "round": "none"},
    ],
    ids=lambda settings: "-".join(settings),
)
def test_every_way_of_pruning_gives_a_smaller_network_that_loads(place: Place, settings: dict[str, Any]) -> None:
    result = run_pruning(config_of(place, **settings))
    loaded = load_model(folder_of(result) / "pruned_model.pt").model
    assert sum(p.numel() for p in loaded.parameters()) == result.report.after.parameters
    assert result.report.after.parameters < result.report.before.parameters
    assert all(head.isfinite().all() for head in outputs(loaded))


@pytest.mark.parametrize("how", [{"criterion": "taylor"}, {"criterion": "fisher", "target": "macs=50%"}])
def test_importance_of_data_is_measured_on_training_pictures(place: Place, how: dict[str, Any]) -> None:
    settings = {**how, "data": str(place.data), "batch_size": 2, "taylor_batches": 1}
    result = run_pruning(config_of(place, dry_run=True, **settings))
    assert result.report.after.parameters < result.report.before.parameters


def test_taylor_takes_the_hyper_parameters_that_are_named(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[float] = []

    def note(*given: Any, hyp: Hyp, **settings: Any) -> TrainingTask:
        found.append(hyp.mosaic)
        return short_training(*given, hyp=hyp, **settings)

    monkeypatch.setattr("tasks.short_training.short_training", note)
    hyp = place.root / "hyp.yaml"
    hyp.write_text("mosaic: 0.25\n")
    settings = {"criterion": "taylor", "data": str(place.data), "batch_size": 2, "taylor_batches": 1, "dry_run": True}
    run_pruning(config_of(place, hyp=str(hyp), **settings))
    run_pruning(config_of(place, **settings))
    assert found == [0.25, load_hyp("data/hyp/scratch.yaml").mosaic] == [0.25, 1.0]


def test_image_size_is_rounded_up_to_the_stride_with_a_note(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    result = run_pruning(config_of(place, img_size=50, dry_run=True))
    assert "50 is not a multiple of the stride 16; using 64" in caplog.text
    assert result.report.after.macs == count_macs(result.model, (3, 64, 64))


def test_scan_recommends_a_percent_draws_it_and_prunes_by_it(
    place: Place, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # An untrained network finds nothing; this one stands cuts down to 9000 of its 15688 parameters.
    def measure(model: nn.Module) -> dict[str, float]:
        is_large = sum(p.numel() for p in model.parameters()) > 9000
        return {"AP50": 0.6, "AP": 0.5} if is_large else {"AP50": 0.1, "AP": 0.05}

    monkeypatch.setattr("commands.prune.scan", lambda planner, _, **settings: scan(planner, measure, **settings))
    with caplog.at_level(logging.INFO):
        result = run_pruning(config_of(place, scan=True, data=str(place.data), noplots=False))
    assert result.scan is not None
    assert f"recommended: --percent {result.scan.recommended:.3f}" in caplog.text
    assert (folder_of(result) / "scan.png").stat().st_size > 1000
    written = json.loads((folder_of(result) / "result.json").read_text())
    assert written["scan"]["recommended"] == result.scan.recommended
    assert 9000 < result.report.after.parameters < 15688
    assert result.plan.settings["percent"] == result.scan.recommended


def test_scan_of_a_network_that_finds_nothing_is_refused(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    line = refusal("prune", [*place.arguments("prune"), "--scan", "--data", str(place.data)], capsys)
    assert "the network has mAP50 0.000 mAP 0.000 on this data before any channel is cut" in line
    assert not place.project.exists()


def other_plan(place: Place) -> list[str]:
    """A plan for a narrower network."""
    model = build_model(replace(ModelSpec.from_yaml(TINY_CFG), widths={"model.0": 7}))
    narrow = place.root / "narrow.pt"
    save_checkpoint(Checkpoint(spec=model.spec.to_dict(), names=NAMES, weights=model.state_dict()), narrow)
    result = run_pruning(config_of(place, weights=str(narrow), project=str(place.root / "other")))
    return ["--plan", str(folder_of(result) / "plan.json")]


def broken_scale(place: Place) -> list[str]:
    """Weights with a scale that is no number."""
    content = torch.load(place.weights, weights_only=True)
    content["weights"]["model.2.bn.weight"][3] = float("nan")
    torch.save(content, place.root / "nan.pt")
    return ["--weights", str(place.root / "nan.pt"), "--criterion", "fpgm"]


def other_data(place: Place) -> list[str]:
    """A data set of two classes."""
    text = place.data.read_text().replace("nc: 3", "nc: 4").replace("Platelets'", "Platelets', 'Other'")
    (place.root / "four.yaml").write_text(text)
    return ["--data", str(place.root / "four.yaml")]


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--percent", "1"], r"--percent 1.0: expected a share from 0 up to, not including, 1, such as 0.5"),
        (["--percent", "-0.5"], r"--percent -0.5: expected a share from 0"),
        (
            ["--percent", "0.95", "--strict"],
            r"layers model.* above 0\.\d+ \(--percent 0\.\d+\) a layer would lose all its channels",
        ),
        (
            ["--cfg", "yolov5n"],
            r"disagree at model.0.conv.* the YAML .* the weights .*; give the YAML of these weights",
        ),
        (["--cfg", "none.yaml"], r"none.yaml"),
        (["--weights", "none.pt"], r"none.pt"),
        (["--protect", "model.77*"], r"--protect model.77\* matches no layer; the layers include model.0.conv"),
        (["--limit", "model.77*=0.2"], r"--limit model.77\* matches no layer; the layers include model.0.conv"),
        (["--limit", "model.2*"], r"--limit model.2\*: expected a pattern and a share from 0 to 1"),
        (["--drop-bottlenecks", "model.8.m.0"], r"model.8.m.0: no bottleneck with a shortcut; known: model.3.m.0"),
        (["--round", "64"], r"--round 64 exceeds every width: the widest layer to prune has 32"),
        (["--round", "pow3"], r"--round pow3: expected pow2, none or a number such as 8"),
        (
            ["--target", "macs=50"],
            r"target of 50 MACs cannot be reached .*; the nearest is \S+; lower --min-channels",
        ),
        (["--target", "params=60%", "--min-channels", "16"], r"cannot be reached .* the nearest is"),
        (
            ["--target", "macs=50%", "--round", "32"],
            r"cannot be reached .* the nearest is .* lower --min-channels or",
        ),
        (["--plan", "none.json"], r"plan none.json: cannot be read .*; give a plan that prune.py wrote"),
        (["--scan"], r"--scan measures on images; give --data"),
        (other_plan, r"the plan was made for another network \(fingerprint .*; make a plan for this one"),
        (broken_scale, r"1 of 16 values of model.2.bn.weight are NaN or infinite"),
        (other_data, r"tiny.pt has 3 classes but .*four.yaml has 4: .*use the data the model was trained on"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(
    place: Place, arguments: Any, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    given = arguments(place) if callable(arguments) else arguments
    before = place.snapshot()
    assert re.search(line, refusal("prune", [*place.arguments("prune"), *given], capsys))
    assert place.snapshot() == before
    assert not place.project.exists()


def test_existing_results_survive_a_refusal(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    run("prune", place.arguments("prune"))
    before = place.snapshot()
    refusal("prune", [*place.arguments("prune"), "--exist-ok", "--percent", "0.95", "--strict"], capsys)
    assert place.snapshot() == before


@pytest.mark.parametrize(
    ("settings", "finding"),
    [
        ({"bn_percent": 0.3, "criterion": "fpgm"}, "rank by scales and by kernels; without effect: --criterion"),
        ({"tolerance": 0.1, "taylor_batches": 2}, "without --scan; without effect: --tolerance"),
        ({"taylor_batches": 2}, "without --criterion taylor or fisher; without effect: --taylor-batches"),
    ],
)
def test_settings_that_change_nothing_are_told_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, settings: dict[str, Any], finding: str
) -> None:
    run_pruning(config_of(make_place(tmp_path), dry_run=True, **settings))
    assert finding in caplog.text


def test_dense_network_is_cut_with_a_warning_in_numbers(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    place = make_place(tmp_path)
    with caplog.at_level(logging.INFO):
        run_pruning(config_of(place, dry_run=True))
    assert "was not trained sparse: only 0.0% of scales are below 1e-2" in caplog.text
