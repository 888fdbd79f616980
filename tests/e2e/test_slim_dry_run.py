"""slim.py --dry-run: the plan of a run, which writes nothing."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from tiny_slim import line_config

from commands.slim import slim

for package in ("ncnn", "pnnx"):
    pytest.importorskip(package, reason=f"the {package} package is not installed")


def test_plan_shows_each_stage_and_writes_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = line_config(tmp_path, rounds=2, dry_run=True, threads=2)
    data = set((tmp_path / "data").rglob("*"))
    with caplog.at_level(logging.INFO):
        assert slim(config)
    assert set((tmp_path / "data").rglob("*")) == data
    assert {path.name for path in tmp_path.iterdir()} == {"data", "cache"}  # that of the labels
    lines = caplog.messages[-1].splitlines()
    assert [line.split()[0] for line in lines[1:-2] if not line.startswith(" ")] == [
        *("dense", "round1/sparse", "round1/prune", "round1/finetune"),
        *("round2/sparse", "round2/prune", "round2/finetune", "export"),
    ]
    assert all(float(line.split()[1]) >= 0 for line in lines[1:-2] if not line.startswith(" "))
    assert "python train.py --cfg" in lines[1]
    assert "--sr 0.3" in lines[2]
    assert f"--target params={round(15688 * 0.4**0.5)}" in lines[3]
    first, second = (line for line in lines if line.lstrip().startswith("leaves "))
    assert "of 15,688 parameters" in first
    assert int(second.split()[1].replace(",", "")) <= 0.4 * 15688
    assert lines[-3].endswith(f"--cache-dir {tmp_path}/cache")
    assert "--threads 2" in lines[-3]
    assert lines[-1] == "dry run: nothing was written"


def test_plan_shows_the_chosen_stages_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = line_config(tmp_path, dry_run=True, stages=("sparse", "finetune"), target="", batch_size=1)
    with caplog.at_level(logging.INFO):
        assert slim(config)
    lines = caplog.messages[-1].splitlines()[1:-2]
    assert [line.split()[0] for line in lines] == ["round1/sparse", "round1/finetune"]
    assert "python train_sparsity.py --cfg" in lines[0]  # the first training builds the network
