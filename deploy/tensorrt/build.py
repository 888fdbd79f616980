"""Builds a TensorRT engine from ONNX, in a process of its own: TensorRT can crash on a graph it does not like.

`deploy.tensorrt.export` runs this file as a script with one argument, the fields of `BuildRequest` as JSON. It
imports nothing of this project, so that the process starts fast and has the memory for itself.
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
    """What to build.

    Attributes:
        package: `tensorrt`, or `tensorrt_rtx`.
        source: The ONNX file. Its types are those of the engine.
        plan: The file to write, TensorRT's serialised engine.
        workspace_bytes: Most scratch memory on the GPU that a layer may ask for.
        compute_capability: Of the GPU that will run the engine, such as "8.9"; "" for the one of this machine.
        image_shapes: Smallest, usual and largest (B, 3, H, W) of a dynamic network; empty where all are fixed.
    """

    package: str
    source: str
    plan: str
    workspace_bytes: int
    compute_capability: str = ""
    image_shapes: tuple[tuple[int, ...], ...] = ()


def build(request: BuildRequest) -> None:
    """Write the plan, or end the process with code 1 and the reason as the last line."""
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
    """TensorRT's own settings for a request."""
    settings = builder.create_builder_config()
    settings.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, request.workspace_bytes)
    # TF32 has the 10 bits of fp16: what is called fp32 here would not be.
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
    """What `tensorrt_rtx` builds for ahead of time: by "8.9", its own value SM89."""
    members = trt.ComputeCapability.__members__
    numbers = {name.removeprefix("SM"): member for name, member in members.items() if name.startswith("SM")}
    return {f"{digits[:-1]}.{digits[-1]}": member for digits, member in numbers.items()}


if __name__ == "__main__":
    build(BuildRequest(**loads(sys.argv[1])))
