"""mAP of yolov5s on the bundled blood cells at 320 px, from COCO weights, on both held-out splits.

python -m benchmarks.bccd --weights yolov5s_coco.pt
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from benchmarks.report import table, write_report
from benchmarks.scores import load, scores_on
from commands.train import run_training
from commands.train_config import TrainConfig
from engine.evaluation.detection_scores import DetectionScores
from utils.config.cli import run_script

DATA = "data/bccd.yaml"


@dataclass(frozen=True, kw_only=True)
class BccdConfig:
    """Train yolov5s on BCCD and measure it."""

    weights: str  # COCO weights to start from
    epochs: int = 70
    img_size: int = 320
    batch_size: int = 16
    hyp: str = "data/hyp/cells.yaml"
    close_mosaic: int = 20
    seed: int = 0
    project: str = "runs/benchmark"


def measure(config: BccdConfig) -> None:
    """Train, evaluate the best checkpoint on val and test, write the report."""
    settings = TrainConfig(
        weights=config.weights,
        data=DATA,
        hyp=config.hyp,
        img_size=(config.img_size,),
        batch_size=config.batch_size,
        nominal_batch=config.batch_size,
        epochs=config.epochs,
        close_mosaic=config.close_mosaic,
        cache_images=True,
        seed=config.seed,
        project=config.project,
    )
    result = run_training(settings)
    assert result is not None
    network = load(result.best)
    splits = {
        split: scores_on(split, network=network, data=DATA, img_size=config.img_size) for split in ("val", "test")
    }
    rows = [_row(split, name, found) for split, found in splits.items() for name in ("all", *found.metrics.per_class)]
    path = write_report(
        f"bccd_yolov5s_{config.img_size}_seed{config.seed}",
        title=f"yolov5s on BCCD, {config.img_size} px",
        body=table(["split", "class", "mAP50", "mAP50-95"], rows),
        facts={
            "start": Path(config.weights).name,
            "training": f"{config.epochs} epochs, batch {config.batch_size}, {config.hyp}, seed {config.seed}",
            "time": f"{result.seconds / 60:.1f} minutes with validation after every epoch, "
            f"{result.images_per_second:.1f} images/s while training",
            "best epoch by .1 mAP50 + .9 mAP on val": result.best_epoch + 1,
        },
    )
    sys.stdout.write(f"{path.read_text()}written to {path}\n")


def _row(split: str, name: str, evaluation: DetectionScores) -> list[str]:
    metrics = evaluation.metrics
    numbers = {"AP50": metrics.AP50, "AP": metrics.AP} if name == "all" else metrics.per_class[name]
    return [split, name, f"{numbers['AP50']:.3f}", f"{numbers['AP']:.3f}"]


if __name__ == "__main__":
    run_script(measure, BccdConfig)
