"""Run folders of slim.py written by hand, so that every number of a report is known."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from reports.content import report_content
from reports.reading import SlimRun

BEST = "round1/finetune/weights/best.pt"
CLASSES = ("cat", "dog")
# xyxy in images of 100 x 80 pixels, score, class.
CAT, DOG = [10.0, 10.0, 30.0, 40.0], [50.0, 20.0, 90.0, 70.0]


def metrics(ap: float, *, images: int = 3) -> dict[str, Any]:
    """Numbers of a detector: AP50 is AP + .2, cats are .1 better than dogs."""
    per_class = {"cat": {"AP": ap + 0.05, "AP50": ap + 0.25}, "dog": {"AP": ap - 0.05, "AP50": ap + 0.15}}
    return {"AP": ap, "AP50": ap + 0.2, "per_class": per_class, "images": images}


def size(parameters: int, ms: float | None = None) -> dict[str, Any]:
    """A network whose other sizes follow from its parameters."""
    widths = {"model.0.conv": parameters // 100, "model.1.conv": parameters // 50, "model.2": 6}
    found = {"parameters": parameters, "macs": 1000 * parameters, "megabytes": parameters / 1e6, "widths": widths}
    return {**found, **({} if ms is None else {"milliseconds": ms})}


def report(path: str, *, ms: float, ap: tuple[float, float], passed: bool = True, **more: Any) -> dict[str, Any]:
    """A comparison as export.py writes it."""
    latency = [{"fastest": own, "median": own + 1, "runs": 10, "threads": 1} for own in (4 * ms, ms)]
    own = {"path": path, "format": "_ncnn_model", "precision": "fp32", "megabytes": [0.9, 0.4], "latency": latency}
    own |= {"failures": [] if passed else ["mAP lost: 0.2, at most 0.01 allowed"], "passed": passed}
    heads = [{"largest": 1e-6, "mean": 1e-7}, {"largest": 3e-6, "mean": 1e-7}]
    return {**own, "heads": heads, "same_boxes": 1.0, "boxes": {"expected": 40}, "ap": list(ap), **more}


def beside(path: str, ms: float, *others: tuple[str, float], precision: str = "fp32") -> dict[str, Any]:
    """An entry of export.py's `beside`: times of an artefact, and of the dense network by precision."""
    rows = [{"precision": name, "milliseconds": own, "speedup": own / ms} for name, own in others]
    own = {"path": path, "precision": precision, "milliseconds": ms, "others": rows}
    return {**own, "weights": "x/dense/weights/best.pt", "threads": 1, "batch_size": 1}


@dataclass(frozen=True, kw_only=True)
class HandRun:
    """A run folder to which stages are added."""

    path: Path

    @classmethod
    def create(cls, path: Path, **settings: Any) -> HandRun:
        """Make the folder with its settings."""
        path.mkdir(parents=True)
        (path / "opt.yaml").write_text(json.dumps({"data": "none.yaml", **settings}))
        return cls(path=path)

    def write(self, stage: str, result: Mapping[str, Any], *, settings: Mapping[str, Any] | None = None) -> Path:
        """Write the result of a stage, and its settings."""
        folder = self.path / stage
        folder.mkdir(parents=True, exist_ok=True)
        environment = {"command": "/clone/slim.py --rounds 1", "python": "3.11", "packages": {"ncnn": "1.0"}}
        (folder / "result.json").write_text(json.dumps({"environment": environment, **result}))
        (folder / "opt.yaml").write_text(json.dumps(dict(settings or {})))
        return folder

    def training(self, stage: str, ap: float, **more: Any) -> Path:
        """Write a training of ten epochs, with an empty file for its best checkpoint."""
        folder = self.write(stage, {"metrics": metrics(ap), "epochs": 10, "seconds": 60.0, **more})
        (folder / "weights").mkdir(exist_ok=True)
        (folder / "weights/best.pt").touch()
        return folder

    def cut(
        self, stage: str, sizes: Sequence[dict[str, Any]], scores: tuple[float, float] = (0.5, 0.1), **more: Any
    ) -> Path:
        """Write a cut: sizes and mAP before and after."""
        result: dict[str, Any] = {"report": {"before": sizes[0], "after": sizes[1]}, "scan": None}
        result |= {"before": metrics(scores[0]), "after": metrics(scores[1]), "checkpoint": "x/pruned_model.pt"}
        result["config"] = {"runtime": "ncnn", "precision": "fp32", "threads": 1}
        return self.write(stage, {**result, **more})

    def round(self, number: int = 1, *, sparse: float = 0.5, tuned: float = 0.45, **sizes: Any) -> None:
        """Write the three stages of a round: 10000 parameters to 4000, unless sizes are given."""
        place = f"round{number}"
        self.training(f"{place}/sparse", sparse + 0.01)  # its best epoch, which is not the network that is cut
        pair = (sizes.get("before", size(10_000)), sizes.get("after", size(4_000)))
        self.cut(f"{place}/prune", pair, (sparse, 0.1))
        self.training(f"{place}/finetune", tuned)

    def export(self, *reports: dict[str, Any], weights: str, name: str = "export", **more: Any) -> None:
        """Write a run of export.py."""
        config = {"weights": weights, "img_size": [64], "batch_size": 1}
        self.write(name, {"passed": True, "reports": list(reports), "not_run": [], "config": config, **more})


def content_of(run: HandRun) -> dict[str, Any]:
    """Content of the report of a run."""
    return report_content(SlimRun.read(run.path))


def write_data(folder: Path) -> Path:
    """Write three grey images of 100 x 80 pixels, with a cat and a dog each; returns the data set's YAML."""
    for split in ("train", "val"):
        for number in range(3):
            image = folder / f"images/{split}/{split}{number}.png"
            image.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((80, 100, 3), 40 * number + 60, np.uint8)).save(image)
            label = folder / f"labels/{split}/{split}{number}.txt"
            label.parent.mkdir(parents=True, exist_ok=True)
            rows = [f"{index} {line(box)}" for index, box in enumerate((CAT, DOG))]
            label.write_text("\n".join(rows) + "\n")
    yaml = folder / "data.yaml"
    yaml.write_text(f"train: images/train\nval: images/val\nnames: {list(CLASSES)}\n")
    return yaml


def line(box: Sequence[float]) -> str:
    """Centre and size of a box, normalised."""
    left, top, right, bottom = box
    return f"{(left + right) / 200} {(top + bottom) / 160} {(right - left) / 100} {(bottom - top) / 80}"


def predictions(*images: Sequence[tuple[Sequence[float], float, int]]) -> str:
    """Content of predictions.json: for each image boxes with a score and a class."""
    return json.dumps(
        [
            {
                "image_id": number,
                "file_name": f"val{number}.png",
                "category_id": class_id,
                "bbox": [box[0], box[1], box[2] - box[0], box[3] - box[1]],
                "score": score,
            }
            for number, boxes in enumerate(images)
            for box, score, class_id in boxes
        ]
    )
