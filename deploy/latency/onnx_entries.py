"""Entries as ONNX graphs, built node by node, for onnxruntime and OpenVINO."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from deploy.artefact.packages import optional_package
from deploy.latency.entries import Entry, EntrySettings, RunEntry, quantized_weights
from deploy.onnx.graph import onnx_package

_INPUT, _OUTPUT = "images", "out"
_OPSET = 17
# Nodes of each activation, as torch's exporter writes them: operator, further inputs by name, attributes.
_ONE_NODE: dict[str, tuple[str, dict[str, Any]]] = {
    "relu": ("Relu", {}),
    "leaky_relu": ("LeakyRelu", {"alpha": 0.01}),
    "sigmoid": ("Sigmoid", {}),
    "hardswish": ("HardSwish", {}),
}


def open_onnx_entry(entry: Entry, settings: EntrySettings) -> RunEntry:
    """Open a graph of one layer in onnxruntime.

    Raises:
        ConfigError: onnx or onnxruntime is not installed.
    """
    onnxruntime = optional_package("onnxruntime", purpose="a latency table of ONNX")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = settings.threads
    options.log_severity_level = 3
    data = onnx_entry(entry, settings).SerializeToString()
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    return partial(session.run, None, {_INPUT: entry.image()})


def open_openvino_entry(entry: Entry, settings: EntrySettings) -> RunEntry:
    """Compile a graph of one layer in OpenVINO, on the CPU.

    Raises:
        ConfigError: onnx or openvino is not installed.
    """
    openvino = optional_package("openvino", purpose="a latency table of OpenVINO")
    core = openvino.Core()
    # Only the file of an fp16 export stores weights in 16 bits; which arithmetic runs it is chosen by a hint.
    is_half = settings.precision == "fp16"
    graph = onnx_entry(entry, EntrySettings(precision="fp32") if is_half else settings)
    arithmetic = "f32"
    if is_half:
        known = core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        arithmetic = next((hint for name, hint in (("BF16", "bf16"), ("FP16", "f16")) if name in known), "f32")
    hints = {"INFERENCE_PRECISION_HINT": arithmetic, "INFERENCE_NUM_THREADS": settings.threads}
    model = core.read_model(graph.SerializeToString())
    compiled = core.compile_model(model, "CPU", {"PERFORMANCE_HINT": "LATENCY", **hints})
    return partial(compiled.create_infer_request().infer, {_INPUT: entry.image()})


def onnx_entry(entry: Entry, settings: EntrySettings) -> Any:
    """Build the graph of a layer with its activation, an `onnx.ModelProto`, with float32 input and output."""
    builder = _Builder(onnx_package())
    is_end = entry.kind.end in ("first", "last")
    is_int8 = settings.precision == "int8" and not is_end
    is_half = settings.precision == "fp16"
    x = _INPUT
    if is_half:
        x = builder.node("Cast", x, to=builder.onnx.TensorProto.FLOAT16)
    if is_int8:
        x = builder.rounded(x)
    kind = np.float16 if is_half else np.float32
    weights = builder.int8_weights(entry) if is_int8 else builder.constant(entry.weights().astype(kind))
    bias = builder.constant(np.zeros(entry.outputs, dtype=kind))
    if entry.is_linear:
        x = builder.node("Gemm", x, weights, bias, transB=1)
    else:
        (top, left), own = entry.kind.padding, entry.kind
        x = builder.node(
            "Conv",
            x,
            weights,
            bias,
            kernel_shape=list(own.kernel),
            strides=list(own.stride),
            dilations=list(own.dilation),
            pads=[top, left, top, left],
            group=entry.groups,
        )
    if is_int8:
        x = builder.rounded(x)
    x = builder.activation(x, entry.kind.activation, kind)
    if is_half:
        x = builder.node("Cast", x, to=builder.onnx.TensorProto.FLOAT)
    builder.node("Identity", x, output=_OUTPUT)
    return builder.model(entry.image().shape)


class _Builder:
    """Collects the nodes and constants of a graph."""

    def __init__(self, onnx: Any) -> None:
        self.onnx = onnx
        self._nodes: list[Any] = []
        self._constants: list[Any] = []

    def node(self, operator: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        """Add a node and return the name of its output."""
        name = output or f"t{len(self._nodes)}"
        self._nodes.append(self.onnx.helper.make_node(operator, inputs, [name], **attributes))
        return name

    def constant(self, array: Any) -> str:
        """Add a constant and return its name."""
        name = f"c{len(self._constants)}"
        self._constants.append(self.onnx.numpy_helper.from_array(array, name))
        return name

    def rounded(self, x: str) -> str:
        """Add the pair of nodes that makes a tensor uint8."""
        scale, zero = self.constant(np.float32(1 / 64)), self.constant(np.uint8(128))
        return self.node("DequantizeLinear", self.node("QuantizeLinear", x, scale, zero), scale, zero)

    def int8_weights(self, entry: Entry) -> str:
        """Add int8 weights with a scale for each output channel."""
        weights = entry.weights()
        quantized, factors = quantized_weights(weights.reshape(len(weights), -1))
        constant, scales = self.constant(quantized.reshape(weights.shape)), self.constant(1 / factors)
        zeros = self.constant(np.zeros(len(weights), dtype=np.int8))
        return self.node("DequantizeLinear", constant, scales, zeros, axis=0)

    def activation(self, x: str, name: str, kind: type[np.floating[Any]]) -> str:
        """Add an activation."""
        if name == "silu":
            return self.node("Mul", x, self.node("Sigmoid", x))
        if name == "relu6":
            return self.node("Clip", x, self.constant(kind(0)), self.constant(kind(6)))
        if name in _ONE_NODE:
            operator, attributes = _ONE_NODE[name]
            return self.node(operator, x, **attributes)
        return x

    def model(self, shape: tuple[int, ...]) -> Any:
        """Return the graph of all nodes with an input of this shape."""
        helper, float32 = self.onnx.helper, self.onnx.TensorProto.FLOAT
        graph = helper.make_graph(
            self._nodes,
            "entry",
            [helper.make_tensor_value_info(_INPUT, float32, shape)],
            [helper.make_tensor_value_info(_OUTPUT, float32, None)],
            self._constants,
        )
        # IR 8 came with opset 17.
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=8)
