"""Small networks and data sets for tests."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from commands.train_config import TrainConfig
from utils.boxes.boxes import cxcywh_to_xyxy, xyxy_to_ltwh
from utils.datasets.indexing.index import LabelIndex
from utils.datasets.indexing.summary import IndexSummary
from utils.datasets.reading.annotations import Annotations

ROOT = Path(__file__).parents[1]
TINY_CFG = str(Path(__file__).with_name("tiny.yaml"))


def tiny_data(folder: Path, *, images: int = 8) -> Path:
    """A data set YAML over the first pictures of BCCD's train and val splits, its label cache in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for split in ("train", "val"):
        paths = sorted((ROOT / "data/bccd/images" / split).glob("*.jpg"))[:images]
        (folder / f"{split}.txt").write_text("\n".join(map(str, paths)) + "\n")
    yaml = folder / "tiny.yaml"
    yaml.write_text("train: train.txt\nval: val.txt\nnc: 3\nnames: [RBC, WBC, Platelets]\n")
    return yaml


def label_index(
    labels: Sequence[Any],
    *,
    shapes_hw: Sequence[tuple[int, int]],
    names: Sequence[str],
    paths: Sequence[str] | None = None,
    image_ids: Sequence[int] | None = None,
    category_ids: Sequence[int] | None = None,
    crowds: Sequence[Any] | None = None,
) -> LabelIndex:
    """An index made of labels (n, 5) class, cx, cy, w, h, normalised, and of crowd regions in the same form."""
    paths = paths or [f"{number}.jpg" for number in range(len(labels))]
    crowds = crowds or [np.zeros((0, 5))] * len(labels)
    return LabelIndex(
        paths=tuple(paths),
        file_names=tuple(Path(path).name for path in paths),
        labels=tuple(np.asarray(own, np.float32) for own in labels),
        truth=tuple(map(_truth, labels, crowds, shapes_hw)),
        shapes_hw=np.array(shapes_hw),
        image_ids=tuple(image_ids or range(len(labels))),
        category_ids=tuple(category_ids or range(len(names))),
        names=tuple(names),
        digests=tuple(str(number).encode().zfill(16) for number in range(len(labels))),
        is_labelled=True,
        summary=IndexSummary(),
    )


def _truth(labels: Any, crowds: Any, hw: tuple[int, int]) -> Annotations:
    rows = np.concatenate([np.asarray(labels, np.float64), np.asarray(crowds, np.float64)]).reshape(-1, 5)
    ltwh = xyxy_to_ltwh(cxcywh_to_xyxy(rows[:, 1:] * np.array([hw[1], hw[0], hw[1], hw[0]])))
    is_crowd = np.arange(len(rows)) >= len(labels)
    area = ltwh[:, 2] * ltwh[:, 3]
    return Annotations.from_rows(np.column_stack([rows[:, 0], ltwh, area, is_crowd]))


def tiny_config(folder: Path, **settings: Any) -> TrainConfig:
    """Two epochs of the tiny network on a few pictures, in a run folder below `folder`."""
    defaults: dict[str, Any] = {
        "cfg": TINY_CFG,
        "data": str(tiny_data(folder / "data")),
        "epochs": 2,
        "batch_size": 4,
        "nominal_batch": 4,
        "img_size": (64,),
        "workers": 0,
        "device": "cpu",
        "noplots": True,
        "noautoanchor": True,
        "cache_dir": str(folder / "cache"),
        "project": str(folder / "runs"),
    }
    return TrainConfig(**{**defaults, **settings})
