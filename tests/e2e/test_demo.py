"""`make demo` in small: its command line runs every stage, and leaves the ncnn folder and the report."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace
from pathlib import Path

import pytest
from tiny import ROOT, TINY_CFG, tiny_data

from commands.slim import run_slimming
from commands.slim_config import SlimConfig
from utils.config.cli import parse

for package in ("ncnn", "pnnx"):
    pytest.importorskip(package, reason=f"the {package} package is not installed")


def demo_config() -> SlimConfig:
    """The settings of the command in the Makefile."""
    recipe = (ROOT / "Makefile").read_text().split("demo: setup\n")[1].split("\n\n")[0].replace("\\\n", " ")
    words = shlex.split(recipe)
    assert words[:2] == ["$(BIN)/python", "slim.py"]
    return parse(SlimConfig, words[2:], bare={})


def test_demo_goes_from_pictures_to_a_verified_ncnn_folder_and_a_report(tmp_path: Path) -> None:
    config = demo_config()
    assert (config.preset, config.is_auto, config.target, config.weights) == ("quick", True, "speedup=2", "")
    data = str(tiny_data(tmp_path / "data", images=2))
    # The tiny network is mostly what is not in the latency table.
    tiny = {"cfg": TINY_CFG, "data": data, "target": "macs=60%", "round": "none", "batch_size": 2, "img_size": (64,)}
    config = replace(config, **tiny, dense_epochs=1, epochs=2, finetune_epochs=1, project=str(tmp_path / "runs"))
    result = run_slimming(config)
    assert result is not None
    stages = [stage.stage for stage in result.stages]
    assert stages == ["dense", "round1/sparse", "round1/prune", "round1/finetune"]
    assert result.stages[-1].macs <= 0.6 * result.stages[0].macs
    folder = tmp_path / "runs/exp"
    assert (folder / "export/best_ncnn_model/README.md").is_file()
    assert (folder / "report.html").is_file()
    head = json.loads((folder / "export/result.json").read_text())["reports"][0]["heads"][0]
    assert head["largest"] < 1e-4
