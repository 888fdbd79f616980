"""Latency tables are measured, cached, scaled to the speed of now, and refused where they do not fit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from latency_tables import invented_table
from tiny import TINY_CFG
from torch import nn

from deploy.latency import measure, tables
from deploy.latency.measure import Subject, measure_table
from deploy.latency.tables import latency_table
from deploy.outputs.detector import DetectorSource
from models.detector import build_model
from models.spec import ModelSpec
from pruning.channels.graph import ChannelGraph
from pruning.selection.latency import Conditions, LatencyTable
from pruning.selection.latency_cost import LatencyCost
from utils.errors import ConfigError

IMAGE = (3, 64, 64)
CONDITIONS = Conditions(runtime="torchscript", precision="fp32", threads=1, image_chw=IMAGE)


@pytest.fixture(scope="module")
def subject() -> Subject:
    torch.manual_seed(0)
    model = build_model(ModelSpec.from_yaml(TINY_CFG)).eval()

    def source_of(some: nn.Module) -> Any:
        return DetectorSource(model=some, names=("a", "b", "c"))  # type: ignore[arg-type]

    return Subject(model=model, image_chw=IMAGE, trace_chw=None, source_of=source_of)


def table_of(subject: Subject) -> LatencyTable:
    invented = invented_table(subject.model, ChannelGraph.of(subject.model), IMAGE)
    return replace(invented, conditions=CONDITIONS)


def test_measured_table_covers_the_network_and_comes_back_from_its_file(
    subject: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("_RUNS", "_NETWORK_RUNS", "_REFERENCE_RUNS"):
        monkeypatch.setattr(measure, name, 3)
    monkeypatch.setattr("deploy.latency.entries._widths", lambda most: ())  # only those of the network itself
    table = measure_table(subject, CONDITIONS)
    cost = LatencyCost.of(subject.model, ChannelGraph.of(subject.model), IMAGE, table)
    assert cost.milliseconds() > 0
    assert table.reference_ms > 0
    assert (table.version, table.conditions) == (torch.__version__, CONDITIONS)
    table.save(tmp_path / "t.json")
    assert LatencyTable.load(tmp_path / "t.json") == table


def test_rest_is_fitted_to_whole_networks(subject: Subject) -> None:
    graph = ChannelGraph.of(subject.model)
    cost = LatencyCost.of(subject.model, graph, IMAGE, table_of(subject))
    cuts = [graph.prunable_ids[::step][: count * 20] for step, count in ((1, 0), (3, 2), (2, 4), (2, 8))]
    measured = [cost.milliseconds(cut) + 0.1 + 1e-6 * cost.values(cut) for cut in cuts]
    fitted = LatencyCost.of(subject.model, graph, IMAGE, measure._with_rest(cost, cuts, measured))
    # The penalty on the rest costs little where nothing disturbed the measurement.
    assert [fitted.milliseconds(cut) for cut in cuts] == pytest.approx(measured, rel=0.03)
    assert fitted.table.fixed_ms > 0
    assert fitted.table.ms_per_value > 0


def test_table_is_measured_once_and_scaled_by_the_reference_layers(
    subject: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def measured(*given: Any) -> LatencyTable:
        calls.append(given)
        return table_of(subject)

    monkeypatch.setattr(tables, "measure_table", measured)
    monkeypatch.setattr(tables, "time_reference", lambda conditions: 1.5)  # it was 1.0 with the table
    first = latency_table(subject, CONDITIONS, cache=tmp_path)
    again = latency_table(subject, CONDITIONS, cache=tmp_path)
    assert len(calls) == 1
    assert again == first.scaled(1.5)
    latency_table(subject, replace(CONDITIONS, threads=2), cache=tmp_path)
    assert len(calls) == 2


def test_damaged_cache_is_measured_again(
    subject: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(tables, "measure_table", lambda *given: table_of(subject))
    latency_table(subject, CONDITIONS, cache=tmp_path)
    (file,) = tmp_path.iterdir()
    file.write_text("{")
    assert latency_table(subject, CONDITIONS, cache=tmp_path) == table_of(subject)
    assert "is no latency table" in caplog.text


def test_given_table_is_taken_as_it_is(subject: Subject, tmp_path: Path) -> None:
    table_of(subject).save(tmp_path / "phone.json")
    given = latency_table(subject, CONDITIONS, path=str(tmp_path / "phone.json"))
    assert given == table_of(subject)


def test_given_table_of_another_runtime_is_refused(subject: Subject, tmp_path: Path) -> None:
    table_of(subject).save(tmp_path / "phone.json")
    with pytest.raises(ConfigError, match=r"phone.json was measured with runtime torchscript, expected ncnn"):
        latency_table(subject, replace(CONDITIONS, runtime="ncnn"), path=str(tmp_path / "phone.json"))


def test_tensorrt_needs_a_given_table(subject: Subject) -> None:
    with pytest.raises(ConfigError, match=r"tensorrt: .* give --latency-table"):
        latency_table(subject, replace(CONDITIONS, runtime="tensorrt"))


def test_precision_that_a_runtime_lacks_is_refused(subject: Subject) -> None:
    with pytest.raises(ConfigError, match="torchscript in int8 is not supported; expected fp32"):
        latency_table(subject, replace(CONDITIONS, precision="int8"))
