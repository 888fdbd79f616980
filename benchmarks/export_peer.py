"""Our exported yolov5s beside the YOLOv5u that the PyPI package ultralytics builds and exports, on the same runtimes.

Neither is trained: times, sizes and multiply-adds do not depend on the numbers. YOLOv5u has the layers of yolov5s and
another, larger head without anchors; its graph decodes boxes, ours gives raw heads, so our times include decoding.

    python -m benchmarks.export_peer --peer-python /path/to/venv/with/ultralytics/bin/python
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.report import table, write_report
from commands.export import artefact_path
from commands.export_config import ExportConfig
from deploy.artefact.packages import optional_package
from deploy.artefact.runtime import DetectorRuntime
from deploy.formats import FORMATS, load_detector, resolve
from deploy.job import ExportJob
from deploy.ncnn.runtime import open_network
from deploy.outputs.detector import DetectorSource
from deploy.settings import RuntimeOptions
from deploy.verification.latency import time_in_turns
from models.detector import build_model
from models.spec import ModelSpec
from utils.boxes.decode import decode_heads
from utils.config.cli import run_script
from utils.errors import ConfigError

COMPARED: tuple[str, ...] = ("ncnn", "onnx")
# A class list as long as that of COCO, which the peer's architecture has too.
_NUM_CLASSES = 80
# Prints the peer's version and the seconds of each export; files appear in the folder it runs in.
PEER = """
import sys, time, ultralytics
model = ultralytics.YOLO("yolov5s.yaml")
print("version", ultralytics.__version__, file=sys.stderr)
for name in ("ncnn", "onnx"):
    start = time.perf_counter()
    model.export(format=name, imgsz=int(sys.argv[1]))
    print("seconds", name, time.perf_counter() - start, file=sys.stderr)
"""

Run = Callable[[Tensor], object]


@dataclass(frozen=True, kw_only=True)
class PeerConfig:
    """Export with both, run both in turns."""

    peer_python: str  # Python of an environment that has ultralytics 8.x
    img_size: int = 640
    runs: int = 20  # timed calls of each


@dataclass(frozen=True, kw_only=True)
class Exported:
    """An artefact that can run.

    Attributes:
        run: From images (1, 3, H, W) to boxes before suppression.
        megabytes: On disk.
        seconds: To write it, without verification.
    """

    run: Run
    megabytes: float
    seconds: float


def measure(config: PeerConfig) -> None:
    """Write the report."""
    torch.set_num_threads(1)
    image = torch.rand(1, 3, config.img_size, config.img_size, generator=torch.Generator().manual_seed(0))
    with tempfile.TemporaryDirectory() as scratch:
        version, theirs = _peer(config, Path(scratch))
        rows = []
        for name in COMPARED:
            ours = _ours(name, config, Path(scratch))
            calls = [partial(exported.run, image) for exported in (ours, theirs[name])]
            times = time_in_turns(calls, threads=1, runs=config.runs)
            both = [
                (latency.fastest, latency.median, exported.megabytes, exported.seconds)
                for latency, exported in zip(times, (ours, theirs[name]), strict=True)
            ]
            for who, own in zip(("ours", version), both, strict=True):
                rows.append([name, who, *(f"{number:.1f}" for number in own)])
            rows.append([name, "theirs / ours", *(f"{their / our:.2f}" for our, their in zip(*both, strict=True))])
    path = write_report(
        "export_peer",
        title=f"yolov5s exported by us, and YOLOv5u by ultralytics, {config.img_size} px, float32",
        body=table(["format", "who", "fastest, ms", "median, ms", "MB", "export, s"], rows),
        facts={"how": f"one thread, {config.runs} calls of each in turns; untrained, {_NUM_CLASSES} classes"},
    )
    sys.stdout.write(f"{path.read_text()}written to {path}\n")


def _ours(name: str, config: PeerConfig, scratch: Path) -> Exported:
    spec = ModelSpec.from_yaml("yolov5s.yaml", num_classes=_NUM_CLASSES)
    settings = ExportConfig(weights=str(scratch / "ours.pt"), include=(name,), img_size=(config.img_size,))
    names = tuple(str(number) for number in range(_NUM_CLASSES))
    job = ExportJob(
        source=DetectorSource(model=build_model(spec).eval(), names=names),
        settings=settings.settings,
        special=settings.special,
    )
    path = artefact_path(settings, name)
    start = time.perf_counter()
    resolve(FORMATS[name].write)(job, path)
    seconds = time.perf_counter() - start
    runtime = load_detector(path, device=torch.device("cpu"), options=RuntimeOptions(threads=1))
    return Exported(run=_decoded(runtime), megabytes=_megabytes(path), seconds=seconds)


def _decoded(runtime: DetectorRuntime) -> Run:
    return lambda images: decode_heads(runtime(images), runtime.anchors, runtime.strides)


def _peer(config: PeerConfig, scratch: Path) -> tuple[str, dict[str, Exported]]:
    """Its version, and what it exported."""
    result = subprocess.run(
        [config.peer_python, "-c", PEER, str(config.img_size)],
        cwd=scratch,
        env={**os.environ, "YOLO_OFFLINE": "true"},
        capture_output=True,
        text=True,
        check=False,
    )
    if result.returncode:
        raise ConfigError(f"--peer-python {config.peer_python} cannot export: {result.stderr.strip()[-300:]}")
    told = dict(line.rsplit(" ", 1) for line in result.stderr.splitlines() if line.startswith(("version", "seconds")))
    runs: dict[str, tuple[Path, Callable[[Path], Run]]] = {
        "ncnn": (scratch / "yolov5s_ncnn_model", _ncnn_run),
        "onnx": (scratch / "yolov5s.onnx", _onnx_run),
    }
    exported = {
        name: Exported(run=load(path), megabytes=_megabytes(path), seconds=float(told[f"seconds {name}"]))
        for name, (path, load) in runs.items()
    }
    return f"ultralytics {told['version']}", exported


def _ncnn_run(path: Path) -> Run:
    ncnn = optional_package("ncnn", purpose=str(path))
    net: Any = open_network(ncnn, path, options=RuntimeOptions(threads=1))

    def run(images: Tensor) -> object:
        with net.create_extractor() as extractor:
            extractor.input("in0", ncnn.Mat(images[0].numpy()))
            return np.array(extractor.extract("out0")[1])

    return run


def _onnx_run(path: Path) -> Run:
    onnxruntime = optional_package("onnxruntime", purpose=str(path))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda images: session.run(None, {"images": images.numpy()})


def _megabytes(path: Path) -> float:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file()) / 1e6


if __name__ == "__main__":
    run_script(measure, PeerConfig)
