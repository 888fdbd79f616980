"""The C++ program that times layers on another device: its tables fit the network, its refusals are one line."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cpp_programs import AARCH64, NATIVE, assert_one_line, built, run
from exporting import cut_off
from timed_layers import ENTRIES, IMAGE, tiny_subject

from deploy.choices import LatencyPrecision
from deploy.latency.entries import grids
from deploy.latency.layer_list import LIST_NAME, listed_layer, write_layer_list
from deploy.latency.measure import MeasureSettings, with_rest
from deploy.latency.networks import cut_networks
from deploy.latency.tables import latency_table
from pruning.channels.graph import ChannelGraph
from pruning.selection.latency import Conditions, LatencyTable
from pruning.selection.latency_cost import LatencyCost
from pruning.selection.latency_layers import timed_layers
from pruning.selection.planner import Planner
from pruning.selection.rounding import Rounding
from pruning.selection.settings import PlanSettings
from utils.device import machine_name

pytestmark = pytest.mark.system

SUBJECT = tiny_subject()
GRAPH = ChannelGraph.of(SUBJECT.model)
# Thirty at a time, so that the last group is a smaller one.
QUICK = MeasureSettings(at_once=30, runs=1, network_runs=3, reference_runs=1)
PRECISIONS: tuple[LatencyPrecision, ...] = ("fp32", "fp16", "int8")


def conditions(precision: LatencyPrecision) -> Conditions:
    return Conditions(runtime="ncnn", precision=precision, threads=1, image_chw=IMAGE)


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The program for this machine."""
    return built(NATIVE, "time_layers", tmp_path_factory.mktemp("build"))


