"""`export.py --int8-budget`: which layers of a file are in int8, what the report says, and what is refused."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from refusal import Place, make_place, refusal, run

from deploy.formats import FORMATS
from deploy.int8 import mix_timing
from deploy.int8.calibration import Layers
from deploy.ncnn.param import read_param

RUNTIMES = [name for name, form in FORMATS.items() if form.int8 and form.entry]


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return make_place(tmp_path)


def arguments(place: Place, name: str, budget: str, *more: str) -> list[str]:
    for package in FORMATS[name].packages:
        pytest.importorskip(package, reason=f"{package} is not installed; see requirements-export.txt")
    common = ["--weights", str(place.weights), "--img", "64", "--verify-images", "1", "--threads", "1"]
    common += ["--data", str(place.data), "--workers", "0", "--calib-images", "2", "--cache-dir", str(place.root)]
    common += ["--include", name, "--int8", "--int8-budget", budget]
    return [*common, "--project", str(place.project), *more]


def mix_of(place: Place) -> dict[str, Any]:
    (mix,) = json.loads((place.project / "exp/result.json").read_text())["int8_budget"]
    assert isinstance(mix, dict)
    return mix


def time_by_table(patch: pytest.MonkeyPatch, *, int8_ms: float = 1.0, float_ms: float = 2.0) -> None:
    """A machine on which every layer takes the same time, in a network and alone."""

    def sum_of(layers: Layers) -> float:
        return sum(float_ms if layer.integers is None else int8_ms for layer in layers.values())

    def all_three(self: mix_timing._Turns, layers: Layers, *, runs: int) -> list[float]:
        self._timing.open(layers)
        return [sum_of(layers), 10.0, 20.0]

    def layer_times(layers: Any, **_: Any) -> dict[str, tuple[float, float]]:
        return {layer.name: (float_ms, int8_ms) for layer in layers}

    patch.setattr(mix_timing._Turns, "all_three", all_three)
    patch.setattr(mix_timing, "layer_times", layer_times)


def test_file_has_the_layers_in_int8_that_the_report_lists(
    place: Place, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    time_by_table(monkeypatch)
    monkeypatch.setattr("deploy.ncnn.runtime.has_fp16", lambda: False)
    caplog.set_level("INFO")
    with suppress(SystemExit):  # boxes of a network with random numbers may differ
        run("export", arguments(place, "ncnn", "ms=24"))
    mix = mix_of(place)
    can_be_int8 = [layer for layer in mix["layers"] if layer["share"] is not None]
    in_floats = [layer for layer in can_be_int8 if layer["precision"] == "fp32"]
    assert mix["is_within"] is True
    # All take 1 ms in int8 and 2 in floats; the heads are in floats in any case.
    assert len(mix["layers"]) + len(in_floats) + (len(mix["layers"]) - len(can_be_int8)) == mix["ms"] <= 24
    worst = sorted(can_be_int8, key=lambda layer: -layer["share"])[: len(in_floats)]
    assert {layer["layer"] for layer in in_floats} == {layer["layer"] for layer in worst} != set()
    stored = {
        layer.name for layer in read_param(place.root / "tiny_int8_ncnn_model/model.ncnn.param") if layer.number(8)
    }
    assert stored == {layer["layer"] for layer in mix["layers"] if layer["precision"] == "int8"}
    assert mix["loss_left"] == pytest.approx(1 - sum(layer["share"] for layer in in_floats))
    assert "ncnn has no fp16 arithmetic on this processor: only fp32 and int8 are mixed" in caplog.text
    assert (
        f"{len(stored)} of {len(mix['layers'])} layers in int8, the rest in fp32: {mix['ms']:.3g} ms" in caplog.text
    )


def test_processor_with_fp16_mixes_fp16_with_int8(
    place: Place, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    time_by_table(monkeypatch)
    monkeypatch.setattr("deploy.ncnn.runtime.has_fp16", lambda: True)
    caplog.set_level("INFO")
    with suppress(SystemExit):
        run("export", arguments(place, "ncnn", "ms=24"))
    assert mix_of(place)["floats"] == "fp16"
    assert "fp16 and int8 are mixed; run the file with --half" in caplog.text


@pytest.mark.parametrize("name", RUNTIMES)
def test_network_that_needs_no_int8_is_written_without_any(
    name: str, place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    run("export", arguments(place, name, "ms=1e6"))
    mix = mix_of(place)
    assert {layer["precision"] for layer in mix["layers"]} == {"fp32"}
    assert (mix["runtime"], mix["threads"], mix["loss_left"]) == (name, 1, 0)
    assert min(mix["ms"], mix["float_ms"], mix["int8_ms"]) > 0
    assert min(layer["float_ms"] for layer in mix["layers"] if layer["share"] is not None) > 0
    assert "the network is within it without int8; export without --int8" in caplog.text


def test_budget_below_the_fastest_mix_names_the_nearest_and_leaves_no_file(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    message = refusal("export", arguments(place, "onnx", "ms=1e-6"), capsys)
    assert "--int8-budget ms=1e-06: the fastest mix takes " in message
    assert "the nearest that can be reached is ms=" in message
    assert not (place.root / "tiny_int8.onnx").exists()


def test_file_that_turns_out_slower_is_warned_of(
    place: Place, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    time_by_table(monkeypatch)
    measure = mix_timing._Turns.all_three

    def all_three(self: mix_timing._Turns, layers: Layers, *, runs: int) -> list[float]:
        return [100.0, 10.0, 20.0] if runs == mix_timing._FINAL_RUNS else measure(self, layers, runs=runs)

    monkeypatch.setattr(mix_timing._Turns, "all_three", all_three)
    with suppress(SystemExit):
        run("export", arguments(place, "ncnn", "ms=24"))
    assert "--int8-budget ms=24: measured again, the file takes 100 ms" in caplog.text
    assert mix_of(place)["is_within"] is False


@pytest.mark.parametrize(
    ("name", "budget", "more", "finding"),
    [
        ("ncnn", "12", (), "--int8-budget 12: expected milliseconds, such as ms=12"),
        ("ncnn", "ms=nan", (), "--int8-budget ms=nan: expected milliseconds, such as ms=12"),
        ("ncnn", "ms=-1", (), "--int8-budget ms=-1: expected milliseconds, such as ms=12"),
        ("ncnn", "330K", (), "--int8-budget 330K: expected milliseconds, such as ms=12"),
        ("ncnn", "ms=5", ("--int8-search",), "--int8-budget and --int8-search both choose"),
        ("ncnn", "ms=5", ("--int8-trained", "exp"), "--int8-trained has its layers chosen"),
        ("ncnn", "ms=5", ("--include", "ncnn", "tensorrt"), "tensorrt does not time layers one by one here"),
        ("ncnn", "ms=5", ("--include", "torchscript"), "torchscript does not time layers one by one here"),
    ],
)
def test_budget_that_makes_no_sense_is_refused_in_one_line(
    name: str, budget: str, more: tuple[str, ...], finding: str, place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    before = set(place.snapshot())
    assert finding in refusal("export", arguments(place, name, budget, *more), capsys)
    assert set(place.snapshot()) == before


def test_budget_without_int8_is_refused(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    line = [item for item in arguments(place, "ncnn", "ms=5") if item != "--int8"]
    assert "--int8-budget says how long a call may take with int8; give --int8" in refusal("export", line, capsys)


@pytest.mark.parametrize("runtime", ["integer", "onnx"])
def test_milliseconds_of_integers_are_refused_with_the_command_that_takes_them(
    runtime: str, place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["--weights", str(place.weights), "--data", str(place.data), "--budget", "ms=12", "--runtime", runtime]
    include = "ncnn" if runtime == "integer" else runtime
    message = refusal("quantize", line, capsys)
    assert "--budget ms=12: milliseconds are of a runtime that mixes int8 with floating point" in message
    assert f"export.py --include {include} --int8 --int8-budget ms=12" in message
