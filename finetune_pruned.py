"""Train a pruned detector back to accuracy."""

from __future__ import annotations

from engine.config import RESUME_LATEST
from pruning.finetune import FinetuneConfig, run_finetuning
from utils.cli import run_script

if __name__ == "__main__":
    run_script(run_finetuning, FinetuneConfig, bare={"--resume": RESUME_LATEST})
