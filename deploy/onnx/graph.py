"""ONNX files of any network, written by torch's TorchScript-based exporter and opened by onnxruntime."""

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

from deploy.artefact.packages import optional_package
from deploy.native_messages import native_messages
from utils.errors import CheckpointError, ConfigError
from utils.storage.files import atomic_write

logger = logging.getLogger(__name__)

# Detectors need opset 11, attention needs 14; 20 is the last that this exporter supports.
OPSETS = range(11, 21)
# The opset that introduced per-channel scales in DequantizeLinear.
_INT8_OPSET = 13
# Torch's message about an operator that the opset lacks, and the opset that introduced it.
_LACKING = re.compile(r"operator '(?:\w+::)?(\w+)'(?:.*added in version (\d+))?", re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class GraphSettings:
    """Settings for tracing a network.

    Attributes:
        inputs: Names of the inputs.
        outputs: Names of the outputs.
        opset: Version of the operators.
        dynamic: Names for the axes of free size, by the name of the input or output.
    """

    inputs: Sequence[str]
    outputs: Sequence[str]
    opset: int = 17
    dynamic: Mapping[str, Mapping[int, str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_opset(self.opset)


def check_opset(opset: int, *, is_int8: bool = False) -> None:
    """Refuse an opset in which graphs cannot be exported.

    Raises:
        ConfigError: The exporter does not support it, or its DequantizeLinear has one scale for all channels.
    """
    if opset not in OPSETS:
        raise ConfigError(f"--opset {opset}: expected {OPSETS[0]} to {OPSETS[-1]}")
    if is_int8 and opset < _INT8_OPSET:
        raise ConfigError(
            f"--opset {opset}: its DequantizeLinear lacks the per-channel scales of int8; give --opset {_INT8_OPSET}"
        )


def onnx_package() -> Any:
    """Import the onnx package, which reads and writes graphs.

    Raises:
        ConfigError: It is not installed.
    """
    return optional_package("onnx", purpose="export to ONNX")


def trace_onnx(network: nn.Module, examples: Sequence[Tensor], settings: GraphSettings) -> Any:
    """Trace a network as an ONNX graph.

    Args:
        network: Network in evaluation mode, on the CPU.
        examples: Example tensor for each input.
        settings: Names, opset and free sizes.

    Returns:
        Graph, an `onnx.ModelProto`.

    Raises:
        ConfigError: The network needs an operator that the opset lacks.
    """
    buffer = io.BytesIO()
    # For an unsupported operator torch prints the whole graph, thousands of lines.
    torch._C._jit_set_onnx_log_output_stream("stderr")
    with warnings.catch_warnings(), native_messages(), _told_in_one_line(settings.opset):
        # Torch warns that this exporter is deprecated; its successor needs another package, and opset 18 or higher.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network,
            tuple(examples),
            buffer,  # type: ignore[arg-type]  # files in memory are accepted
            dynamo=False,
            opset_version=settings.opset,
            input_names=list(settings.inputs),
            output_names=list(settings.outputs),
            dynamic_axes=settings.dynamic,
        )
    return onnx_package().load_from_string(buffer.getvalue())


@contextmanager
def _told_in_one_line(opset: int) -> Iterator[None]:
    """Convert torch's error about a missing operator to a ConfigError that names the opset that has it."""
    try:
        yield
    except torch.onnx.errors.UnsupportedOperatorError as error:
        found = _LACKING.search(str(error))
        name, needed = found.groups() if found else (str(error), None)
        remedy = f"give --opset {needed}" if needed else "export to another format"
        raise ConfigError(f"--opset {opset} lacks the operator {name}, which this network uses; {remedy}") from None


def save_onnx(graph: Any, path: str | Path, *, properties: Mapping[str, str]) -> None:
    """Check a graph and write it atomically.

    Args:
        graph: Graph, an `onnx.ModelProto`.
        path: Path of the file.
        properties: Texts to store in the file, by key.

    Raises:
        ConfigError: The folder is not writable.
    """
    onnx = onnx_package()
    onnx.helper.set_model_props(graph, dict(properties))
    onnx.checker.check_model(graph)
    with atomic_write(path) as temporary:
        temporary.write_bytes(graph.SerializeToString())


def open_session(path: Path, *, device: torch.device, threads: int) -> Any:
    """Open a file as a session of onnxruntime.

    Args:
        path: Path of the file.
        device: Requested device; a GPU is used if the installed onnxruntime supports it.
        threads: Number of CPU threads.

    Raises:
        CheckpointError: The file is damaged.
        ConfigError: onnxruntime is not installed.
    """
    onnxruntime = optional_package("onnxruntime", purpose=str(path))
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = threads
    settings.log_severity_level = 3  # errors only, which are also raised as exceptions
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
        raise CheckpointError(f"{path} is not an ONNX file, or is truncated; export it again") from error


def run_session(session: Any, images: Tensor) -> list[Tensor]:
    """Run a session on images (B, C, H, W) and return all outputs as tensors."""
    name = session.get_inputs()[0].name
    return [torch.from_numpy(array) for array in session.run(None, {name: images.float().cpu().contiguous().numpy()})]


class JoinedZeros(nn.Module):
    """Zero padding, like `nn.ZeroPad2d`, by concatenating zeros to the map.

    onnxruntime (1.31, optimizer Pad_Fusion) merges a Pad of zeros into the max pool after it, whose own padding is
    minus infinity. Where all values at the border are negative, as they may be after SiLU, the maximum then differs,
    in yolov3-tiny by 4 % of the largest output. A Concat is not merged.

    Args:
        padding: Numbers of columns on the left and right, and of rows at the top and bottom.
    """

    def __init__(self, padding: tuple[int, int, int, int]) -> None:
        super().__init__()
        self.padding = padding

    def forward(self, x: Tensor) -> Tensor:
        """Pad maps (B, C, H, W) to (B, C, top + H + bottom, left + W + right)."""
        left, right, top, bottom = self.padding
        for axis, before, after in ((3, left, right), (2, top, bottom)):
            zeros = torch.zeros_like(x.narrow(axis, 0, 1))
            x = torch.cat([*[zeros] * before, x, *[zeros] * after], axis)
        return x


def join_zeros_(network: nn.Module) -> None:
    """Replace every `nn.ZeroPad2d` of a network with `JoinedZeros`, in place."""
    for parent in list(network.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.ZeroPad2d):
                left, right, top, bottom = child.padding
                setattr(parent, name, JoinedZeros((left, right, top, bottom)))
