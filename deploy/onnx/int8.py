"""int8 ONNX: weights and activations in 8 bits, as explicit QuantizeLinear and DequantizeLinear pairs.

Any runtime that supports these operators can read such a file: onnxruntime, OpenVINO, TensorRT. They differ in what
they compute fast: onnxruntime needs a pair behind a layer too, the others only before it.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from itertools import count, pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploy.int8.calibration import Arithmetic
from deploy.onnx.graph import check_opset, onnx_package
from quantization.program.program import Affine
from quantization.ranges.config import QuantConfig
from quantization.runtime_layers import RuntimeLayer

# onnxruntime has 8-bit versions of other operators: SiLU in 8 bits saves a quarter of the time, but a pruned detector
# then lost 0.017 mAP instead of 0.008; additions and concatenations save nothing. CPUs without VNNI add products of
# uint8 and int8 in 16 bits, which may overflow; it has a setting against that, `session.x64quantprecision`.
FOR_ONNXRUNTIME = Arithmetic(rounding=QuantConfig(rounded="ends"), keeps_first=True)
FOR_OPENVINO = Arithmetic(rounding=QuantConfig(rounded="inputs"))
# TensorRT has no zero points.
FOR_TENSORRT = Arithmetic(
    rounding=QuantConfig(rounded="inputs", activation_symmetric=True, activation_signed=True), keeps_first=True
)
_CLAMPS = ("Relu", "Clip")


def stored_weights(graph: Any) -> dict[str, NDArray[Any]]:
    """Return the weight of each layer of a float32 graph that can be replaced, by the path of its module."""
    numpy_helper = onnx_package().numpy_helper
    tensors = {item.name: item for item in graph.graph.initializer}
    return {
        _module_path(node.name): numpy_helper.to_array(tensors[node.input[1]])
        for node in graph.graph.node
        if _is_layer(node) and node.input[1] in tensors
    }


def as_int8(graph: Any, layers: Mapping[str, RuntimeLayer], *, rounds_results: bool) -> Any:
    """Replace layers of a float32 graph.

    Args:
        graph: Graph, an `onnx.ModelProto`; not changed.
        layers: New layers by the path of their modules; those without integers stay in float32.
        rounds_results: Whether what a layer in integers returns is rounded too.

    Returns:
        Graph, an `onnx.ModelProto`, with the same inputs and outputs.

    Raises:
        ConfigError: The opset has no scales per channel.
    """
    check_opset(max(item.version for item in graph.opset_import), is_int8=True)
    new = copy.deepcopy(graph)
    writer = _Writer(new.graph, rounds_results=rounds_results)
    for node in list(new.graph.node):
        writer.add(node, layers.get(_module_path(node.name)) if _is_layer(node) else None)
    writer.finish()
    return new


class _Writer:
    """Rewrites the nodes of a graph one after the other.

    Args:
        graph: Graph whose nodes are read in order and then replaced.
        rounds_results: Whether what a layer in integers returns is rounded too.
    """

    def __init__(self, graph: Any, *, rounds_results: bool) -> None:
        self._graph = graph
        self._rounds_results = rounds_results
        self._helper, self._numpy = onnx_package().helper, onnx_package().numpy_helper
        self._nodes: list[Any] = []
        self._numbers = count()
        # Rounded values by their source, and values that are rounded behind the next node.
        self._rounded: dict[tuple[str, Affine], str] = {}
        self._due: dict[str, Affine] = {}
        self._readers: dict[str, list[Any]] = {}
        for node in graph.node:
            for name in node.input:
                self._readers.setdefault(name, []).append(node)

    def add(self, node: Any, layer: RuntimeLayer | None) -> None:
        """Add a node, with other weights if there is a layer, and with what rounds its input and result."""
        due = self._due.pop(node.input[0], None) if node.input else None
        if layer is not None:
            self._set_weights(node, layer)
            if layer.integers is not None:
                node.input[0] = self._round(node.input[0], layer.integers.source)
                due = layer.integers.result if self._rounds_results else None
        self._nodes.append(node)
        if due is not None:
            self._round_result(node, due)

    def finish(self) -> None:
        """Put the new nodes into the graph, without weights that nothing reads, under short names."""
        del self._graph.node[:]
        self._graph.node.extend(self._nodes)
        read = {name for node in self._nodes for name in node.input}
        kept = [item for item in self._graph.initializer if item.name in read]
        del self._graph.initializer[:]
        self._graph.initializer.extend(kept)
        _shorten_names_(self._graph)

    def _set_weights(self, node: Any, layer: RuntimeLayer) -> None:
        weight = self._constant(layer.weight) if layer.integers is None else ""
        if layer.integers is not None:
            integers = self._constant(layer.integers.weight)
            scales = self._constant(layer.integers.scales)
            zeros = self._constant(np.zeros(len(layer.integers.scales), np.int8))
            weight = self._node("DequantizeLinear", [integers, scales, zeros], axis=0)
        node.input[1:] = [weight, self._constant(layer.bias)]

    def _round(self, name: str, affine: Affine) -> str:
        """Return the name of a value rounded to 8 bits."""
        if (name, affine) not in self._rounded:
            kind = np.int8 if affine.low < 0 else np.uint8
            scale = [self._constant(np.float32(affine.scale)), self._constant(kind(affine.zero_point))]
            integers = self._node("QuantizeLinear", [name, *scale])
            self._rounded[name, affine] = self._node("DequantizeLinear", [integers, *scale])
        return self._rounded[name, affine]

    def _round_result(self, node: Any, affine: Affine) -> None:
        """Round what a node returns, or what the clamp behind it does, with which onnxruntime joins it."""
        readers = self._readers.get(node.output[0], [])
        if len(readers) == 1 and readers[0].op_type in _CLAMPS:
            self._due[node.output[0]] = affine
            return
        wanted, node.output[0] = node.output[0], self._name()
        self._round(node.output[0], affine)
        self._nodes[-1].output[0] = wanted

    def _node(self, kind: str, inputs: list[str], **settings: Any) -> str:
        """Add a node of one output, and return the name of that."""
        name = self._name()
        self._nodes.append(self._helper.make_node(kind, inputs, [name], **settings))
        return name

    def _constant(self, values: Any) -> str:
        name = self._name()
        self._graph.initializer.append(self._numpy.from_array(np.asarray(values), name))
        return name

    def _name(self) -> str:
        return f"int8.{next(self._numbers)}"


def _is_layer(node: Any) -> bool:
    """Return whether a node multiplies weights stored as in torch."""
    is_gemm_of_torch = node.op_type == "Gemm" and any(item.name == "transB" and item.i for item in node.attribute)
    return node.op_type == "Conv" or is_gemm_of_torch


def _module_path(node_name: str) -> str:
    """Convert a node's name to its module path: `/detector/model.2/m/m.0/cv1/Conv` to `model.2.m.0.cv1`.

    The name lists a module list before each of its items, which the path does not.
    """
    parts = node_name.split("/")[2:-1]
    kept = [part for part, after in pairwise([*parts, ""]) if not after.startswith(f"{part}.")]
    return ".".join(kept)


def _shorten_names_(graph: Any) -> None:
    """Replace the names of inner tensors with short ones: they take a tenth of a small network's file."""
    kept = {item.name for item in (*graph.input, *graph.output)} | {""}
    numbers = count()
    short: dict[str, str] = {}

    def renamed(name: str) -> str:
        return name if name in kept else short.setdefault(name, f"t{next(numbers)}")

    for node in graph.node:
        node.input[:] = [renamed(name) for name in node.input]
        node.output[:] = [renamed(name) for name in node.output]
    for tensor in graph.initializer:
        tensor.name = renamed(tensor.name)
    # Shapes of inner tensors, which every runtime infers by itself.
    del graph.value_info[:]
