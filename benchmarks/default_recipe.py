r"""What train.py chooses by itself, against v5.0's settings and against the small-data recipe given by hand.

The network is trained from COCO weights three times per data set and seed. Trainings that are complete in the
project folder are not run again, and one that was killed goes on.

python -m benchmarks.default_recipe --weights yolov5n_v6_coco.pt --data data/bccd.yaml aquarium/data.yaml
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks.report import table, write_report
from benchmarks.scores import data_name, load, scores_on
from benchmarks.training_settings import training_settings
from commands.train import run_training, train_stage
from commands.train_config import TrainConfig
from utils.config.cli import run_script

# By name, the settings with which a training differs from `train.py --weights --data --img-size --epochs`.
RECIPES: dict[str, dict[str, Any]] = {
    "v5.0": {"nominal_batch": 64, "close_mosaic": 0, "lrf": 0.2},
    "by hand": {"nominal_batch": 16, "close_mosaic": 20, "lrf": 0.05},
    "no flags": {},
}


@dataclass(frozen=True, kw_only=True)
class RecipeBenchmark:
    """Compare the defaults of train.py with settings that are given."""

    weights: str  # COCO weights to start from
    data: tuple[str, ...] = ("data/bccd.yaml",)  # data sets with the splits train, val and test
    recipes: tuple[str, ...] = tuple(RECIPES)
    seeds: tuple[int, ...] = (0,)
    img_size: int = 192
    epochs: int = 40
    workers: int = 8
    project: str = "runs/benchmark/default_recipe"


@dataclass(frozen=True, kw_only=True)
class Row:
    """A trained network, measured on both held-out splits."""

    data: str
    recipe: str
    seed: int
    val: tuple[float, float]
    test: tuple[float, float]

    @property
    def numbers(self) -> tuple[float, ...]:
        """Return mAP50 and mAP on val, mAP50 and mAP on test, mean mAP of both splits."""
        return *self.val, *self.test, (self.val[1] + self.test[1]) / 2


def measure(config: RecipeBenchmark) -> None:
    """Run what is missing, evaluate everything, write the report."""
    rows = [
        _row(config, data, recipe, seed) for data in config.data for seed in config.seeds for recipe in config.recipes
    ]
    header = ["data", "recipe", "seed", "val mAP50", "val mAP", "test mAP50", "test mAP", "mean mAP"]
    lines = [[row.data, row.recipe, row.seed, *map(_digits, row.numbers)] for row in rows]
    told = {f"recipe {name!r}": _told(RECIPES[name]) for name in config.recipes}
    path = write_report(
        "default_recipe",
        title=f"Defaults of train.py against given settings, {Path(config.weights).stem}, {config.img_size} px",
        body="\n\n".join([table(header, lines), "Means over the seeds:", _means(rows)]),
        facts={
            **told,
            "all trainings": f"{config.epochs} epochs, batch 16, SGD, data/hyp/scratch.yaml",
            "mAP": "of last.pt, in float32",
        },
    )
    sys.stdout.write(f"{path.read_text()}written to {path}\n")


def _row(config: RecipeBenchmark, data: str, recipe: str, seed: int) -> Row:
    """Train, unless that is done, and measure."""
    name = data_name(data)
    values = training_settings(
        Path(config.project) / f"{name}_{recipe.replace(' ', '_')}_seed{seed}",
        data=data,
        img_size=config.img_size,
        seed=seed,
        weights=config.weights,
        epochs=config.epochs,
        workers=config.workers,
        notest=True,  # an epoch chosen on the images it is judged by looks better than it is
        noplots=True,
        cache_dir=str(Path(config.project) / "labels"),
        **RECIPES[recipe],
    )
    network, numbers = load(train_stage(TrainConfig(**values), run_training) / "weights/last.pt"), {}
    for split in ("val", "test"):
        metrics = scores_on(split, network=network, data=data, img_size=config.img_size).metrics
        numbers[split] = metrics.AP50, metrics.AP
    return Row(data=name, recipe=recipe, seed=seed, **numbers)


def _means(rows: Iterable[Row]) -> str:
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.data, row.recipe), []).append(row)
    header = ["data", "recipe", "val mAP50", "val mAP", "test mAP50", "test mAP", "mean mAP"]
    columns = {key: zip(*(row.numbers for row in group), strict=True) for key, group in groups.items()}
    return table(header, [[*key, *(_digits(mean(column)) for column in found)] for key, found in columns.items()])


def _digits(value: float) -> str:
    return f"{value:.3f}"


def _told(settings: dict[str, Any]) -> str:
    flags = [f"--{name.replace('_', '-')} {value}" for name, value in settings.items()]
    return " ".join(flags) or "no further flag"


if __name__ == "__main__":
    run_script(measure, RecipeBenchmark)
