"""Study of accuracy and speed over image sizes."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from engine.evaluation.detection import DetectionSet
from engine.evaluation.detection_scores import DetectionScores
from engine.evaluation.evaluator import Evaluator
from utils.plots.colors import line_color
from utils.plots.save import save_figure
from utils.storage.files import atomic_write


@dataclass(frozen=True, kw_only=True)
class StudyPoint:
    """Results at one image size: COCO metrics, and milliseconds per image of each stage."""

    img_size: int
    AP: float
    AP50: float
    precision: float
    recall: float
    ms_preprocess: float
    ms_inference: float
    ms_nms: float


def run_study(evaluator: Evaluator, detectors: Any, *, sizes: Sequence[int], folder: Path) -> list[StudyPoint]:
    """Evaluate at each size, and rewrite study.csv and study.png after each, so that a stopped study keeps them.

    Args:
        evaluator: Evaluator of detectors.
        detectors: One or more detectors, as `Evaluator.evaluate` takes them.
        sizes: Image sizes in pixels.
        folder: Folder of study.csv and study.png.
    """
    points: list[StudyPoint] = []
    for size in sizes:
        assert isinstance(evaluator.data, DetectionSet)
        scores = replace(evaluator, data=evaluator.data.at(size)).evaluate(detectors)
        assert isinstance(scores, DetectionScores)
        points.append(_point(size, scores))
        _write_csv(points, folder / "study.csv")
        _plot(points, folder / "study.png")
    return points


def _point(size: int, evaluation: DetectionScores) -> StudyPoint:
    metrics = evaluation.metrics
    per_image = {
        f"ms_{name}": 1000 * evaluation.seconds[name] / evaluation.images
        for name in ("preprocess", "inference", "nms")
    }
    return StudyPoint(
        img_size=size,
        AP=metrics.AP,
        AP50=metrics.AP50,
        precision=metrics.precision,
        recall=metrics.recall,
        **per_image,
    )


def _write_csv(points: Sequence[StudyPoint], path: Path) -> None:
    with atomic_write(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [item.name for item in fields(StudyPoint)])
        writer.writeheader()
        # A value that cannot be measured leaves its cell empty.
        writer.writerows(
            {name: "" if math.isnan(value) else round(value, 5) for name, value in asdict(point).items()}
            for point in points
        )


def _plot(points: Sequence[StudyPoint], path: Path) -> None:
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    by_size, by_time = figure.subplots(1, 2)
    sizes = [point.img_size for point in points]
    times = [point.ms_preprocess + point.ms_inference + point.ms_nms for point in points]
    for axes, x, label in ((by_size, sizes, "image size, px"), (by_time, times, "ms per image, with NMS")):
        axes.plot(x, [point.AP for point in points], marker="o", color=line_color(0), label="AP")
        axes.plot(x, [point.AP50 for point in points], marker="o", color=line_color(1), label="AP50")
        axes.set(xlabel=label, ylim=(0, None))
        axes.grid(alpha=0.3)
        axes.legend()
    for size, time, point in zip(sizes, times, points, strict=True):
        by_time.annotate(str(size), (time, point.AP), textcoords="offset points", xytext=(4, 4), fontsize=8)
    save_figure(figure, path)
