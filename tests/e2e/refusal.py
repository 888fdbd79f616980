"""A small good set-up for the real scripts, and what a refusal looks like."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import TINY_CFG

from commands.detect import detect
from commands.detect_config import DetectConfig
from commands.export import run_export
from commands.export_config import ExportConfig
from commands.prune import prune
from commands.prune_config import PruneConfig
from commands.quantize import run_quantization
from commands.quantize_config import QuantizeConfig
from commands.slim import slim
from commands.slim_config import SlimConfig
from commands.train import train
from commands.train_config import TrainConfig
from commands.train_sparsity import run_sparsity_training
from commands.train_sparsity_config import SparsityConfig
from commands.val import val
from commands.val_config import ValConfig
from models.detector import build_model
from models.spec import ModelSpec
from utils.config.cli import RESUME_LATEST, run_script
from utils.storage.checkpoint import Checkpoint, save_checkpoint

NAMES = ("RBC", "WBC", "Platelets")
SCRIPTS: dict[str, tuple[Callable[[Any], object], type[Any]]] = {
    "train": (train, TrainConfig),
    "val": (val, ValConfig),
    "detect": (detect, DetectConfig),
    "train_sparsity": (run_sparsity_training, SparsityConfig),
    "prune": (prune, PruneConfig),
    "slim": (slim, SlimConfig),
    "export": (run_export, ExportConfig),
    "quantize": (run_quantization, QuantizeConfig),
}


def write_picture(path: Path, *, hw: tuple[int, int] = (48, 64), seed: int = 0) -> Path:
    """Noise, so that a truncated file is missing something."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*hw, 3), np.uint8)).save(path)
    return path


def write_odd_pictures(folder: Path) -> None:
    """One pixel, 16 bits, grey, CMYK, RGBA and EXIF-rotated (64 x 48 pixels seen as 48 x 64)."""
    with Image.open(write_picture(folder / "a.jpg")) as opened:
        picture = opened.convert("RGB")
    picture.crop((0, 0, 1, 1)).save(folder / "pixel.png")
    Image.fromarray(np.full((48, 64), 40_000, np.uint16)).save(folder / "wide.png")
    picture.convert("L").save(folder / "grey.png")
    picture.convert("CMYK").save(folder / "cmyk.jpg")
    picture.convert("RGBA").save(folder / "rgba.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    picture.save(folder / "rotated.jpg", exif=exif)


@dataclass(frozen=True, kw_only=True)
class Place:
    """A data set, weights and run folders below one folder, ready to be broken in one spot.

    Attributes:
        root: The folder.
    """

    root: Path

    @property
    def data(self) -> Path:
        """The YAML over txt labels: two pictures in train and one in val, a box each."""
        return self.root / "data.yaml"

    @property
    def coco_data(self) -> Path:
        """The YAML over COCO JSON files for the same pictures."""
        return self.root / "coco.yaml"

    @property
    def weights(self) -> Path:
        """A checkpoint of the tiny network, untrained."""
        return self.root / "tiny.pt"

    @property
    def project(self) -> Path:
        """Where run folders go."""
        return self.root / "runs"

    def arguments(self, script: str, data: Path | None = None) -> list[str]:
        """A command line that works as long as nothing is broken."""
        common = ["--project", str(self.project), "--device", "cpu", "--img-size", "64"]
        if script == "detect":
            return [*common, "--weights", str(self.weights), "--source", str(self.root / "images/train")]
        if script == "prune":
            return [*common, "--weights", str(self.weights), "--noplots"]
        common += ["--data", str(data or self.data), "--workers", "0", "--cache-dir", str(self.root / "cache")]
        if script == "val":
            return [*common, "--weights", str(self.weights), "--batch-size", "2"]
        tiny = ["--cfg", TINY_CFG, "--epochs", "1", "--batch-size", "2", "--nominal-batch", "2"]
        return [*common, *tiny, "--noplots", "--noautoanchor"]

    def snapshot(self) -> dict[str, str]:
        """Digest of every file, to see that nothing is written; the label cache may be."""
        files = (path for path in self.root.rglob("*") if path.is_file() and path.suffix != ".cache")
        return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def make_place(root: Path) -> Place:
    """Write the data set and the weights."""
    place = Place(root=root)
    for split, stems in (("train", ("a", "b")), ("val", ("c",))):
        content = coco_content()
        content["images"], content["annotations"] = [], []
        for number, stem in enumerate(stems):
            write_picture(root / f"images/{split}/{stem}.jpg", seed=ord(stem))
            label = root / f"labels/{split}/{stem}.txt"
            label.parent.mkdir(parents=True, exist_ok=True)
            label.write_text("0 0.5 0.5 0.5 0.5\n")
            content["images"].append({"id": number, "file_name": f"{stem}.jpg", "width": 64, "height": 48})
            content["annotations"].append(
                {"id": number, "image_id": number, "category_id": 1, "bbox": [16, 12, 32, 24]}
            )
        (root / f"{split}.json").write_text(json.dumps(content))
    place.data.write_text(f"train: images/train\nval: images/val\nnc: 3\nnames: {list(NAMES)}\n")
    place.coco_data.write_text("train: train.json\nval: val.json\nimage_root: images\n")
    spec = ModelSpec.from_yaml(TINY_CFG)
    torch.manual_seed(0)
    checkpoint = Checkpoint(spec=spec.to_dict(), names=NAMES, weights=build_model(spec).state_dict())
    save_checkpoint(checkpoint, place.weights)
    return place


def coco_content() -> dict[str, Any]:
    """A COCO JSON without images."""
    categories = [{"id": number, "name": name} for number, name in enumerate(NAMES, 1)]
    return {"images": [], "annotations": [], "categories": categories}


def run(script: str, arguments: Sequence[str]) -> None:
    """The script's own command line, in this process."""
    main, config_type = SCRIPTS[script]
    run_script(main, config_type, bare={"--resume": RESUME_LATEST}, argv=arguments)


def refusal(script: str, arguments: Sequence[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line a script says before it exits with 2."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        run(script, arguments)
    error = capsys.readouterr().err
    assert caught.value.code == 2
    assert error.startswith("error: ")
    assert error.count("\n") == 1, error
    return error.removeprefix("error: ").strip()
