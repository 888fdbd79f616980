"""The networks of the frontier on ncnn: exported, verified, scored on val and test, and timed side by side."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.frontier_curve import Point
from benchmarks.frontier_rows import Recipe, Row, folder_of
from benchmarks.scores import boxes_of, load, scores_on
from commands.export import artefact_path, run_export
from commands.export_config import ExportConfig
from deploy.choices import Precision
from deploy.formats import load_detector
from deploy.latency.measure import times_of_subjects
from deploy.latency.networks import Subject
from deploy.outputs.detector import DetectorSource
from deploy.settings import RuntimeOptions
from deploy.verification.latency import clock_for, time_in_turns
from models.detector import Detector, build_model
from pruning.selection.latency import Conditions
from pruning.selection.starting import higher_size
from tasks.choose import DETECTION
from tasks.settings import TaskSettings
from utils.datasets.indexing.config import load_data_config
from utils.metrics.bootstrap import draws, map_of_draws
from utils.storage.files import write_json

LOGGER = logging.getLogger(__name__)

RUNTIME = "ncnn"
SPLITS = ("val", "test")
_CPU = torch.device("cpu")


@dataclass(frozen=True, kw_only=True, eq=False)
class Measured:
    """A trained network of one seed, exported in one precision.

    Attributes:
        row: Row that it is of.
        precision: Precision on the runtime.
        artefact: What was exported.
        passed: Whether that agrees with the network.
        scores: mAP50-95 on val and on test.
        drawn: mAP50-95 of draws of images (D,), mean of both splits.
    """

    row: Row
    precision: Precision
    artefact: Path
    passed: bool
    scores: tuple[float, float]
    drawn: np.ndarray[Any, Any]


def speeds_of(
    weights: Mapping[str, str], *, data: str, size: int, file: Path, higher_sizes: Sequence[int] = ()
) -> dict[tuple[str, int], float]:
    """Return the speed of each dense network as a multiple of the first one's, kept in a file once measured.

    They decide what is cut, so a run that goes on must find the same ones.

    Args:
        weights: Files by the name of the network.
        data: Data set whose classes the networks have.
        size: Longer side of images that all networks are timed at, and at which the first one's speed is 1.
        file: File to keep speeds in.
        higher_sizes: Further longer sides, for all networks but the first.

    Returns:
        Speeds by name and longer side.
    """
    known: dict[str, float] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    first, *smaller = weights
    # By their names in the file; those at the size of all have none there.
    wanted = {name: (name, size) for name in weights}
    wanted |= {f"{name}_{higher}": (name, higher) for name in smaller for higher in higher_sizes}
    if missing := {key: own for key, own in wanted.items() if key not in known and key != first}:
        timed = [_subject(weights[name], data, own) for name, own in ((first, size), *missing.values())]
        with _threads_kept():
            ms = times_of_subjects(
                timed, Conditions(runtime=RUNTIME, precision="fp32", threads=1, image_chw=timed[0].image_chw)
            )
        known |= {first: 1.0, **{key: ms[0] / own for key, own in zip(missing, ms[1:], strict=True)}}
        write_json(file, known)
    return {own: known.get(key, 1.0) for key, own in wanted.items()}


def _subject(weights: str, data: str, size: int) -> Subject:
    """Return a network as it is before training: the time of a call does not depend on the weights."""
    network, names = load(weights), list(load_data_config(data).names)
    return Subject(
        model=build_model(replace(_as_detector(network.model).spec, num_classes=len(names))).eval(),
        image_chw=DETECTION.image_chw(network, size),
        trace_chw=None,
        source_of=lambda model: DetectorSource(model=_as_detector(model), names=names),
    )


def next_size(weights: str, size: int) -> int:
    """Return the next higher longer side at which slim.py compares a network."""
    return higher_size((size,), stride=_as_detector(load(weights).model).max_stride)[0]


def _as_detector(model: torch.nn.Module) -> Detector:
    assert isinstance(model, Detector)
    return model


def measure_row(row: Row, seed: int, weights: Path, precision: Precision, recipe: Recipe) -> None:
    """Export, verify and score a network, unless that is done; the last file written says so."""
    folder = folder_of(row, seed, recipe)
    file = _result_file(folder, precision)
    if file.exists():
        return
    config = ExportConfig(
        weights=str(weights),
        include=(RUNTIME,),
        img_size=(row.size,),
        data=recipe.data,
        int8=precision == "int8",
        calib_images=_calibration(weights, recipe) if precision == "int8" else ExportConfig.calib_images,
        threads=1,
        workers=int(recipe.settings.get("workers", ExportConfig.workers)),
        cache_dir=str(recipe.folder / "labels"),
        output=str(folder / precision),
        project=str(folder),
        name=precision,
        exist_ok=True,
    )
    with _threads_kept():
        passed = run_export(config)
        artefact = artefact_path(config, RUNTIME)
        scored = {split: _scored(split, weights, artefact, row, recipe) for split in SPLITS}
    value = {"artefact": artefact.relative_to(folder).as_posix(), "passed": passed, **scored}
    write_json(file, value)
    maps = ", ".join(f"{split} {scored[split]['AP']:.3f}" for split in SPLITS)
    LOGGER.info("%s, seed %d, %s: mAP50-95 %s", row.label, seed, precision, maps)


def _result_file(folder: Path, precision: Precision) -> Path:
    return folder / f"measured_{precision}.json"


def _calibration(weights: Path, recipe: Recipe) -> int:
    """Return the images that int8 learns from; some data sets have fewer than are usual."""
    split = DETECTION.read_split(_task_settings(recipe), "train", network=load(weights))
    return min(ExportConfig.calib_images, len(split))


def _task_settings(recipe: Recipe) -> TaskSettings:
    return TaskSettings(data=recipe.data, cache_dir=str(recipe.folder / "labels"))


def _scored(split: str, weights: Path, artefact: Path, row: Row, recipe: Recipe) -> dict[str, Any]:
    """Return mAP50-95 of an artefact on a split, and that of draws of its images."""
    network = load(weights)
    runtime = load_detector(artefact, device=_CPU, options=RuntimeOptions())
    scores = scores_on(
        split,
        network=network,
        data=recipe.data,
        img_size=row.size,
        runtime=runtime,
        device=_CPU,
        cache_dir=_task_settings(recipe).cache_dir,
    )
    index = DETECTION.read_split(_task_settings(recipe), split, network=network)
    # One seed for each split, so that all networks are measured on the same draws.
    drawn = map_of_draws(boxes_of(scores, index), draws(len(index), seed=SPLITS.index(split)))
    return {"AP50": scores.metrics.AP50, "AP": scores.metrics.AP, "drawn": drawn.round(6).tolist()}


def all_measured(rows: Sequence[Row], precisions: Sequence[Precision], recipe: Recipe) -> list[Measured]:
    """Return all that is measured in the folder, whichever run measured it."""
    return [
        _read(row, file, precision)
        for precision in precisions
        for row in rows
        for file in sorted(recipe.folder.glob(f"{row.name}_seed*/{_result_file(Path(), precision)}"))
    ]


def _read(row: Row, file: Path, precision: Precision) -> Measured:
    value = json.loads(file.read_text(encoding="utf-8"))
    drawn = [np.array(value[split]["drawn"], np.float64) for split in SPLITS]
    return Measured(
        row=row,
        precision=precision,
        artefact=file.parent / value["artefact"],
        passed=value["passed"],
        scores=(value["val"]["AP"], value["test"]["AP"]),
        drawn=np.mean(drawn, axis=0),
    )


def time_all(measured: Sequence[Measured], *, runs: int) -> list[float]:
    """Return the milliseconds of each artefact for one image of its size, one thread, called in turns."""
    calls = []
    with _threads_kept():
        torch.set_num_threads(1)
        for own in measured:
            runtime = load_detector(own.artefact, device=_CPU, options=RuntimeOptions(threads=1))
            height, width = runtime.input_hw or (own.row.size, own.row.size)
            image = torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(0))
            calls.append(partial(runtime, image))
        return [time.fastest for time in time_in_turns(calls, threads=1, runs=runs, clock=clock_for(1))]


def points_of(measured: Sequence[Measured], ms: Sequence[float]) -> list[Point]:
    """Return a point for each row and precision, mean over its seeds."""
    groups: dict[tuple[Row, Precision], list[tuple[Measured, float]]] = {}
    for own, time in zip(measured, ms, strict=True):
        groups.setdefault((own.row, own.precision), []).append((own, time))
    return [
        Point(
            line=row.line,
            name=row.label,
            precision=precision,
            ms=float(np.mean([time for _, time in group])),
            scores=[float(np.mean(own.scores)) for own, _ in group],
            drawn=np.mean([own.drawn for own, _ in group], axis=0),
            passed=all(own.passed for own, _ in group),
        )
        for (row, precision), group in groups.items()
    ]


@contextmanager
def _threads_kept() -> Iterator[None]:
    """Give torch back its threads: exports and runtimes set them for the whole process."""
    threads = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(threads)
