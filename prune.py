"""Cut the channels of a trained detector that matter least."""

from __future__ import annotations

from pruning.pipeline import run_pruning
from pruning.prune_config import PruneConfig
from utils.cli import run_script

if __name__ == "__main__":
    run_script(run_pruning, PruneConfig)
