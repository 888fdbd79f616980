"""Train a pruned detector back to accuracy."""

from __future__ import annotations

from commands.finetune_config import FinetuneConfig
from utils.config.cli import RESUME_LATEST, run_script

if __name__ == "__main__":
    run_script("commands.finetune:run_finetuning", FinetuneConfig, bare={"--resume": RESUME_LATEST})
