"""Small networks and data sets for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from engine.config import TrainConfig

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
