r"""Predicted against measured milliseconds of random plans, side by side on one runtime.

python -m benchmarks.latency_prediction --runtime ncnn --plans 20
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

import numpy as np
import torch

from benchmarks.report import table, write_report
from deploy.choices import LatencyPrecision
from deploy.latency.measure import times_of
from deploy.latency.networks import Subject
from deploy.latency.tables import latency_table
from deploy.outputs.detector import DetectorSource
from models.detector import Detector, build_model
from models.load import load_model
from models.spec import ModelSpec
from pruning.channels.graph import ChannelGraph
from pruning.channels.ids import IntArray
from pruning.importance.criteria import num_ids
from pruning.selection.allocation import Allocator
from pruning.selection.candidates import free_ids
from pruning.selection.latency import Conditions
from pruning.selection.latency_cost import LatencyCost
from pruning.selection.rounding import Rounding
from pruning.surgery.cut import cut
from utils.config.cli import run_script


@dataclass(frozen=True, kw_only=True)
class PredictionConfig:
    """Cut networks at random, export and time them, and compare with what a latency table predicts."""

    networks: tuple[str, ...] = ("yolov5n", "yolov5s")  # architectures, or checkpoints
    runtime: str = "ncnn"
    precision: LatencyPrecision = "fp32"
    threads: int = 1
    img_size: int = 320
    plans: int = 20  # of each network
    fast_widths: bool = True  # take widths that the table found fast; otherwise multiples of 8
    seed: int = 0
    table: str = ""  # of the first network; by default the cached one, scaled to now, or measured


def measure(config: PredictionConfig) -> None:
    """Measure a table and the plans of each network, and write the report."""
    torch.set_num_threads(config.threads)
    rows, errors = [], []
    for name in config.networks:
        for predicted, measured in _of_network(name, config):
            errors.append(abs(predicted - measured) / measured)
            rows.append([name, f"{predicted:.2f}", f"{measured:.2f}", f"{100 * (predicted / measured - 1):+.1f} %"])
    rows.append(["mean error", "", "", f"{100 * float(np.mean(errors)):.1f} %"])
    rows.append(["largest error", "", "", f"{100 * float(np.max(errors)):.1f} %"])
    path = write_report(
        f"latency_prediction_{config.runtime}",
        title=f"Predicted and measured time on {config.runtime}, {config.img_size} px, {config.precision}",
        body=table(["network", "predicted, ms", "measured, ms", "error"], rows),
        facts={"how": f"{config.plans} random plans of each network; the first row of each is the dense one"},
    )
    sys.stdout.write(f"{path.read_text()}written to {path}\n")


def _of_network(name: str, config: PredictionConfig) -> list[tuple[float, float]]:
    """Return predicted and measured milliseconds of the dense network and of each plan."""
    torch.manual_seed(config.seed)
    is_file = name.endswith(".pt")
    model = load_model(name).model if is_file else build_model(ModelSpec.from_yaml(name, num_classes=3)).eval()
    names = [str(number) for number in range(model.spec.num_classes)]
    image_chw = (3, config.img_size, config.img_size)
    subject = Subject(
        model=model,
        image_chw=image_chw,
        trace_chw=None,
        source_of=lambda some: DetectorSource(model=_as_detector(some), names=names),
    )
    conditions = Conditions(
        runtime=config.runtime, precision=config.precision, threads=config.threads, image_chw=image_chw
    )
    times = latency_table(subject, conditions, path=config.table)
    graph = ChannelGraph.of(model)
    cost = LatencyCost.of(model, graph, image_chw, times)
    plans = [np.empty(0, dtype=np.int64), *_plans(model, graph, cost, config)]
    networks = [cut(model, graph, dropped, carry=False) if len(dropped) else model for dropped in plans]
    measured = times_of(networks, subject, conditions)
    return [(cost.milliseconds(dropped), ms) for dropped, ms in zip(plans, measured, strict=True)]


def _as_detector(model: torch.nn.Module) -> Detector:
    assert isinstance(model, Detector)
    return model


def _plans(model: Detector, graph: ChannelGraph, cost: LatencyCost, config: PredictionConfig) -> list[IntArray]:
    """Return the channels that each plan drops: a share of each channel group, drawn for each group."""
    generator = np.random.default_rng(config.seed)
    candidates = free_ids(model, graph, shortcuts="tied", protect=())
    widths = cost.fast_widths(graph.groups) if config.fast_widths else {}
    plans = []
    for _ in range(config.plans):
        importance = np.zeros(num_ids(graph))
        mean = generator.uniform(0.1, 0.8)
        for group in graph.groups:
            share = np.clip(generator.normal(mean, 0.2), 0, 0.95)
            # Positions from 0 to 1, shifted so that this share is negative.
            importance[group.ids] = (np.arange(len(group.ids)) + 0.5) / len(group.ids) - share
        allocator = Allocator(
            graph=graph, importance=importance, candidates=candidates, rounding=Rounding(unit=8), widths=widths
        )
        plans.append(allocator.at(0.0).dropped)
    return plans


if __name__ == "__main__":
    run_script(measure, PredictionConfig)
