"""int8 ONNX: weights and activations in 8 bits, as explicit QuantizeLinear and DequantizeLinear pairs.

Any runtime that supports these operators can read such a file: onnxruntime, OpenVINO, TensorRT.
"""

from __future__ import annotations

import copy
import logging
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import count, pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from deploy.artefact.packages import optional_package
from deploy.calibration import skipped_layers
from deploy.onnx.graph import check_opset, onnx_package
from utils.errors import ConfigError

# The operators that take most of the time. onnxruntime has 8-bit versions of others: SiLU in 8 bits saves a quarter
# of the time, but a pruned detector then lost 0.017 mAP instead of 0.008; additions and concatenations save nothing.
_OPERATORS = ("Conv", "Gemm", "MatMul")
_QDQ = ("QuantizeLinear", "DequantizeLinear")


def as_int8(
    graph: Any, calibration: Sequence[Tensor], *, skip: Sequence[str] = (), for_tensorrt: bool = False
) -> Any:
    """Convert the layers of a float32 graph to 8 bits.

    Weights are symmetric int8 with a scale per output channel. Activations are uint8 over the range from the smallest
    to the largest value on the calibration images: rare large values mark objects, and ranges that cut them off
    (least squared error, a quantile over the images) were no better on trained detectors, nor were weights clipped
    for the least squared error. The first and last layers of the graph, with a hundredth of the weights, are kept in
    float32: the last convolutions of a detector have boxes and scores side by side in one map, where 8 bits cost
    more than 0.01 mAP; in the first one they cost 0.003.

    CPUs without VNNI add products of uint8 and int8 in 16 bits, which may overflow; onnxruntime has a setting against
    that, `session.x64quantprecision`.

    Args:
        graph: Graph, an `onnx.ModelProto`; not changed.
        calibration: Images (1, C, H, W) in the form of network input.
        skip: Patterns of the paths of further layers to keep in float32, such as "model.1.*".
        for_tensorrt: Make activations symmetric int8, the only kind that TensorRT supports; x86 CPUs need uint8.

    Returns:
        Graph, an `onnx.ModelProto`, with the same inputs and outputs.

    Raises:
        ConfigError: No images, images of another size than the graph takes, a pattern that matches no layer, an
            opset without per-channel scales, or no onnxruntime.
    """
    check_opset(max(item.version for item in graph.opset_import), is_int8=True)
    left_out = [*_outer_layers(graph.graph), *_skipped(graph.graph, skip)]
    images = [_fitted(image, graph) for image in calibration]
    if not images:
        raise ConfigError("int8 needs images to calibrate on; give --data")
    quantization = optional_package("onnxruntime.quantization", purpose="int8 ONNX")
    kinds = quantization.QuantType
    with tempfile.TemporaryDirectory() as scratch, _without_advice():
        path = Path(scratch, "int8.onnx")
        quantization.quantize_static(
            copy.deepcopy(graph),  # the package moves the weights out of its argument
            path,
            _reader(quantization, graph.graph.input[0].name, images),
            per_channel=True,
            activation_type=kinds.QInt8 if for_tensorrt else kinds.QUInt8,
            weight_type=kinds.QInt8,
            op_types_to_quantize=list(_OPERATORS),
            nodes_to_exclude=left_out,
            extra_options={"ActivationSymmetric": for_tensorrt, "WeightSymmetric": True, "QuantizeBias": False},
        )
        int8 = onnx_package().load(path)
    _shorten_names_(int8.graph)
    return int8


def _reader(quantization: Any, name: str, images: Sequence[NDArray[np.float32]]) -> Any:
    """Wrap the images in the package's reader interface."""

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._images: Iterator[NDArray[np.float32]] = iter(images)

        def get_next(self) -> dict[str, NDArray[np.float32]] | None:
            image = next(self._images, None)
            return None if image is None else {name: image}

    return Reader()


@contextmanager
def _without_advice() -> Iterator[None]:
    """Suppress the package's advice to optimise the graph first: our exports have nothing left to fold."""

    def is_no_advice(record: logging.LogRecord) -> bool:
        return "pre-processing before quantization" not in record.getMessage()

    # The package logs to the root logger, whose filters apply to no other logger's records.
    root = logging.getLogger()
    root.addFilter(is_no_advice)
    try:
        yield
    finally:
        root.removeFilter(is_no_advice)


def _fitted(image: Tensor, graph: Any) -> NDArray[np.float32]:
    """Repeat an image to the batch size of the graph.

    Raises:
        ConfigError: The image has another size than the graph takes.
    """
    batch, *fixed = (axis.dim_value for axis in graph.graph.input[0].type.tensor_type.shape.dim)  # 0 where free
    expected = tuple(side or given for side, given in zip(fixed, image.shape[1:], strict=True))
    if tuple(image.shape) != (1, *expected):
        raise ConfigError(f"calibration image: got shape {tuple(image.shape)}, expected {(1, *expected)}")
    array: NDArray[np.float32] = image.float().expand(batch or 1, *expected).contiguous().numpy()
    return array


def _outer_layers(graph: Any) -> list[str]:
    """Return the names of the nodes that read an input or write an output of the graph."""
    ends = {item.name for item in (*graph.input, *graph.output)}
    return [node.name for node in graph.node if ends & {*node.input, *node.output}]


def _skipped(graph: Any, patterns: Sequence[str]) -> list[str]:
    """Return the names of the convolutions whose module path matches a pattern."""
    by_path = {_module_path(node.name): node.name for node in graph.node if node.op_type == "Conv"}
    return [by_path[path] for path in sorted(skipped_layers(list(by_path), patterns))]


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
        if node.op_type in _QDQ:
            node.name = ""
    for tensor in graph.initializer:
        tensor.name = renamed(tensor.name)
    # Shapes of inner tensors, which every runtime infers by itself.
    del graph.value_info[:]
