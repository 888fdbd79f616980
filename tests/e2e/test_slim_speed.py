"""The speed-up that slim.py tells: measured beside the dense network, held against the target, told as measured."""

from __future__ import annotations

import json
import logging
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from latency_tables import invented_table
from refusal import Place, make_place, refusal
from tiny_slim import slimmed
from torch import nn

from commands.slim import run_slimming
from commands.slim_config import SlimConfig
from commands.slim_report import Exported
from models.classifiers import LeNet5
from models.classifiers.spec import ClassifierSpec
from models.load import load_model
from pruning.channels.graph import ChannelGraph
from pruning.selection.latency import Conditions, LatencyTable
from pruning.selection.latency_cost import LatencyCost
from pruning.selection.targets import NetworkTimes
from utils.device import machine_name
from utils.storage.checkpoint import Checkpoint, load_checkpoint, save_checkpoint

IMAGE = (3, 64, 64)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A place whose network has scales in [0, 1), with latency tables: of this machine and of a phone."""
    place = make_place(tmp_path_factory.mktemp("speed"))
    torch.manual_seed(0)
    model = load_model(place.weights).model
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0, 1)
    save_checkpoint(replace(load_checkpoint(place.weights), weights=model.state_dict()), place.weights)
    table = invented_table(model, ChannelGraph.of(model), IMAGE)
    conditions = Conditions(runtime="torchscript", precision="fp32", threads=1, image_chw=IMAGE)
    for name, machine in (("here", machine_name()), ("phone", "a phone")):
        replace(table, conditions=conditions, machine=machine).save(place.root / f"{name}.json")
    return place


def cut_config(place: Place, **settings: Any) -> SlimConfig:
    """A cut of the weights, without any training, and an export."""
    values: dict[str, Any] = {"weights": str(place.weights), "data": str(place.data), "stages": ("prune", "export")}
    values |= {"target": "params=60%", "round": "none", "sr": 0.1, "runtime": "torchscript", "img_size": (64,)}
    values |= {"workers": 0, "noplots": True, "device": "cpu", "batch_size": 2}
    values |= {"cache_dir": str(place.root / "cache"), "project": str(place.root / "runs")}
    return SlimConfig(**{**values, **settings})


def test_both_times_are_measured_and_told(place: Place) -> None:
    result = slimmed(cut_config(place, name="plain"))
    assert result.exported is not None
    (dense,) = result.exported.dense
    own = result.exported.milliseconds
    assert own is not None
    assert min(own, dense.milliseconds) > 0
    folder = place.root / "runs/plain"
    written = json.loads((folder / "result.json").read_text())["export"]
    assert (written["milliseconds"], written["dense_ms"]) == (own, dense.milliseconds)
    assert written["speedup"] == pytest.approx(dense.milliseconds / own)
    assert (written["precision"], written["dense_precision"], written["threads"]) == ("fp32", "fp32", 1)
    assert written["dense_weights"] == str(place.weights)
    assert "target" not in written  # parameters take no time
    assert (
        f"{written['speedup']:.2f} times as fast as the dense network, measured side by side: "
        f"{own:.2f} ms in fp32 against {dense.milliseconds:.2f} ms in fp32" in result.as_text()
    )
    answer = json.loads((folder / "report.json").read_text())["answer"]["milliseconds"]
    assert (answer["before"], answer["after"], answer["is_predicted"]) == (dense.milliseconds, own, False)
    page = (folder / "report.html").read_text()
    assert re.search(r"times as fast \(measured\)", page)
    assert "(predicted)" not in page
    # It is timed, not shipped.
    assert sorted(path.name for path in (folder / "export").glob("*.torchscript")) == ["pruned_model.torchscript"]


@pytest.mark.parametrize("target", ["ms=95%", "speedup=1.3", "ms={}"])
def test_target_that_is_a_time_is_checked_by_what_is_measured(
    place: Place, caplog: pytest.LogCaptureFixture, target: str
) -> None:
    table = LatencyTable.load(place.root / "here.json")
    before = Exported(path=Path("a"), passed=None, milliseconds=None)
    assert before.checked("macs=50%", NetworkTimes(now=1.0), table) == before
    model = load_model(place.weights).model
    predicted = LatencyCost.of(model, ChannelGraph.of(model), IMAGE, table).milliseconds()
    target = target.format(f"{0.8 * predicted:.3f}")
    name = re.sub(r"\W", "_", target)
    config = cut_config(place, target=target, latency_table=str(place.root / "here.json"), name=name, round="")
    with caplog.at_level(logging.INFO):
        result = slimmed(config)
    assert result.exported is not None
    check = json.loads((place.root / "runs" / name / "result.json").read_text())["export"]["target"]
    assert min(check["predicted"], check["measured"]) > 0
    if "%" in target or "speedup" in target:
        assert check["measured"] == pytest.approx(result.exported.speedup)
        assert check["predicted"] >= 0.999 * check["wanted"]
    else:
        assert check["measured"] == result.exported.milliseconds
        assert check["predicted"] <= 1.001 * check["wanted"]
    warned = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    # A target that is not met is a warning, and the report repeats it.
    assert (check["text"] in warned) is not check["is_met"]
    assert (check["text"] in result.as_text()) is check["is_met"]
    assert check["text"][1:60] in (place.root / "runs" / name / "report.html").read_text()
    assert "ms predicted" in result.as_text().splitlines()[0]


def test_time_of_a_phone_is_not_checked_by_times_of_this_machine(place: Place) -> None:
    table = str(place.root / "phone.json")
    result = slimmed(cut_config(place, target="ms=95%", latency_table=table, name="phone", round=""))
    assert result.exported is not None
    assert result.exported.target is None
    assert f"target ms=95% is not checked: it is for a phone, and this is {machine_name()}" in result.as_text()


def test_network_that_was_not_cut_has_nothing_beside_it(place: Place) -> None:
    result = slimmed(cut_config(place, stages=("export",), target="", name="alone"))
    assert result.exported is not None
    assert result.exported.dense == ()
    assert result.exported.milliseconds is not None
    assert "side by side" not in result.as_text()
    written = json.loads((place.root / "runs/alone/export/result.json").read_text())
    assert (written["beside"], written["config"]["beside"]) == ([], "")


def test_file_that_cannot_run_here_is_not_timed(tmp_path: Path, place: Place) -> None:
    content = {"reports": [], "not_run": ["x/best.engine"], "beside": []}
    (tmp_path / "result.json").write_text(json.dumps(content))
    table = LatencyTable.load(place.root / "here.json")
    exported = Exported.of(tmp_path).checked("ms=8", NetworkTimes(now=7.0, before=20.0), table)
    assert exported.as_text() == (
        "exported: x/best.engine, neither verified nor timed: this machine cannot run it\n"
        "target ms=8 is not checked: this machine cannot run the file"
    )
    assert exported.to_dict() == {
        **{"path": "x/best.engine", "passed": None, "milliseconds": None},
        "target": {"text": "target ms=8 is not checked: this machine cannot run the file"},
    }


def test_killed_while_timing_leaves_no_result(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    class KilledError(Exception):
        pass

    def killed(*given: Any, **named: Any) -> None:
        raise KilledError

    config = cut_config(place, name="killed")
    with monkeypatch.context() as patched:
        patched.setattr("commands.export.time_side_by_side", killed)
        with pytest.raises(KilledError):
            run_slimming(config)
    folder = place.root / "runs/killed"
    assert not (folder / "export/result.json").exists()
    resumed = slimmed(SlimConfig(resume=str(folder)))
    assert resumed.exported is not None
    assert len(resumed.exported.dense) == 1


def test_network_that_cannot_be_timed_beside_is_refused_before_anything_is_written(
    place: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = ClassifierSpec(name="lenet5", num_classes=10, image_chw=(1, 28, 28), mean=(0.5,), std=(0.5,))
    digits = Checkpoint(spec=spec.to_dict(), names=tuple("0123456789"), weights=LeNet5().state_dict())
    save_checkpoint(digits, tmp_path / "digits.pt")
    cases = {"none.pt": str(tmp_path / "none.pt"), "digits.pt": "is for classification, --weights"}
    for name, line in cases.items():
        arguments = ["--weights", str(place.weights), "--include", "torchscript", "--img-size", "64"]
        arguments += ["--output", str(tmp_path / "out"), "--project", str(tmp_path / "runs")]
        assert line in refusal("export", [*arguments, "--beside", str(tmp_path / name)], capsys)
    assert [path.name for path in tmp_path.iterdir() if path.is_dir() and any(path.iterdir())] == []