@pytest.fixture(scope="module", autouse=True)
def few_widths() -> Iterator[None]:
    """Layers are timed at few widths beside those of the network."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("deploy.latency.entries._widths", lambda most: (4, 12))
        yield


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[LatencyPrecision, Path]:
    """The layers of the tiny network and of every other kind, to be timed in each precision; not to be changed."""
    root = tmp_path_factory.mktemp("lists")
    for precision in PRECISIONS:
        write_layer_list(SUBJECT, conditions(precision), root / precision, QUICK)
        path = root / precision / LIST_NAME
        content = json.loads(path.read_text())
        content["layers"] += [
            listed_layer(entry.kind, precision, (entry.inputs,), (entry.outputs,)) for entry in ENTRIES.values()
        ]
        path.write_text(json.dumps(content))
    return {precision: root / precision for precision in PRECISIONS}


def timed(program: Sequence[str], folder: Path, table: Path, *options: str) -> tuple[LatencyTable, str]:
    """The table that the program writes, and what it says meanwhile."""
    done = run(program, folder, table, *options)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{table}\n"
    assert [path.name for path in table.parent.iterdir()] == [table.name]
    return LatencyTable.load(table), done.stderr


def assert_fits(table: LatencyTable, precision: LatencyPrecision) -> None:
    """It is of the conditions and has every layer at every width, with times."""
    assert table.conditions == conditions(precision)
    axes = grids(timed_layers(SUBJECT.model, GRAPH, IMAGE))
    assert {kind: (table.layers[kind].inputs, table.layers[kind].outputs) for kind in axes} == axes
    assert {entry.kind for entry in ENTRIES.values()} <= table.layers.keys()
    assert table.reference_ms > 0
    assert any(ms > 0 for times in table.layers.values() for row in times.ms for ms in row)
    assert re.fullmatch(r"1\.0\.\d+", table.version)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_table_has_every_layer_and_the_rest_that_python_would_fit(
    program: list[str], folders: dict[LatencyPrecision, Path], precision: LatencyPrecision, tmp_path: Path
) -> None:
    table, said = timed(program, folders[precision], tmp_path / "phone.json")
    assert_fits(table, precision)
    assert table.machine == machine_name()
    match = re.search(r"^whole networks: ([\d.e-]+(?: [\d.e-]+)*) ms$", said, re.MULTILINE)
    assert match is not None, said
    measured = [float(ms) for ms in match[1].split()]
    cuts = [dropped for _, dropped in cut_networks(SUBJECT, GRAPH)]
    expected = with_rest(LatencyCost.of(SUBJECT.model, GRAPH, IMAGE, table_without_rest(table)), cuts, measured)
    assert table.fixed_ms == pytest.approx(expected.fixed_ms, rel=0.01, abs=1e-4)
    assert table.ms_per_value == pytest.approx(expected.ms_per_value, rel=0.01, abs=1e-9)


def table_without_rest(table: LatencyTable) -> LatencyTable:
    return LatencyTable(
        conditions=table.conditions, version=table.version, machine=table.machine, layers=table.layers
    )


def test_progress_and_the_name_of_the_machine(
    program: list[str], folders: dict[LatencyPrecision, Path], tmp_path: Path
) -> None:
    name = 'Phone "8" é'
    table, said = timed(program, folders["fp32"], tmp_path / "phone.json", "--machine", name, "--powersave", "2")
    assert table.machine == name
    rows = json.loads((folders["fp32"] / LIST_NAME).read_text())["layers"]
    total = sum(len(row["inputs"]) * len(row["outputs"]) for row in rows)
    assert f"timing layers 30/{total}, " in said
    assert f"timing layers {total}/{total}, 0 s left" in said


def test_several_threads_are_timed(program: list[str], folders: dict[LatencyPrecision, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(folders["fp32"], tmp_path / "list")
    edit(folder, lambda content: content["conditions"].update(threads=2))
    (tmp_path / "out").mkdir()
    table, _ = timed(program, folder, tmp_path / "out" / "phone.json")
    assert table.conditions.threads == 2


@pytest.fixture(scope="module")
def phone(
    program: list[str], folders: dict[LatencyPrecision, Path], tmp_path_factory: pytest.TempPathFactory
) -> LatencyTable:
    """A table of a phone; not to be changed."""
    path = tmp_path_factory.mktemp("phone") / "phone.json"
    return timed(program, folders["fp32"], path, "--machine", "A phone")[0]


def test_planner_takes_widths_and_times_of_the_device(phone: LatencyTable, tmp_path: Path) -> None:
    phone.save(tmp_path / "phone.json")
    table = latency_table(SUBJECT, conditions("fp32"), path=str(tmp_path / "phone.json"))
    assert table == phone
    cost = LatencyCost.of(SUBJECT.model, GRAPH, IMAGE, table)
    settings = PlanSettings(
        criterion="random",
        shortcuts="tied",
        rounding=Rounding(),
        has_fast_widths=True,
        image_chw=IMAGE,
        latency=table,
    )
    planner = Planner.of(SUBJECT.model, settings)
    chosen = planner.decide()
    assert planner.milliseconds(chosen) == pytest.approx(cost.milliseconds(chosen.dropped))
    for group in GRAPH.groups:
        kept = len(group.ids) - np.isin(group.ids, chosen.dropped).sum()
        assert kept in cost.fast_widths_of(group)


def test_table_is_rescaled_by_the_time_of_its_reference_layers(
    program: list[str], folders: dict[LatencyPrecision, Path], phone: LatencyTable, tmp_path: Path
) -> None:
    slow = phone.scaled(1000.0)
    slow.save(tmp_path / "phone.json")
    table, said = timed(program, folders["fp32"], tmp_path / "phone.json", "--rescale")
    assert "reference layers took " in said
    assert table.reference_ms < slow.reference_ms / 2
    expected = slow.scaled(table.reference_ms / slow.reference_ms)
    assert (table.machine, table.version, table.conditions) == ("A phone", slow.version, slow.conditions)
    assert table.fixed_ms == pytest.approx(expected.fixed_ms)
    assert table.ms_per_value == pytest.approx(expected.ms_per_value)
    assert table.layers.keys() == slow.layers.keys()
    for kind, times in table.layers.items():
        assert [ms for row in times.ms for ms in row] == pytest.approx(
            [ms for row in expected.layers[kind].ms for ms in row]
        )


def set_row(**values: Any) -> Callable[[dict[str, Any]], None]:
    return lambda content: content["layers"][0].update(values)


DAMAGED_TABLES: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "another version": (lambda content: content.update(format_version=7), "another format_version"),
    "other threads": (
        lambda content: content["conditions"].update(threads=3),
        "precision, threads or image size are not those of the list",
    ),
    "another ncnn": (lambda content: content.update(version="1"), "it was measured with ncnn 1, and this is 1.0."),
    "no reference": (lambda content: content.update(reference_ms=0), "reference_ms: expected a number above zero"),
    "no times": (set_row(ms="fast"), "layers: ms: expected a list"),
    "no layers": (lambda content: content.pop("layers"), "layers: it is missing"),
}


@pytest.mark.parametrize("kind", DAMAGED_TABLES)
def test_table_that_cannot_be_rescaled_is_refused_and_left_as_it_is(
    program: list[str], folders: dict[LatencyPrecision, Path], phone: LatencyTable, tmp_path: Path, kind: str
) -> None:
    change, finding = DAMAGED_TABLES[kind]
    path = tmp_path / "phone.json"
    phone.save(path)
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    before = path.read_bytes()
    done = run(program, folders["fp32"], path, "--rescale")
    assert_refused(done, finding)
    assert done.stderr.endswith("; measure it again, without --rescale\n")
    assert path.read_bytes() == before


def test_table_that_is_not_there_cannot_be_rescaled(
    program: list[str], folders: dict[LatencyPrecision, Path], tmp_path: Path
) -> None:
    done = run(program, folders["fp32"], tmp_path / "phone.json", "--rescale")
    assert_refused(done, "phone.json cannot be opened; measure it first, without --rescale")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("precision", PRECISIONS)
def test_table_of_emulated_arm_has_every_layer(
    folders: dict[LatencyPrecision, Path],
    precision: LatencyPrecision,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Under emulation: right, not fast."""
    program = built(AARCH64, "time_layers", tmp_path_factory.getbasetemp() / "arm")
    table, _ = timed(program, folders[precision], tmp_path / "phone.json", "--machine", "emulated")
    assert_fits(table, precision)
    assert table.machine == "emulated"


