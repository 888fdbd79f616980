"""Cut the channels of a trained detector that matter least."""

from __future__ import annotations

from commands.prune_config import SHARES, PruneConfig
from utils.config.cli import run_script

if __name__ == "__main__":
    run_script("commands.prune:prune", PruneConfig, bare={"--sensitivity": SHARES})
