"""int8 by the tools of others, on the same network and images: onnxruntime's static quantisation, and NNCF.

pip install nncf==3.4.0
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deploy.artefact.packages import optional_package
from deploy.artefact.runtime import RuntimeModel
from deploy.job import ExportJob
from deploy.onnx.graph import open_session, run_session, save_onnx
from deploy.onnx.network import onnx_graph
from deploy.outputs.outputs import INPUT_NAME

_CPU = torch.device("cpu")


def by_onnxruntime(job: ExportJob) -> RuntimeModel:
    """Quantise with onnxruntime: convolutions but the first and last ones, unsigned values, scales per channel."""
    metadata = job.metadata("onnx", Path("peer.onnx"))
    graph = onnx_graph(job, metadata, precision="fp32")
    tools = optional_package("onnxruntime.quantization", purpose="a comparison")
    ends = {item.name for item in (*graph.graph.input, *graph.graph.output)}
    outer = [node.name for node in graph.graph.node if ends & {*node.input, *node.output}]
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch, "int8.onnx")
        tools.quantize_static(
            copy.deepcopy(graph),  # the package moves the weights out of its argument
            path,
            _reader(tools, job.calibration),
            per_channel=True,
            activation_type=tools.QuantType.QUInt8,
            weight_type=tools.QuantType.QInt8,
            op_types_to_quantize=["Conv", "Gemm", "MatMul"],
            nodes_to_exclude=outer,
        )
        session = open_session(path, device=_CPU, threads=1)
    return metadata.runtime(lambda images: run_session(session, images), path="onnxruntime's", device=_CPU)


def by_nncf(job: ExportJob) -> RuntimeModel:
    """Quantise with NNCF's defaults for OpenVINO."""
    metadata = job.metadata("openvino", Path("peer_openvino_model"))
    nncf, openvino = (optional_package(name, purpose="a comparison") for name in ("nncf", "openvino"))
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch, "model.onnx")
        save_onnx(onnx_graph(job, metadata, precision="fp32"), path, properties={})
        graph = openvino.Core().read_model(path)
    images = [image.numpy() for image in job.calibration]
    quantised = nncf.quantize(graph, nncf.Dataset(images), subset_size=len(images))
    settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    compiled = openvino.Core().compile_model(quantised, "CPU", settings)
    outputs = [compiled.output(name) for name in metadata.output_names]

    def run(images: Tensor) -> list[Tensor]:
        found = compiled({INPUT_NAME: images.float().contiguous().numpy()})
        return [torch.from_numpy(found[output].copy()) for output in outputs]

    return metadata.runtime(run, path="NNCF's", device=_CPU)


def _reader(tools: Any, images: Sequence[Tensor]) -> Any:
    """Wrap images in onnxruntime's reader."""

    class Reader(tools.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._images: Iterator[Tensor] = iter(images)

        def get_next(self) -> dict[str, Any] | None:
            image = next(self._images, None)
            return None if image is None else {INPUT_NAME: image.numpy()}

    return Reader()


PEERS = {"onnxruntime's own": by_onnxruntime, "NNCF": by_nncf}
