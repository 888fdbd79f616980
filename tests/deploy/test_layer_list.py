"""The list of layers that another device times: complete, its sums right, and never in place of other files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from timed_layers import IMAGE, tiny_subject

from deploy.latency.entries import grids
from deploy.latency.layer_list import LIST_NAME, listed_layer, write_layer_list
from deploy.latency.networks import cut_networks
from deploy.ncnn.param import read_param
from pruning.channels.graph import ChannelGraph
from pruning.selection.latency import Conditions, LatencyTable, LayerTimes
from pruning.selection.latency_cost import LatencyCost
from pruning.selection.latency_layers import timed_layers
from utils.errors import ConfigError

CONDITIONS = Conditions(runtime="ncnn", precision="fp32", threads=1, image_chw=IMAGE)
SUBJECT = tiny_subject()
GRAPH = ChannelGraph.of(SUBJECT.model)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("list") / "phone"
    write_layer_list(SUBJECT, CONDITIONS, folder)
    return folder


def content(folder: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((folder / LIST_NAME).read_text())
    return loaded


def test_list_has_every_kind_of_layer_at_its_widths(folder: Path) -> None:
    axes = grids(timed_layers(SUBJECT.model, GRAPH, IMAGE))
    listed = [(tuple(row["inputs"]), tuple(row["outputs"])) for row in content(folder)["layers"]]
    assert listed == list(axes.values())
    assert content(folder)["conditions"]["image_chw"] == list(IMAGE)


def test_networks_lie_beside_the_list(folder: Path) -> None:
    names = [network["name"] for network in content(folder)["networks"]]
    assert len(names) == 4
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        [LIST_NAME, *(f"{name}{suffix}" for name in names for suffix in (".param", ".bin"))]
    )
    widths = [layer.number(0) for layer in read_param(folder / "network0.param") if layer.kind == "Convolution"]
    narrow = [layer.number(0) for layer in read_param(folder / "network3.param") if layer.kind == "Convolution"]
    assert len(widths) == len(narrow)
    assert sum(narrow) < sum(widths)


def test_terms_of_a_network_add_up_to_what_the_table_predicts(folder: Path) -> None:
    random = np.random.default_rng(0)
    layers = {
        kind: LayerTimes(inputs=rows, outputs=columns, ms=tuple(map(tuple, random.random((len(rows), len(columns))))))
        for kind, (rows, columns) in grids(timed_layers(SUBJECT.model, GRAPH, IMAGE)).items()
    }
    table = LatencyTable(conditions=CONDITIONS, version="", machine="", layers=layers)
    cost = LatencyCost.of(SUBJECT.model, GRAPH, IMAGE, table)
    entries = [ms for times in layers.values() for row in times.ms for ms in row]
    for listed, (_, dropped) in zip(content(folder)["networks"], cut_networks(SUBJECT, GRAPH), strict=True):
        total = sum(factor * entries[position] for position, factor in listed["terms"])
        assert total == pytest.approx(cost.milliseconds(dropped))
        assert listed["values"] == cost.values(dropped)


def test_int8_leaves_the_heads_in_floating_point() -> None:
    kinds = {layer.kind for layer in timed_layers(SUBJECT.model, GRAPH, IMAGE)}
    rows = [listed_layer(kind, "int8", (8,), (8,)) for kind in kinds]
    assert {row["storage"] for row in rows if row["kind"]["end"] == "last"} == {"fp16"}
    assert {row["storage"] for row in rows if row["kind"]["end"] != "last"} == {"int8"}
    assert all((" 8=2" in row["param"]) == (row["storage"] == "int8") for row in rows)


def test_folder_with_other_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match=r"exists and contains no layers.json; move it away or choose another name"):
        write_layer_list(SUBJECT, CONDITIONS, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
