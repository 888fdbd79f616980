"""Latency tables are measured, cached, scaled to the speed of now, and refused where they do not fit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from latency_tables import invented_table
from timed_layers import IMAGE, tiny_subject

from deploy.latency import tables
from deploy.latency.measure import MeasureSettings, measure_table, with_layers, with_rest
from deploy.latency.networks import Subject
from deploy.latency.tables import latency_table
from pruning.channels.graph import ChannelGraph
from pruning.selection.latency import Conditions, LatencyTable
from pruning.selection.latency_cost import LatencyCost
from pruning.selection.latency_layers import timed_layers
from utils.device import machine_name
from utils.errors import ConfigError

CONDITIONS = Conditions(runtime="torchscript", precision="fp32", threads=1, image_chw=IMAGE)
QUICK = MeasureSettings(runs=3, network_runs=3, reference_runs=3)


@pytest.fixture(scope="module")
def subject() -> Subject:
    return tiny_subject()


def table_of(subject: Subject) -> LatencyTable:
    invented = invented_table(subject.model, ChannelGraph.of(subject.model), IMAGE)
    return replace(invented, conditions=CONDITIONS)


def test_measured_table_covers_the_network_and_comes_back_from_its_file(
    subject: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deploy.latency.entries._widths", lambda most: ())  # only those of the network itself
    table = measure_table(subject, CONDITIONS, QUICK)
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
    fitted = LatencyCost.of(subject.model, graph, IMAGE, with_rest(cost, cuts, measured))
    # The penalty on the rest costs little where nothing disturbed the measurement.
    assert [fitted.milliseconds(cut) for cut in cuts] == pytest.approx(measured, rel=0.03)
    assert fitted.table.fixed_ms > 0
    assert fitted.table.ms_per_value > 0


def slower_by(factor: float, subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the network take this many times as long as by the invented table."""
    graph = ChannelGraph.of(subject.model)
    predicted = LatencyCost.of(subject.model, graph, IMAGE, table_of(subject)).milliseconds()
    monkeypatch.setattr(tables, "times_of", lambda *given: [factor * predicted])


