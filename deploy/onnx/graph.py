"""ONNX files of any network: written by torch's TorchScript-based exporter, opened by onnxruntime."""

from __future__ import annotations

import io
import logging
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from deploy.native_messages import native_messages
from deploy.packages import optional_package
from utils.errors import CheckpointError, ConfigError
from utils.files import atomic_write

logger = logging.getLogger(__name__)

# Detectors need no more than 11, attention needs 14; 20 is the last that this exporter knows.
OPSETS = range(11, 21)
# The opset that brought DequantizeLinear a scale per channel.
_INT8_OPSET = 13
# How torch names an operator that an opset lacks, and the opset that brought it.
_LACKING = re.compile(r"operator '(?:\w+::)?(\w+)'(?:.*added in version (\d+))?", re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class GraphSettings:
    """How a network is traced.

    Attributes:
        inputs: Their names.
        outputs: Their names.
        opset: Version of the operators.
        dynamic: By the name of an input or output, a name for each axis whose size is free.
    """

    inputs: Sequence[str]
    outputs: Sequence[str]
    opset: int = 17
    dynamic: Mapping[str, Mapping[int, str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_opset(self.opset)


def check_opset(opset: int, *, is_int8: bool = False) -> None:
    """Refuse an opset that no graph of ours can have.

    Raises:
        ConfigError: The exporter does not know it, or its DequantizeLinear has one scale for all channels.
    """
    if opset not in OPSETS:
        raise ConfigError(f"--opset {opset}: expected {OPSETS[0]} to {OPSETS[-1]}")
    if is_int8 and opset < _INT8_OPSET:
        raise ConfigError(
            f"--opset {opset}: its DequantizeLinear lacks the scales per channel of int8; give --opset {_INT8_OPSET}"
        )


def onnx_package() -> Any:
    """The module that reads and writes graphs.

    Raises:
        ConfigError: It is not installed.
    """
    return optional_package("onnx", purpose="export to ONNX")


def trace_onnx(network: nn.Module, examples: Sequence[Tensor], settings: GraphSettings) -> Any:
    """A network as an ONNX graph.

    Args:
        network: In evaluation mode on the CPU.
        examples: One tensor for each input.
        settings: Names and free sizes.

    Returns:
        An `onnx.ModelProto`.

    Raises:
        ConfigError: The network needs an operator that the opset lacks.
    """
    buffer = io.BytesIO()
    # Of an operator that it cannot write, torch shows the whole graph, thousands of lines.
    torch._C._jit_set_onnx_log_output_stream("stderr")
    with warnings.catch_warnings(), native_messages(), _told_in_one_line(settings.opset):
        # The successor of this exporter needs one more package and ignores opsets below 18.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network,
            tuple(examples),
            buffer,  # type: ignore[arg-type]  # files in memory are taken, too
            dynamo=False,
            opset_version=settings.opset,
            input_names=list(settings.inputs),
            output_names=list(settings.outputs),
            dynamic_axes=settings.dynamic,
        )
    return onnx_package().load_from_string(buffer.getvalue())


@contextmanager
def _told_in_one_line(opset: int) -> Iterator[None]:
    """Turn torch's error about a missing operator into one of ours, with the opset that has it."""
    try:
        yield
    except torch.onnx.errors.UnsupportedOperatorError as error:
        found = _LACKING.search(str(error))
        name, needed = found.groups() if found else (str(error), None)
        remedy = f"give --opset {needed}" if needed else "export to another format"
        raise ConfigError(f"--opset {opset}: it lacks {name}, which this network uses; {remedy}") from None


def save_onnx(graph: Any, path: str | Path, *, properties: Mapping[str, str]) -> None:
    """Check a graph and write it, whole or not at all.

    Args:
        graph: An `onnx.ModelProto`.
        path: The file.
        properties: Texts that go into the file.

    Raises:
        ConfigError: The folder cannot be written to.
    """
    onnx = onnx_package()
    onnx.helper.set_model_props(graph, dict(properties))
    onnx.checker.check_model(graph)
    with atomic_write(path) as temporary:
        temporary.write_bytes(graph.SerializeToString())


def open_session(path: Path, *, device: torch.device, threads: int) -> Any:
    """A file as a session of onnxruntime.

    Args:
        path: The file.
        device: A GPU is used where this onnxruntime can.
        threads: Of the processor.

    Raises:
        CheckpointError: The file is damaged.
        ConfigError: onnxruntime is not installed.
    """
    onnxruntime = optional_package("onnxruntime", purpose=str(path))
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = threads
    settings.log_severity_level = 3  # errors; they come back as exceptions
    providers = ["CPUExecutionProvider"]
    if device.type == "cuda":
        if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
            providers.insert(0, "CUDAExecutionProvider")
        else:
            logger.warning("%s: this onnxruntime has no CUDA; computing on the CPU", path)
    failures = onnxruntime.capi.onnxruntime_pybind11_state
    try:
        return onnxruntime.InferenceSession(str(path), settings, providers=providers)
    except (failures.Fail, failures.InvalidProtobuf, failures.InvalidGraph, failures.InvalidArgument) as error:
        raise CheckpointError(f"{path} is no ONNX file, or cut off; export it again") from error


def run_session(session: Any, images: Tensor) -> list[Tensor]:
    """All outputs for images (B, C, H, W), from tensors to tensors by way of numpy."""
    name = session.get_inputs()[0].name
    return [torch.from_numpy(array) for array in session.run(None, {name: images.float().cpu().contiguous().numpy()})]
