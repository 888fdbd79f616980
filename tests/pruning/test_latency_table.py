"""Latency tables: interpolation by hand, files, refusals."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from pruning.selection.latency import Conditions, LatencyTable, LayerKind, LayerTimes
from utils.errors import ConfigError

KIND = LayerKind(kind="conv", kernel=(3, 3), stride=(2, 2), padding=(1, 1), activation="silu", input_hw=(16, 8))
TIMES = LayerTimes(inputs=(8, 16), outputs=(8, 24), ms=((1.0, 2.0), (3.0, 6.0)))
CONDITIONS = Conditions(runtime="ncnn", precision="fp32", threads=1, image_chw=(3, 320, 320))


def table() -> LatencyTable:
    return LatencyTable(
        conditions=CONDITIONS,
        version="1.0",
        machine="A CPU",
        layers={KIND: TIMES},
        fixed_ms=0.5,
        ms_per_value=1e-6,
        reference_ms=2.0,
    )


@pytest.mark.parametrize(
    ("inputs", "outputs", "ms"),
    [
        (8, 8, 1.0),
        (16, 24, 6.0),
        (8, 16, 1.5),
        (12, 8, 2.0),
        (12, 16, 3.0),  # between (1 + 2) / 2 and (3 + 6) / 2
        (10, 12, 1.25 + (3.75 - 1.25) / 4),
        (1, 1, 1.0),  # not faster than the smallest that was measured
    ],
)
def test_time_is_interpolated_between_four_neighbours(inputs: int, outputs: int, ms: float) -> None:
    assert TIMES.at(inputs, outputs) == pytest.approx(ms)


def test_file_gives_the_table_back(tmp_path: Path) -> None:
    table().save(tmp_path / "table.json")
    assert LatencyTable.load(tmp_path / "table.json") == table()


def test_scaled_table_has_every_time_scaled() -> None:
    scaled = table().scaled(2.0)
    assert scaled.layers[KIND].at(12, 16) == pytest.approx(6.0)
    assert (scaled.fixed_ms, scaled.ms_per_value, scaled.reference_ms) == (1.0, 2e-6, 4.0)


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (replace(CONDITIONS, runtime="onnx"), r"t.json was measured with runtime ncnn, expected onnx; .* --runtime"),
        (replace(CONDITIONS, precision="int8"), r"with precision fp32, expected int8; .* --precision"),
        (replace(CONDITIONS, threads=4), r"with threads 1, expected 4; .* --threads"),
        (replace(CONDITIONS, image_chw=(3, 64, 96)), r"with image 3x320x320, expected 3x64x96; .* --img-size"),
    ],
)
def test_table_of_other_conditions_is_refused(wanted: Conditions, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        CONDITIONS.check(wanted, where="t.json")


def test_layer_that_is_missing_is_named() -> None:
    message = r"layer model.3 is missing \(conv 3x3, stride 2, silu, input 16x16\); measure the table for this"
    with pytest.raises(ConfigError, match=message):
        table().times_of(replace(KIND, input_hw=(16, 16)), name="model.3", inputs=8, outputs=8)


def test_layer_wider_than_the_table_is_named() -> None:
    message = r"layer model.3 has 8 inputs and 32 outputs, measured are up to 16 and 24"
    with pytest.raises(ConfigError, match=message):
        table().times_of(KIND, name="model.3", inputs=8, outputs=32)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("not json", "Expecting value"),
        ("[]", "no latency table"),
        ('{"format_version": 1}', "conditions"),
        ('{"format_version": 7}', "another format version"),
        ('{"format_version": 1, "conditions": {}, "networks": []}', "a list of layers to time: run time_layers"),
        ("[" * 100_000, "is no latency table"),
    ],
)
def test_file_that_is_no_table_is_refused_in_one_line(tmp_path: Path, content: str, reason: str) -> None:
    path = tmp_path / "table.json"
    path.write_text(content)
    with pytest.raises(ConfigError, match=reason) as caught:
        LatencyTable.load(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("broken", ["negative", "unsorted", "short", "null", "reference", "empty", "unknown"])
def test_damaged_times_are_refused(tmp_path: Path, broken: str) -> None:
    table().save(tmp_path / "table.json")
    values = json.loads((tmp_path / "table.json").read_text())
    layer = values["layers"][0]
    layer["ms"][0][0] = {"negative": -1.0, "null": None}.get(broken, 1.0)
    if broken == "unsorted":
        layer["outputs"] = [24, 8]
    if broken == "short":
        layer["ms"].pop()
    if broken == "reference":
        values["reference_ms"] = 0
    if broken == "empty":
        values["layers"] = []
    if broken == "unknown":
        layer["colour"] = "red"
    (tmp_path / "table.json").write_text(json.dumps(values))
    with pytest.raises(ConfigError, match="is no latency table"):
        LatencyTable.load(tmp_path / "table.json")


def test_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--latency-table .*none.json cannot be read: No such file"):
        LatencyTable.load(tmp_path / "none.json")
