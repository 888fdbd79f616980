"""Entries of latency tables: each runtime computes what torch does, and the grid covers the network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from timed_layers import ENTRIES
from tiny import TINY_CFG

from deploy.artefact.packages import optional_package
from deploy.latency.entries import (
    Entry,
    EntrySettings,
    entries_of,
    grids,
    open_torchscript_entry,
    quantized_weights,
    torch_entry,
)
from deploy.latency.ncnn_entries import open_ncnn_entry, write_ncnn_entry
from deploy.latency.onnx_entries import onnx_entry, open_onnx_entry, open_openvino_entry
from deploy.ncnn.param import read_param
from deploy.ncnn.runtime import INPUT_BLOB, PARAM_NAME, open_network
from deploy.settings import RuntimeOptions
from models.detector import build_model
from models.spec import ModelSpec
from pruning.channels.graph import ChannelGraph
from pruning.selection.latency import LayerKind
from pruning.selection.latency_layers import timed_layers


@pytest.fixture(params=ENTRIES)
def entry(request: pytest.FixtureRequest) -> Entry:
    return ENTRIES[request.param]


def expected(entry: Entry) -> np.ndarray[Any, Any]:
    return torch_entry(entry)(torch.from_numpy(entry.image())).numpy()


def run_ncnn(entry: Entry, folder: Path, settings: EntrySettings) -> np.ndarray[Any, Any]:
    write_ncnn_entry(entry, settings, folder)
    ncnn = optional_package("ncnn", purpose="test")
    net = open_network(ncnn, folder, options=RuntimeOptions(threads=1))
    image = entry.image()
    is_one = len(image) == 1  # a batch of one image, or of one row
    with net.create_extractor() as extractor:
        extractor.input(INPUT_BLOB, ncnn.Mat(image[0] if is_one else image))
        code, blob = extractor.extract("out0")
        assert code == 0
        return np.array(blob)[None] if is_one else np.array(blob)


def test_ncnn_entry_computes_what_torch_does(entry: Entry, tmp_path: Path) -> None:
    found = run_ncnn(entry, tmp_path, EntrySettings())
    np.testing.assert_allclose(found, expected(entry), rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize(("precision", "tolerance"), [("fp16", 1e-3), ("int8", 0.03)])
def test_ncnn_entry_in_fewer_bits_is_close(entry: Entry, tmp_path: Path, precision: Any, tolerance: float) -> None:
    found = run_ncnn(entry, tmp_path, EntrySettings(precision=precision))
    np.testing.assert_allclose(
        found, expected(entry), atol=tolerance * max(1.0, float(np.abs(expected(entry)).max()))
    )


def test_int8_leaves_the_last_layer_in_floating_point(tmp_path: Path) -> None:
    is_int8 = {}
    for name in ("3x3", "depthwise", "head"):
        write_ncnn_entry(ENTRIES[name], EntrySettings(precision="int8"), tmp_path)
        is_int8[name] = read_param(tmp_path / PARAM_NAME)[1].number(8) > 0
    assert is_int8 == {"3x3": True, "depthwise": True, "head": False}


@pytest.mark.parametrize("opens", [open_onnx_entry, open_openvino_entry])
def test_onnx_entry_computes_what_torch_does(entry: Entry, opens: Any) -> None:
    (found,) = _outputs(opens(entry, EntrySettings())())
    np.testing.assert_allclose(found, expected(entry), rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("opens", [open_onnx_entry, open_openvino_entry])
@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_onnx_entry_in_fewer_bits_is_close(opens: Any, precision: Any) -> None:
    (found,) = _outputs(opens(ENTRIES["3x3"], EntrySettings(precision=precision))())
    np.testing.assert_allclose(found, expected(ENTRIES["3x3"]), atol=0.05)


def test_int8_graph_rounds_inner_layers_only() -> None:
    def kinds(name: str) -> set[str]:
        return {node.op_type for node in onnx_entry(ENTRIES[name], EntrySettings(precision="int8")).graph.node}

    assert "QuantizeLinear" in kinds("3x3")
    assert "QuantizeLinear" not in kinds("head")


def test_torchscript_entry_runs(entry: Entry) -> None:
    found = open_torchscript_entry(entry, EntrySettings())()
    assert isinstance(found, torch.Tensor)
    np.testing.assert_allclose(found.numpy(), expected(entry), rtol=1e-4, atol=2e-5)


def test_opened_ncnn_entry_runs_again_and_again(entry: Entry) -> None:
    run = open_ncnn_entry(entry, EntrySettings())
    assert [run() for _ in range(3)] == [None] * 3


def test_grid_covers_every_layer_of_the_network() -> None:
    model = build_model(ModelSpec.from_yaml(TINY_CFG))
    layers = timed_layers(model, ChannelGraph.of(model), (3, 64, 64))
    axes = grids(layers)
    for layer in layers:
        rows, columns = axes[layer.kind]
        assert len(layer.input_ids) in rows
        assert len(layer.output_ids) in columns
    stem = next(layer.kind for layer in layers if layer.kind.end == "first")
    assert axes[stem] == ((3,), (4, 8))
    heads = [axes[layer.kind][1] for layer in layers if layer.kind.end == "last"]
    assert heads == [(24,), (24,)]


def test_widths_are_close_together_where_layers_are_narrow() -> None:
    kind = LayerKind(kind="conv")
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 600, 1), torch.nn.Conv2d(600, 2, 1))
    layers = timed_layers(model, ChannelGraph.of(model, image_chw=(3, 4, 4)), (3, 4, 4))
    _, columns = grids(layers)[layers[0].kind]
    assert columns[:8] == (4, 8, 12, 16, 20, 24, 32, 40)
    assert columns[-5:] == (224, 256, 384, 512, 600)
    pairs = [(entry.inputs, entry.outputs) for entry in entries_of(kind, (1, 2), (3, 4))]
    assert pairs == [(1, 3), (1, 4), (2, 3), (2, 4)]


def _outputs(found: Any) -> list[np.ndarray[Any, Any]]:
    return list(found.values()) if hasattr(found, "values") else found


def test_largest_weight_of_each_channel_becomes_127_and_zeros_keep_a_finite_scale() -> None:
    weights = np.array([[1.0, -2.0, 0.5], [0.0, 0.0, 0.0]], dtype=np.float32)
    quantized, scales = quantized_weights(weights)
    assert quantized.tolist() == [[64, -127, 32], [0, 0, 0]]
    assert scales.tolist() == [63.5, 1.0]