def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads((folder / LIST_NAME).read_text())
    change(content)
    (folder / LIST_NAME).write_text(json.dumps(content))


def edited(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    return lambda folder: edit(folder, change)


def set_layer(**values: Any) -> Callable[[Path], None]:
    return edited(lambda content: content["layers"][0].update(values))


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "no list": (lambda folder: (folder / LIST_NAME).unlink(), "give the folder that prune.py --latency-layers wrote"),
    "cut off": (lambda folder: cut_off(folder / LIST_NAME), "layers.json is no list of layers: not JSON: "),
    "a list of numbers": (
        lambda folder: (folder / LIST_NAME).write_text("[1]"),
        "format_version: expected an object",
    ),
    "another version": (
        edited(lambda content: content.update(format_version=7)),
        "format_version: got 7, expected 1",
    ),
    "no networks": (
        edited(lambda content: content.pop("networks")),
        "networks: it is missing; write the folder again",
    ),
    "another runtime": (
        edited(lambda content: content["conditions"].update(runtime="onnx")),
        "conditions: runtime: got onnx, expected ncnn",
    ),
    "no threads": (edited(lambda content: content["conditions"].update(threads=0)), "threads: expected at least 1"),
    "no runs": (edited(lambda content: content["settings"].update(runs=0)), "settings: expected numbers above zero"),
    "no layers": (edited(lambda content: content.update(layers=[])), "layers: it is empty"),
    "descending": (set_layer(inputs=[8, 4]), "layers: inputs: expected ascending widths"),
    "no width": (set_layer(outputs=[0]), "layers: outputs: expected whole numbers above zero"),
    "text as a width": (set_layer(outputs=["8"]), "layers: outputs: expected a number"),
    "other storage": (set_layer(storage="fp64"), "storage: got fp64, expected fp32, fp16 or int8"),
    "split group": (
        edited(lambda content: content["layers"][-12]["kind"].update(group=[2, 5])),
        "outputs: expected whole groups of 5",
    ),
    "a term of no layer": (
        edited(lambda content: content["networks"][0].update(terms=[[10**6, 1.0]])),
        "terms: expected positions in the list",
    ),
    "lacking network": (lambda folder: (folder / "network2.bin").unlink(), "network2.bin cannot be opened; copy the"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_list_that_is_none_is_one_line(
    program: list[str], folders: dict[LatencyPrecision, Path], tmp_path: Path, kind: str
) -> None:
    damage, finding = DAMAGE[kind]
    folder = shutil.copytree(folders["fp32"], tmp_path / "list")
    damage(folder)
    assert_refused(run(program, folder, tmp_path / "phone.json"), finding)
    assert not (tmp_path / "phone.json").exists()


@pytest.mark.parametrize("name", ["network0.param", "network1.bin"])
def test_network_that_is_cut_off_ends_with_our_line(
    program: list[str], folders: dict[LatencyPrecision, Path], tmp_path: Path, name: str
) -> None:
    folder = shutil.copytree(folders["fp32"], tmp_path / "list")
    cut_off(folder / name)
    done = run(program, folder, tmp_path / "phone.json")
    assert done.returncode == 2
    assert "is truncated or damaged; copy the whole folder again" in done.stderr.splitlines()[-1]


def test_layer_that_ncnn_does_not_know_ends_with_our_line(
    program: list[str], folders: dict[LatencyPrecision, Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(folders["fp32"], tmp_path / "list")
    edit(folder, lambda content: content["layers"][0].update(param="7767517\n1 1\nNothing in0 0 1 in0\n"))
    done = run(program, folder, tmp_path / "phone.json")
    assert done.returncode == 2
    assert "time_layers: this ncnn does not load the layer" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "finding"),
    [
        ([], "expected a folder and a table to write; see time_layers --help"),
        (["only"], "expected a folder and a table to write"),
        (["a", "b", "--speed", "9"], "--speed: unknown, or without its value"),
        (["a", "b", "--machine"], "--machine: unknown, or without its value"),
        (["a", "b", "--powersave", "3"], "--powersave 3: expected 0, 1 or 2"),
        (["a", "b", "--rescale", "--machine", "c"], "--rescale keeps the machine that the table names"),
        (["nowhere", "b"], "nowhere/layers.json cannot be opened"),
    ],
)
def test_arguments_that_do_not_fit_are_one_line(program: list[str], arguments: list[str], finding: str) -> None:
    assert_refused(run(program, *arguments), finding)


def test_table_that_cannot_be_written_is_refused_before_anything_is_timed(
    program: list[str], folders: dict[LatencyPrecision, Path], tmp_path: Path
) -> None:
    done = run(program, folders["fp32"], tmp_path / "nowhere" / "phone.json")
    assert_refused(done, "phone.json cannot be written; check the folder and the space")


def test_help_names_every_option(program: list[str]) -> None:
    done = run(program, "--help")
    assert done.returncode == 0
    for word in ("FOLDER", "TABLE", "--machine", "--powersave", "--rescale"):
        assert word in done.stdout


def assert_refused(done: subprocess.CompletedProcess[str], finding: str) -> None:
    assert_one_line(done, finding, program="time_layers")
