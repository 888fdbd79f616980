r"""What int8 costs on every runtime, without training and without search: mAP50-95 with its interval, and the heads.

Each artefact is learnt from some images and measured on others: from train, measured on the splits; or with
`--halves` from each half of val, measured on the other one, both pooled.

python -m benchmarks.int8_loss --weights dense.pt small.pt --data data/bccd.yaml --img-size 320
python -m benchmarks.int8_loss --weights yolov5n_coco.pt --data coco128.yaml --img-size 640 --halves --calib-images 64
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.int8_peers import PEERS
from benchmarks.report import table, write_report
from benchmarks.scores import boxes_of, data_name, load, scores_on
from deploy.calibration import as_input
from deploy.formats import FORMATS, load_detector, resolve
from deploy.job import ExportJob
from deploy.outputs.detector import DetectorSource
from deploy.settings import ExportSettings, FormatSettings
from models.detector import Detector
from tasks.choose import DETECTION
from tasks.settings import TaskSettings
from utils.config.cli import run_script
from utils.datasets.indexing.index import LabelIndex
from utils.datasets.spread import spread
from utils.metrics.bootstrap import Boxes, draws, interval, map_of_draws

_CPU = torch.device("cpu")
_NUM_HEAD_IMAGES = 16


@dataclass(frozen=True, kw_only=True)
class Int8LossConfig:
    """Export in int8, measure, compare with the network in PyTorch."""

    weights: tuple[str, ...]
    data: str = "data/bccd.yaml"
    img_size: int = 320
    formats: tuple[str, ...] = ("ncnn", "onnx", "openvino")
    peers: bool = False  # also onnxruntime's own quantisation and NNCF's
    splits: tuple[str, ...] = ("val", "test")
    halves: bool = False  # learn from each half of val and measure on the other one
    calib_images: int = 128
    int8_skip: tuple[str, ...] = ()  # patterns of layers that int8 leaves out
    project: str = "runs/benchmark/int8_loss"
    label: str = ""  # of the report's file name


@dataclass(frozen=True, kw_only=True, eq=False)
class _Part:
    """Images to measure on, and those to learn from.

    Attributes:
        split: Split of the images.
        index: The split.
        learnt: Paths of the images to learn from.
        measured: Positions in the split of the images to measure on.
    """

    split: str
    index: LabelIndex
    learnt: Sequence[str]
    measured: Sequence[int]


def measure(config: Int8LossConfig) -> None:
    """Measure all networks on all runtimes, write the report."""
    torch.set_num_threads(1)
    rows = [row for weights in config.weights for row in _rows(weights, config)]
    header = [
        "network",
        "runtime",
        "images",
        "mAP of float32",
        "mAP",
        "lost",
        "95 % over images",
        "error of the heads",
    ]
    path = write_report(
        f"int8_loss{'_' if config.label else ''}{config.label}",
        title=f"What int8 costs, {data_name(config.data)}, {config.img_size} px",
        body=table(header, rows),
        facts={
            "learnt from": "each half of val, measured on the other, pooled" if config.halves else "train",
            "images learnt from": config.calib_images,
            "95 % over images": "paired bootstrap over images",
            "error of the heads": f"norm of the difference over the norm, mean of heads, {_NUM_HEAD_IMAGES} images",
        },
    )
    sys.stdout.write(f"{path.read_text()}written to {path}\n")


def _rows(weights: str, config: Int8LossConfig) -> Iterator[list[object]]:
    """Yield a row for each runtime, and for each split unless halves are pooled."""
    network = load(weights)
    assert isinstance(network.model, Detector)
    source = DetectorSource(model=network.model, names=tuple(network.names))
    groups = [_halves(network, config)] if config.halves else [[part] for part in _of_splits(network, config)]
    floats = [[_scores(part, network, None, config) for part in parts] for parts in groups]
    for name in (*config.formats, *(PEERS if config.peers else ())):
        # Splits are measured with one artefact, each half with one that is learnt from the other half.
        runtimes = [_exported(name, source, part, weights, config) for part in groups[0]]
        for parts, was in zip(groups, floats, strict=True):
            now = [_scores(part, network, run, config) for part, run in zip(parts, runtimes, strict=True)]
            errors = [_head_error(run, source, part, config) for part, run in zip(parts, runtimes, strict=True)]
            yield [Path(weights).stem, name, parts[0].split, *_compared(was, now), f"{np.mean(errors):.4f}"]


def _of_splits(network: Any, config: Int8LossConfig) -> list[_Part]:
    learnt = _index("train", network, config).paths
    found = [(split, _index(split, network, config)) for split in config.splits]
    return [_Part(split=split, index=index, learnt=learnt, measured=range(len(index))) for split, index in found]


def _halves(network: Any, config: Int8LossConfig) -> list[_Part]:
    index = _index("val", network, config)
    halves = [range(start, len(index), 2) for start in (0, 1)]
    return [
        _Part(split="val", index=index, learnt=[index.paths[place] for place in own], measured=other)
        for own, other in (halves, halves[::-1])
    ]


def _index(split: str, network: Any, config: Int8LossConfig) -> LabelIndex:
    index: LabelIndex = DETECTION.read_split(
        TaskSettings(data=config.data, cache_dir=config.project), split, network=network
    )
    return index


def _exported(name: str, source: DetectorSource, part: _Part, weights: str, config: Int8LossConfig) -> Any:
    """Make an artefact, and load it."""
    hw = (config.img_size, config.img_size)
    job = ExportJob(
        source=source,
        settings=ExportSettings(image_hw=hw, dynamic=True, precision="int8"),
        calibration=[as_input(path, hw) for path in spread(part.learnt, config.calib_images)],
        special=FormatSettings(int8_skip=config.int8_skip),
    )
    if name in PEERS:
        return PEERS[name](job)
    half = f"_{part.measured[0]}" if config.halves else ""
    path = Path(config.project) / f"{Path(weights).stem}{half}{FORMATS[name].suffix}"
    path.parent.mkdir(parents=True, exist_ok=True)
    resolve(FORMATS[name].write)(job, path)
    return load_detector(path, device=_CPU)


def _scores(part: _Part, network: Any, runtime: Any, config: Int8LossConfig) -> Boxes:
    """Return the boxes of the images to measure on."""
    scores = scores_on(
        part.split,
        network=network,
        data=config.data,
        img_size=config.img_size,
        runtime=runtime,
        device=_CPU,
        cache_dir=config.project,
    )
    every = boxes_of(scores, part.index)
    found, truths, crowds = (
        [own[place] for place in part.measured] for own in (every.found, every.truths, every.crowds)
    )
    return Boxes(found=found, truths=truths, crowds=crowds)


def _compared(was: Sequence[Boxes], now: Sequence[Boxes]) -> list[str]:
    """Return the cells on mAP, pooled over the parts."""
    pooled = [_joined(boxes) for boxes in (was, now)]
    number = len(pooled[0].found)
    whole, drawn = np.ones((1, number), np.int64), draws(number)
    before, after = (float(map_of_draws(boxes, whole)[0]) for boxes in pooled)
    low, high = interval(map_of_draws(pooled[0], drawn) - map_of_draws(pooled[1], drawn))
    return [f"{before:.4f}", f"{after:.4f}", f"{before - after:+.4f}", f"{low:+.4f} to {high:+.4f}"]


def _joined(parts: Sequence[Boxes]) -> Boxes:
    return Boxes(
        found=[own for part in parts for own in part.found],
        truths=[own for part in parts for own in part.truths],
        crowds=[own for part in parts for own in part.crowds],
    )


def _head_error(runtime: Any, source: DetectorSource, part: _Part, config: Int8LossConfig) -> float:
    """Return the mean relative error of the heads on some of the images to measure on."""
    hw = (config.img_size, config.img_size)
    paths = spread([part.index.paths[place] for place in part.measured], _NUM_HEAD_IMAGES)
    exact = source.runtime(_CPU)
    errors = [_relative(runtime(image), exact(image)) for image in (as_input(path, hw) for path in paths)]
    return float(np.mean(errors))


def _relative(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    return float(np.mean([float((a - b).norm() / b.norm()) for a, b in zip(found, expected, strict=True)]))


if __name__ == "__main__":
    run_script(measure, Int8LossConfig)
