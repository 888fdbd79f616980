"""Train a detector sparse, so that it can be pruned."""

from __future__ import annotations

from commands.train_sparsity_config import SparsityConfig
from utils.config.cli import RESUME_LATEST, run_script

if __name__ == "__main__":
    run_script("commands.train_sparsity:run_sparsity_training", SparsityConfig, bare={"--resume": RESUME_LATEST})
