"""CPU seconds of ground truth plus scoring, of this checkout and of another one in turns.

    python -m benchmarks.scoring_speed --other ../before

A COCO JSON of 5,000 images and 36,000 boxes, crowds among them, and 490,000 stored detections are scored as val.py
scores what it found. The images are links to one file, since only their names and sizes count here.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
from PIL import Image

from benchmarks.report import table, write_report
from utils.config.cli import run_script

_IMAGES, _CLASSES, _HW = 5000, 80, (48, 64)
_TRUE, _FOUND = 36_000, 490_000

# Runs in either checkout, from its root; the second names are those of checkouts before folders by idea.
_CHILD = """
import json, sys, time
import numpy as np
from pathlib import Path
try:
    from utils.datasets.indexing.config import load_data_config
    from utils.datasets.indexing.index import build_label_index
except ModuleNotFoundError:
    from utils.datasets.config import load_data_config
    from utils.datasets.index import build_label_index
try:
    import torch
    from engine.evaluation.detection_scores import DetectionScorer, EvalSettings
    from engine.evaluation.evaluator import StageClock
    def _score(found, index, settings, seconds):
        scorer = DetectionScorer(index, settings, StageClock(device=torch.device("cpu"), seconds=seconds))
        scorer._found = found
        return scorer.scores()
except ModuleNotFoundError:
    try:
        from engine.evaluation.evaluate import EvalSettings, _score
    except ModuleNotFoundError:
        from engine.evaluate import EvalSettings, _score
folder = Path(sys.argv[1])
index = build_label_index(load_data_config(folder / "data.yaml"), "val", cache_dir=sys.argv[2])
stored = np.load(folder / "found.npz")
found = dict(enumerate(np.split(stored["boxes"], np.cumsum(stored["counts"])[:-1])))
start = time.process_time()
evaluation = _score(found, index, settings=EvalSettings(), seconds={})
spent = time.process_time() - start
print(json.dumps({"seconds": spent, "AP": evaluation.metrics.AP, "AP50": evaluation.metrics.AP50}))
"""


@dataclass(frozen=True, kw_only=True)
class ScoringConfig:
    """Compare the cost of scoring with that of another checkout."""

    other: Path  # root of the other checkout
    rounds: int = 5  # runs of each, in turns


def measure(config: ScoringConfig) -> None:
    """Time both in turns and write the report."""
    here = Path(__file__).parents[1]
    checkouts = {"other": config.other.absolute(), "this": here}
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in checkouts}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        _write_set(folder)
        for _ in range(config.rounds):
            for name, root in checkouts.items():
                runs[name].append(_run(root, folder, cache=folder / f"cache-{name}"))
    seconds = {name: median(run["seconds"] for run in found) for name, found in runs.items()}
    rows = [
        [name, f"{seconds[name]:.2f}", f"{found[0]['AP']:.6f}", f"{found[0]['AP50']:.6f}"]
        for name, found in runs.items()
    ]
    rows.append(["this over other", f"{seconds['this'] / seconds['other']:.3f}", "", ""])
    path = write_report(
        "scoring_speed",
        title="Ground truth and scoring, before and after",
        body=table(["checkout", "CPU seconds, median", "AP", "AP50"], rows),
        facts={"data": f"{_IMAGES} images, {_TRUE} boxes, {_FOUND} detections", "rounds": str(config.rounds)},
    )
    sys.stdout.write(f"{path.read_text()}\n{path}\n")


def _run(root: Path, folder: Path, *, cache: Path) -> dict[str, float]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)}
    done = subprocess.run(
        [sys.executable, "-c", _CHILD, str(folder), str(cache)],
        cwd=root,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def _write_set(folder: Path) -> None:
    """Write images, val.json, data.yaml and found.npz."""
    rng = np.random.default_rng(0)
    height, width = _HW
    images = folder / "images"
    images.mkdir()
    first = images / "0.jpg"
    Image.fromarray(rng.integers(0, 256, (*_HW, 3), np.uint8)).save(first)
    for number in range(1, _IMAGES):
        os.link(first, images / f"{number}.jpg")
    place = rng.integers(0, _IMAGES, _TRUE)
    classes = rng.integers(0, _CLASSES, _TRUE)
    boxes = _boxes(rng, _TRUE)
    content = {
        "images": [{"id": n, "file_name": f"{n}.jpg", "width": width, "height": height} for n in range(_IMAGES)],
        "categories": [{"id": n + 1, "name": f"class {n}"} for n in range(_CLASSES)],
        "annotations": [
            {
                "id": n + 1,
                "image_id": int(place[n]),
                "category_id": int(classes[n]) + 1,
                "bbox": [*boxes[n, :2].tolist(), *(boxes[n, 2:] - boxes[n, :2]).tolist()],
                "area": float(np.prod(boxes[n, 2:] - boxes[n, :2])),
                "iscrowd": int(n % 100 == 0),
            }
            for n in range(_TRUE)
        ],
    }
    (folder / "val.json").write_text(json.dumps(content))
    (folder / "data.yaml").write_text("val: val.json\nimage_root: images\n")
    chosen = rng.integers(0, _TRUE, _FOUND)
    near = (boxes[chosen] + rng.normal(0, 2, (_FOUND, 4))).clip(0, [width, height, width, height])
    near[:, 2:] = np.maximum(near[:, 2:], near[:, :2] + 1)
    rows = np.column_stack([near, rng.random(_FOUND), classes[chosen]]).astype(np.float32)
    order = np.argsort(place[chosen], kind="stable")
    counts = np.bincount(place[chosen], minlength=_IMAGES)
    np.savez(folder / "found.npz", boxes=rows[order], counts=counts)


def _boxes(rng: np.random.Generator, count: int) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    """Return (count, 4) xyxy inside the image."""
    height, width = _HW
    low = rng.uniform(0, [width - 12, height - 12], (count, 2))
    return np.concatenate([low, low + rng.uniform(6, 12, (count, 2))], 1)


if __name__ == "__main__":
    run_script(measure, ScoringConfig)
