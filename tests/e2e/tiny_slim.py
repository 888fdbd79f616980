"""Tiny runs of slim.py."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

from tiny import tiny_config

from commands.slim import run_slimming
from commands.slim_config import SlimConfig
from commands.slim_report import SlimResult


def slim_config(folder: Path, **settings: Any) -> SlimConfig:
    """Two rounds of the tiny network to two fifths of its parameters, without dense training and export."""
    plain = tiny_config(folder)
    values = {field.name: getattr(plain, field.name) for field in fields(plain)}
    own = {"epochs": 1, "finetune_epochs": 2, "rounds": 2, "target": "params=40%", "round": "none", "distill": 1.0}
    return SlimConfig(**{**values, **own, "stages": ("sparse", "prune", "finetune"), "sr": 0.3, **settings})


def line_config(folder: Path, **settings: Any) -> SlimConfig:
    """One round with all stages."""
    return slim_config(folder, **{"stages": (), "rounds": 1, "finetune_epochs": 1, "dense_epochs": 1, **settings})


def slimmed(config: SlimConfig) -> SlimResult:
    """The result of a run in one process."""
    result = run_slimming(config)
    assert result is not None
    return result
