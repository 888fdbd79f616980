"""Make a detector small in one command: train sparse, prune and fine-tune, once or in rounds."""

from __future__ import annotations

from commands.slim_config import SlimConfig
from utils.config.cli import RESUME_LATEST, run_script

if __name__ == "__main__":
    run_script("commands.slim:run_slimming", SlimConfig, bare={"--resume": RESUME_LATEST})
