"""Train a detector sparse, so that it can be pruned."""

from __future__ import annotations

from engine.config import RESUME_LATEST
from pruning.sparse_training import SparsityConfig, run_sparsity_training
from utils.cli import run_script

if __name__ == "__main__":
    run_script(run_sparsity_training, SparsityConfig, bare={"--resume": RESUME_LATEST})
