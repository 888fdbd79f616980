"""Train a detector on your data."""

from __future__ import annotations

from engine.config import RESUME_LATEST, TrainConfig
from engine.evolve import DEFAULT_TRIALS, run_evolution
from engine.run_result import TrainResult
from engine.training import run_training
from utils.cli import run_script


def train(config: TrainConfig) -> TrainResult | None:
    """Train as `config` says, or search hyper-parameters over many such trainings.

    Returns:
        The result; None on all but the first process of a distributed run, and after a search.
    """
    if config.evolve:
        run_evolution(config)
        return None
    return run_training(config)


if __name__ == "__main__":
    run_script(train, TrainConfig, bare={"--resume": RESUME_LATEST, "--evolve": str(DEFAULT_TRIALS)})