@pytest.fixture
def measured(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> list[Conditions]:
    """Conditions of the tables that were measured; each is the invented one."""
    made: list[Conditions] = []

    def measure(own: Subject, conditions: Conditions) -> LatencyTable:
        made.append(conditions)
        return table_of(subject)

    monkeypatch.setattr(tables, "measure_table", measure)
    return made


@pytest.mark.parametrize("factor", [0.85, 1.15])
def test_table_is_measured_once_and_scaled_by_the_network(
    factor: float, subject: Subject, measured: list[Conditions], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slower_by(factor, subject, monkeypatch)
    first = latency_table(subject, CONDITIONS, cache=tmp_path)
    again = latency_table(subject, CONDITIONS, cache=tmp_path)
    assert len(measured) == 1
    assert again.fixed_ms == pytest.approx(factor * first.fixed_ms)
    assert again.reference_ms == pytest.approx(factor * first.reference_ms)
    latency_table(subject, replace(CONDITIONS, threads=2), cache=tmp_path)
    assert measured == [CONDITIONS, replace(CONDITIONS, threads=2)]


@pytest.mark.parametrize("factor", [0.7, 1.4])
def test_table_of_another_speed_is_measured_again(
    factor: float, subject: Subject, measured: list[Conditions], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slower_by(factor, subject, monkeypatch)
    latency_table(subject, CONDITIONS, cache=tmp_path)
    assert latency_table(subject, CONDITIONS, cache=tmp_path) == table_of(subject)
    assert len(measured) == 2


@pytest.mark.usefixtures("measured")
def test_time_of_a_network_is_measured_for_the_scale(subject: Subject, tmp_path: Path) -> None:
    latency_table(subject, CONDITIONS, cache=tmp_path)
    assert 0 < latency_table(subject, CONDITIONS, cache=tmp_path).reference_ms < float("inf")


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


def lacking(subject: Subject, *, machine: str) -> LatencyTable:
    """A table without its last kind of layer, and with another one only up to narrow widths."""
    table = table_of(subject)
    rest = list(table.layers.items())[:-1]
    narrow, times = rest[1]
    short = replace(times, outputs=times.outputs[:2], ms=tuple(row[:2] for row in times.ms))
    return replace(table, machine=machine, layers={**dict(rest), narrow: short})


@pytest.fixture
def few_widths(monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers are measured at the widths of the network alone."""
    monkeypatch.setattr("deploy.latency.entries._widths", lambda most: ())


@pytest.mark.usefixtures("few_widths")
def test_layers_that_a_given_table_of_this_machine_lacks_are_measured(
    subject: Subject, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    given, path = lacking(subject, machine=machine_name()), tmp_path / "here.json"
    given.save(path)
    before = path.read_bytes()
    table = latency_table(subject, CONDITIONS, path=str(path))
    assert "here.json: layer model.1.conv has 8 inputs and 8 outputs, measured are up to 8 and 2" in caplog.text
    assert "; kinds of layers that are measured now and added: 2" in caplog.text
    assert LatencyCost.of(subject.model, ChannelGraph.of(subject.model), IMAGE, table).milliseconds() > 0
    # What it had is as it was, and so is the file.
    kept = [kind for kind in given.layers if given.layers[kind] == table.layers[kind]]
    assert len(kept) == len(given.layers) - 1
    assert path.read_bytes() == before


@pytest.mark.usefixtures("few_widths")
def test_added_layers_are_at_the_speed_of_the_table(subject: Subject) -> None:
    graph = ChannelGraph.of(subject.model)
    layers = timed_layers(subject.model, graph, IMAGE)[:1]
    fast = with_layers(table_of(subject), layers, QUICK)
    slow = with_layers(replace(table_of(subject), reference_ms=1e6), layers, QUICK)
    kind = layers[0].kind
    # The reference of the second table took a million times as long.
    assert slow.layers[kind].at(3, 8) > 1000 * fast.layers[kind].at(3, 8) > 0


@pytest.mark.usefixtures("few_widths")
def test_layers_that_a_cached_table_lacks_are_added_to_the_file(
    subject: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "measure_table", lambda *given: lacking(subject, machine=machine_name()))
    monkeypatch.setattr(tables, "_slowdown", lambda *given: 1.1)
    latency_table(subject, CONDITIONS, cache=tmp_path)
    (file,) = tmp_path.iterdir()
    table = latency_table(subject, CONDITIONS, cache=tmp_path)
    assert LatencyTable.load(file).scaled(1.1) == table
    assert table.layers.keys() == table_of(subject).layers.keys()


def test_table_of_another_machine_that_lacks_a_layer_is_refused(subject: Subject, tmp_path: Path) -> None:
    lacking(subject, machine="A phone").save(tmp_path / "phone.json")
    message = (
        r"--latency-table .*phone.json: layer model.1.conv has 8 inputs and 8 outputs, measured are up to 8 and 2; "
        r"it was measured on A phone and this is .*: measure it there for this network, with --latency-layers"
    )
    with pytest.raises(ConfigError, match=message):
        latency_table(subject, CONDITIONS, path=str(tmp_path / "phone.json"))


def test_table_of_a_gpu_that_lacks_a_layer_is_refused(subject: Subject, tmp_path: Path) -> None:
    conditions = replace(CONDITIONS, runtime="tensorrt")
    replace(lacking(subject, machine=machine_name()), conditions=conditions).save(tmp_path / "gpu.json")
    with pytest.raises(ConfigError, match=r"layer model.1.conv .*; tensorrt does not time layers one by one here"):
        latency_table(subject, conditions, path=str(tmp_path / "gpu.json"))


def test_complete_table_of_a_gpu_is_taken(subject: Subject, tmp_path: Path) -> None:
    conditions = replace(CONDITIONS, runtime="tensorrt")
    table = replace(table_of(subject), conditions=conditions)
    table.save(tmp_path / "gpu.json")
    assert latency_table(subject, conditions, path=str(tmp_path / "gpu.json")) == table


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
