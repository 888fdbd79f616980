"""Train a detector on your data."""

from __future__ import annotations

from commands.train_config import DEFAULT_TRIALS, TrainConfig
from utils.config.cli import RESUME_LATEST, run_script

if __name__ == "__main__":
    run_script("commands.train:train", TrainConfig, bare={"--resume": RESUME_LATEST, "--evolve": str(DEFAULT_TRIALS)})
