"""Builds a TensorRT engine from ONNX, in a separate process, since TensorRT can crash on an unsupported graph.

`deploy.tensorrt.export` runs this file as a script with one argument, the fields of `BuildRequest` as JSON. It
imports nothing from this project, so that the process starts fast and leaves the memory to TensorRT.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from importlib import import_module
from json import loads
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True)
class BuildRequest:
    """An engine to build.

    Attributes:
        package: `tensorrt` or `tensorrt_rtx`.
        source: Path of the ONNX file, whose types become those of the engine.
        plan: Path of the file to write, TensorRT's serialised engine.
        workspace_bytes: Maximum scratch memory on the GPU that a layer may request.
        compute_capability: Compute capability of the GPU to build for, such as "8.9"; "" for this machine's.
        image_shapes: Smallest, usual and largest (B, C, H, W) of a dynamic network; empty for a fixed one.
    """

    package: str
    source: str
    plan: str
    workspace_bytes: int
    compute_capability: str = ""
    image_shapes: tuple[tuple[int, ...], ...] = ()


def build(request: BuildRequest) -> None:
    """Write the plan, or exit with code 1 and the reason as the last line of output."""
    trt = import_module(request.package)
    builder = trt.Builder(trt.Logger(trt.Logger.WARNING))
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, builder.logger)
    if not parser.parse_from_file(request.source):
        reasons = " ".join(parser.get_error(index).desc() for index in range(parser.num_errors))
        sys.exit(f"TensorRT cannot read the ONNX graph: {' '.join(reasons.split())}")
    plan = builder.build_serialized_network(network, _settings(trt, builder, network, request))
    if plan is None:
        sys.exit("TensorRT built no engine")
    Path(request.plan).write_bytes(plan)


def _settings(trt: Any, builder: Any, network: Any, request: BuildRequest) -> Any:
    """Build TensorRT's own settings for a request."""
    settings = builder.create_builder_config()
    settings.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, request.workspace_bytes)
    # TF32 has only the 10-bit mantissa of fp16, so results would not be fp32.
    settings.clear_flag(trt.BuilderFlag.TF32)
    if request.compute_capability:
        settings.num_compute_capabilities = 1
        settings.set_compute_capability(capabilities(trt)[request.compute_capability], 0)
    if request.image_shapes:
        profile = builder.create_optimization_profile()
        profile.set_shape(network.get_input(0).name, *request.image_shapes)
        settings.add_optimization_profile(profile)
    return settings


def capabilities(trt: Any) -> dict[str, Any]:
    """Return the compute capabilities that `tensorrt_rtx` can build for: from "8.9" to its own value SM89."""
    members = trt.ComputeCapability.__members__
    numbers = {name.removeprefix("SM"): member for name, member in members.items() if name.startswith("SM")}
    return {f"{digits[:-1]}.{digits[-1]}": member for digits, member in numbers.items()}


if __name__ == "__main__":
    build(BuildRequest(**loads(sys.argv[1])))
