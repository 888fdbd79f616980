"""Trained networks on every runtime and precision: errors, boxes, mAP, size, and times side by side.

python -m benchmarks.runtimes_bccd --weights dense.pt pruned.pt
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.report import table, write_report
from commands.export import run_export
from commands.export_config import ExportConfig
from deploy.choices import Precision
from deploy.formats import FORMATS, load_detector
from deploy.settings import RuntimeOptions
from deploy.verification.latency import Latency, measure_latencies
from utils.config.cli import run_script


@dataclass(frozen=True, kw_only=True)
class RuntimesConfig:
    """Export, verify and time."""

    weights: tuple[str, ...]  # the first is what the others are compared with
    data: str = "data/bccd.yaml"
    img_size: int = 320
    formats: tuple[str, ...] = ("ncnn", "onnx", "openvino", "torchscript")
    precisions: tuple[Precision, ...] = ("fp32", "fp16", "int8")
    int8_search: bool = False  # find layers that int8 leaves out
    int8_skip: tuple[str, ...] = ()  # patterns of layers that int8 leaves out
    rounds: int = 30
    project: str = "runs/benchmark/runtimes"
    label: str = ""  # of the report's file name


def measure(config: RuntimesConfig) -> None:
    """Write each artefact, read its verification, time all of them in turns, write the report."""
    torch.set_num_threads(1)
    reports = {
        (weights, report["path"]): report
        for weights in config.weights
        for precision in config.precisions
        for report in _exported(weights, precision, config)
    }
    times = _times([path for _, path in reports], config)
    dense_ncnn = next(iter(times.values())).fastest
    rows = [
        _row(weights, path, report, times=times[path], dense_ncnn=dense_ncnn)
        for (weights, path), report in reports.items()
    ]
    header = ["network", "artefact", "precision", "head error", "same boxes", "mAP in PyTorch", "mAP", "MB"]
    header += ["fastest, ms", "times the first", "verification"]
    path = write_report(
        f"runtimes{'_' if config.label else ''}{config.label}",
        title=f"Exported networks on their runtimes, {Path(config.data).stem}, {config.img_size} px",
        body=table(header, rows),
        facts={"how": f"one thread, {config.rounds} calls of each in turns, fastest; mAP50-95 on val"},
    )
    sys.stdout.write(f"{path.read_text()}written to {path}\n")


def _exported(weights: str, precision: Precision, config: RuntimesConfig) -> list[dict[str, Any]]:
    """Return the verification reports of one network in one precision."""
    formats = tuple(name for name in config.formats if precision in FORMATS[name].precisions)
    is_int8 = precision == "int8"
    name = f"{Path(weights).stem}_{precision}"
    run_export(
        ExportConfig(
            weights=weights,
            include=formats,
            img_size=(config.img_size,),
            data=config.data,
            half=precision == "fp16",
            int8=is_int8,
            int8_skip=config.int8_skip if is_int8 else (),
            int8_search=is_int8 and config.int8_search,
            threads=1,
            project=config.project,
            name=name,
            output=f"{config.project}/{name}",
            exist_ok=True,
        )
    )
    reports: list[dict[str, Any]] = json.loads(Path(config.project, name, "result.json").read_text())["reports"]
    return reports


def _times(paths: list[str], config: RuntimesConfig) -> dict[str, Latency]:
    options = RuntimeOptions(threads=1)
    image = torch.rand(1, 3, config.img_size, config.img_size, generator=torch.Generator().manual_seed(0))
    runtimes = [load_detector(path, device=torch.device("cpu"), options=options) for path in paths]
    latencies = measure_latencies(runtimes, image, threads=1, runs=config.rounds)
    return dict(zip(paths, latencies, strict=True))


def _row(weights: str, path: str, report: dict[str, Any], *, times: Latency, dense_ncnn: float) -> list[object]:
    was, now = report["ap"]
    return [
        Path(weights).stem,
        Path(path).name,
        report["precision"],
        f"{max(head['largest'] for head in report['heads']):.1e}",
        f"{report['same_boxes']:.1%} of {report['boxes']['expected']}",
        f"{was:.4f}",
        f"{now:.4f}",
        f"{report['megabytes'][1]:.2f}",
        f"{times.fastest:.1f}",
        f"{dense_ncnn / times.fastest:.2f}",
        "passed" if report["passed"] else "; ".join(report["failures"]),
    ]


if __name__ == "__main__":
    run_script(measure, RuntimesConfig)
