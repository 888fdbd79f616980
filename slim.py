"""From a data set to a small network in one command: train, train sparse, prune, fine-tune, export and verify."""

from __future__ import annotations

from commands.slim_config import SlimConfig
from utils.config.cli import RESUME_LATEST, run_script

if __name__ == "__main__":
    run_script("commands.slim:slim", SlimConfig, bare={"--resume": RESUME_LATEST})
