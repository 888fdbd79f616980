"""The six commands of docs/classifiers.md, from class folders to a measured int8 network, at tiny size."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from refusal import SCRIPTS
from tiny import ROOT

from commands.finetune import run_finetuning
from commands.finetune_config import FinetuneConfig
from tasks.choose import CLASSIFICATION
from utils.config.cli import parse

EVERY_SCRIPT = {**SCRIPTS, "finetune_pruned": (run_finetuning, FinetuneConfig)}
CLASSES = ("apple", "banana", "cherry")


def documented_commands() -> Iterator[list[str]]:
    """Yield the words of each command of the page's first block, without `python` and `.py`."""
    page = (ROOT / "docs/classifiers.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"six\ncommands:\n\n(.*?)\n\n", page, flags=re.DOTALL) or re.findall(
        r"six commands:\n\n(.*?)\n\n", page, flags=re.DOTALL
    )
    for line in block.replace("\\\n", " ").splitlines():
        python, script, *flags = shlex.split(line)
        assert python == "python"
        yield [script.removesuffix(".py"), *flags]


def write_photos(folder: Path) -> None:
    """Noise with a bright stripe whose place is the class."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 48), ("val", 8)):
        for number, name in enumerate(CLASSES):
            place = folder / split / name
            place.mkdir(parents=True)
            for index in range(count):
                image = rng.integers(0, 80, (36, 40, 3), dtype=np.uint8)
                image[10 * number : 10 * number + 10] += 150
                assert cv2.imwrite(str(place / f"{index}.png"), image)


def shortened(flags: list[str]) -> list[str]:
    """Return the flags with one epoch in place of many."""
    words = list(flags)
    for flag in ("--epochs", "--batch-size"):
        if flag in words:
            words[words.index(flag) + 1] = {"--epochs": "2", "--batch-size": "16"}[flag]
    return words


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which all six commands ran, with their result.json in runs/."""
    folder = tmp_path_factory.mktemp("line")
    write_photos(folder / "photos")
    commands = list(documented_commands())
    assert [name for name, *_ in commands] == ["train", "train_sparsity", "prune", "finetune_pruned", "export", "val"]
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)
        for name, *flags in commands:
            run, kind = EVERY_SCRIPT[name]
            more = [] if name in ("export", "val") else ["--device", "cpu"]
            more += ["--nominal-batch", "16"] if "--epochs" in flags else []
            config: Any = parse(kind, [*shortened(flags), *more], bare={})
            assert run(config) is not False
    return folder


def read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def test_network_is_pruned_to_half_of_its_multiply_adds(line: Path) -> None:
    report = read(line / "runs/prune/exp/result.json")["report"]
    assert 0.3 * report["before"]["macs"] < report["after"]["macs"] <= 0.5 * report["before"]["macs"]
    small = CLASSIFICATION.load(line / "runs/finetune/exp/weights/best.pt")
    assert small.names == CLASSES
    assert sum(p.numel() for p in small.model.parameters()) == report["after"]["parameters"]


def test_sparse_training_reports_how_close_to_zero_its_scales_are(line: Path) -> None:
    (folder,) = {path.parent for path in line.glob("runs/train*/*/sparsity.json")}
    assert read(folder / "sparsity.json")["gamma"]["verdict"]
    assert (folder / "gamma_ridge.png").stat().st_size > 1000


def test_int8_artefact_passed_its_comparison_and_is_measured_as_it_was_verified(line: Path) -> None:
    exported = read(line / "runs/export/exp/result.json")
    assert exported["passed"] is True
    measured = read(line / "runs/val/exp/result.json")
    assert measured["images"] == 3 * 8
    assert measured["accuracy"] >= 1 / 3
    assert (line / "runs/finetune/exp/weights/best_int8_ncnn_model/model.ncnn.param").is_file()
