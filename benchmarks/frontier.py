r"""mAP against milliseconds on ncnn: ours, and what one could take instead, with equal epochs from the same weights.

One table and one picture for a data set: dense networks at several image sizes, torch-pruning, and ours at several
speeds relative to the first dense network at the largest size, also from smaller networks with more pixels. What is
complete in the project folder is not run again, a killed run goes on, and the report shows all that is complete
there, whichever run made it.

pip install torch-pruning==1.6.1
python -m benchmarks.frontier --weights yolov5s_v6_coco.pt yolov5n_v6_coco.pt --data data/bccd.yaml
python -m benchmarks.frontier --weights yolov5s_v6_coco.pt yolov5n_v6_coco.pt --rows "ours_*" dense_yolov5n_320 \
    --seeds 1 2
python -m benchmarks.frontier --weights yolov5s_v6_coco.pt yolov5n_v6_coco.pt --rows "higher_*" --higher-sizes 384 416
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.frontier_curve import Comparison, Point, compare, seed_deviation
from benchmarks.frontier_measuring import all_measured, measure_row, next_size, points_of, speeds_of, time_all
from benchmarks.frontier_picture import plot_frontier
from benchmarks.frontier_rows import Recipe, Row, rows_of, train_row
from benchmarks.pruning_speed import import_torch_pruning
from benchmarks.report import report_path, table, write_report
from benchmarks.scores import data_name
from deploy.choices import Precision
from utils.config.cli import run_script
from utils.config.values import check_least
from utils.errors import ConfigError, PruningError
from utils.metrics.bootstrap import Interval, interval

LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class FrontierConfig:
    """Train, export, measure and compare; only what is missing."""

    weights: tuple[str, ...]  # COCO weights of each network; speedups are relative to the first one
    data: str = "data/bccd.yaml"  # data set with the splits train, val and test
    rows: tuple[str, ...] = ("*",)  # which rows to run: patterns of names, such as "dense_*" or ours_yolov5s_x3
    seeds: tuple[int, ...] = (0,)
    epochs: int = 100  # of each row in all
    sizes: tuple[int, ...] = (320, 256, 192)  # longer side of images of dense networks; the largest is for all others
    # longer sides above --sizes at which ours starts from smaller networks, to the same speeds; by default one more
    higher_sizes: tuple[int, ...] = ()
    speedups: tuple[float, ...] = (2, 3, 6, 12)  # of torch-pruning and ours
    precisions: tuple[Precision, ...] = ("fp32", "int8")
    peer_reg: float = 1e-3  # strength of torch-pruning's regulariser, whose own default is 1e-5
    rounds: int = 50  # timed calls of each network
    batch_size: int = 16  # images per step of a training
    workers: int = 8
    project: str = "runs/benchmark/frontier"

    def __post_init__(self) -> None:
        check_least(self, epochs=3, rounds=1)
        for name in ("weights", "rows", "seeds", "sizes", "speedups", "precisions"):
            if not getattr(self, name):
                raise ConfigError(f"--{name}: give at least one")
        if len(self.networks) < len(self.weights):
            raise ConfigError(f"--weights {' '.join(self.weights)}: give one file of each network")
        if min(self.sizes) < 1 or min(self.speedups) <= 1:
            raise ConfigError("--sizes are pixels and --speedups above 1, such as --sizes 320 --speedups 3 6")
        if self.higher_sizes and min(self.higher_sizes) <= max(self.sizes):
            raise ConfigError(
                f"--higher-sizes {min(self.higher_sizes)}: expected more pixels than the largest of --sizes, "
                f"{max(self.sizes)}"
            )

    @property
    def networks(self) -> dict[str, str]:
        """Weights by the name of the network: that of the file up to the first underscore."""
        return {Path(path).stem.split("_")[0]: path for path in self.weights}


def measure(config: FrontierConfig) -> None:
    """Run what is missing, time all that is complete, write the report and the picture."""
    recipe = _recipe(config)
    every = rows_of(recipe, sizes=config.sizes, speedups=config.speedups)
    left_out = _run(_chosen(every, config.rows), recipe, config)
    measured = all_measured(every, config.precisions, recipe)
    if not measured:
        raise ConfigError("--rows: none of them could be run, so there is nothing to show; choose others")
    points = points_of(measured, time_all(measured, runs=config.rounds))
    name = f"frontier_{data_name(config.data)}"
    picture = report_path(name).with_suffix(".png")
    plot_frontier(points, picture, title=f"{data_name(config.data)}, {config.epochs} epochs for each network in all")
    path = write_report(
        name,
        title=f"The frontier of {data_name(config.data)}: mAP50-95 against milliseconds on ncnn, one thread",
        body="\n\n".join([body_of(points, reference=_reference(points, recipe)), f"![mAP over ms]({picture.name})"]),
        facts=_facts(config, recipe, left_out),
    )
    sys.stdout.write(f"{path.read_text()}written to {path} and {picture}\n")


def _recipe(config: FrontierConfig) -> Recipe:
    """Measure how fast the dense networks are, and return what all rows share."""
    size, networks = max(config.sizes), config.networks
    reference = next(iter(networks))
    higher_sizes = config.higher_sizes or (next_size(networks[reference], size),)
    folder = Path(config.project) / f"{data_name(config.data)}_{reference}_{size}px_{config.epochs}epochs"
    return Recipe(
        weights=networks,
        data=config.data,
        epochs=config.epochs,
        size=size,
        folder=folder,
        peer_reg=config.peer_reg,
        higher_sizes=higher_sizes,
        speeds=speeds_of(
            networks, data=config.data, size=size, file=folder / "speeds.json", higher_sizes=higher_sizes
        ),
        settings={"batch_size": config.batch_size, "workers": config.workers},
    )


def _chosen(rows: Sequence[Row], patterns: Sequence[str]) -> list[Row]:
    """Return the rows that a pattern names.

    Raises:
        ConfigError: A pattern names none.
    """
    for pattern in patterns:
        if not any(fnmatch(row.name, pattern) for row in rows):
            raise ConfigError(f"--rows {pattern}: no such row; choose from {' '.join(row.name for row in rows)}")
    return [row for row in rows if any(fnmatch(row.name, pattern) for pattern in patterns)]


def _run(rows: Sequence[Row], recipe: Recipe, config: FrontierConfig) -> list[str]:
    """Train and measure rows, seed by seed; return a line for each that cannot be run."""
    left_out: dict[str, str] = {}
    if any(row.way == "torch-pruning" for row in rows):
        try:
            import_torch_pruning()
        except ConfigError as error:
            left_out["torch-pruning"] = str(error)
            LOGGER.warning("rows of torch-pruning are left out: %s", error)
            rows = [row for row in rows if row.way != "torch-pruning"]
    for seed in config.seeds:
        for row in rows:
            LOGGER.info("row %s, seed %d", row.name, seed)
            try:
                weights = train_row(row, seed, recipe)
            except PruningError as error:  # a target out of reach; days of other rows do not depend on it
                left_out[f"{row.name}, seed {seed}"] = str(error)
                LOGGER.warning("%s, seed %d is left out: %s", row.name, seed, error)
                continue
            for precision in config.precisions:
                measure_row(row, seed, weights, precision, recipe)
    return [f"{name}: {reason}" for name, reason in left_out.items()]


def _reference(points: Sequence[Point], recipe: Recipe) -> Point | None:
    """Return the dense network that speedups are relative to; None where it is not complete."""
    name = Row(way="dense", network=recipe.reference, size=recipe.size).label
    return next((point for point in points if (point.name, point.precision) == (name, "fp32")), None)


def body_of(points: Sequence[Point], *, reference: Point | None) -> str:
    """Return what the report says: how sure its numbers are, then the table.

    Args:
        points: Networks, each in one precision.
        reference: Network whose time is 1; None where it is unknown.
    """
    deviation = seed_deviation(points)
    compared = {point: compare(point, points, deviation=deviation) for point in points if point.is_ours}
    return "\n\n".join([_certainty(points, list(compared.values()), deviation), _table(points, compared, reference)])


def _certainty(points: Sequence[Point], compared: Sequence[Comparison | None], deviation: float | None) -> str:
    """Return the lines on seeds and images that stand above the table."""
    several = len({point.name for point in points if len(point.scores) > 1})
    own = median(_half(interval(point.drawn)) for point in points)
    pairs = [_half(found.interval) for found in compared if found is not None]
    lines = [
        "Deviation between seeds: "
        + ("not known, one seed each" if deviation is None else f"{deviation:.4f} (pooled over {several} rows)"),
        f"Images: the 95 % interval of an mAP is ± {own:.4f} (bootstrap, median of all rows); of a difference from "
        "the best alternative, "
        + (f"on the same images, ± {median(pairs):.4f} (paired bootstrap, median)" if pairs else "not known"),
    ]
    return "\n".join(f"- {line}" for line in lines)


def _half(bounds: Interval) -> float:
    return (bounds[1] - bounds[0]) / 2


def _table(points: Sequence[Point], compared: dict[Point, Comparison | None], reference: Point | None) -> str:
    """List all networks, slowest first; ours with the best alternative at the same speed."""
    header = ["network", "precision", "ms", "times as fast", "mAP50-95", "seeds", "deviation", "best alternative"]
    header += ["ours minus that", "95 % over images", "standard error over seeds", "on ncnn"]
    order = list(dict.fromkeys(point.precision for point in points))
    ranked = sorted(points, key=lambda point: (order.index(point.precision), -point.ms))
    return table(header, [[*_cells(point, reference), *_compared(point, compared)] for point in ranked])


def _cells(point: Point, reference: Point | None) -> list[Any]:
    return [
        point.name,
        point.precision,
        f"{point.ms:.2f}",
        "-" if reference is None else f"{reference.ms / point.ms:.2f}",
        f"{point.score:.4f}",
        len(point.scores),
        "-" if point.deviation is None else f"{point.deviation:.4f}",
    ]


def _compared(point: Point, compared: dict[Point, Comparison | None]) -> list[str]:
    """Return the last cells of a row."""
    verdict = "verified" if point.passed else "differs from the network"
    if not point.is_ours:
        return ["", "", "", "", verdict]
    found = compared[point]
    if found is None:
        return ["none as fast", "-", "-", "-", verdict]
    low, high = found.interval
    error = "-" if found.error is None else f"{found.error:.4f}"
    return [f"{found.best:.4f}", f"{found.difference:+.4f}", f"{low:+.4f} to {high:+.4f}", error, verdict]


def _facts(config: FrontierConfig, recipe: Recipe, left_out: Sequence[str]) -> dict[str, str]:
    dense, sparse, tuning = recipe.split("dense", "sparse", "finetune")
    faded, tuned = recipe.split("sparse", "finetune")
    return {
        "mAP": "mean of val and test, of the last epoch, measured on the exported network",
        "ms": f"fastest of {config.rounds} calls, one image, one thread, all networks in turns in one run; mean over "
        "seeds",
        "times as fast": f"than dense {recipe.reference}, {recipe.size} px, fp32",
        "best alternative": "upper hull of dense networks and torch-pruning over log ms, same precision or fp32",
        "epochs of each row": f"{config.epochs}; ours {dense} dense, {sparse} sparse, {tuning} fine-tuning; from a "
        f"trained dense network {faded} sparse, {tuned} fine-tuning; all with the defaults of train.py",
        "ours at more pixels": "a smaller network, trained and cut at that image size, to the same times",
        "int8": "the same networks, cut for their time in fp32; ranges from training images",
        "torch-pruning": f"{_peer_version()}, scales of batch norms, regulariser {config.peer_reg:g} before the cut, "
        "to 1 / speedup of the MACs, round_to 8 where that reaches them, taught by the network before the cut",
        **({"left out": "; ".join(left_out)} if left_out else {}),
    }


def _peer_version() -> str:
    try:
        return version("torch-pruning")
    except PackageNotFoundError:
        return "not installed here"


if __name__ == "__main__":
    run_script(measure, FrontierConfig)
