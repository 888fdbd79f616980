"""Make a detector small in one command: train sparse, prune and fine-tune, once or in rounds."""

from __future__ import annotations

from engine.config import RESUME_LATEST
from pruning.slim_config import SlimConfig
from pruning.slimming import run_slimming
from utils.cli import run_script

if __name__ == "__main__":
    run_script(run_slimming, SlimConfig, bare={"--resume": RESUME_LATEST})
