"""The hyper-parameters of a training, and its choices where settings leave them open: by its length, shown, kept."""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from commands.train_config import TrainConfig
from engine.training.recipe import RunLength, averaged_steps
from engine.training.schedule import Schedule
from tasks.task import Recipe
from utils.config.hyp import Hyp, load_hyp
from utils.storage.files import read_yaml, write_yaml

LOGGER = logging.getLogger(__name__)

# Hyper-parameters that settings override.
_OVERRIDES = ("lr0", "lrf", "momentum", "weight_decay", "warmup_epochs", "label_smoothing")
# File of a run folder.
RECIPE_NAME = "recipe.yaml"


def read_hyp(config: TrainConfig, recipe: Recipe) -> Hyp:
    """Return the hyper-parameters of a training.

    Args:
        config: Settings, which name the YAML or override its values.
        recipe: Where the settings name no YAML, the task's own.
    """
    hyp = load_hyp(config.hyp or recipe.hyp)
    if config.optimizer_name != "sgd":
        share = recipe.adaptive_rate if config.lr0 is None else config.lr0 / hyp.lr0
        # Biases begin the warm-up at a rate of their own, which must suit the optimiser too.
        hyp = replace(hyp, lr0=hyp.lr0 * share, warmup_bias_lr=hyp.warmup_bias_lr * share)
        if config.lr0 is None:
            LOGGER.info(
                "learning rate %g for %s (%g of the YAML's; --lr0 sets it)", hyp.lr0, config.optimizer_name, share
            )
    if not config.hyp and config.optimizer_name in recipe.momenta:
        momentum = recipe.momenta[config.optimizer_name]
        hyp = replace(hyp, momentum=momentum, warmup_momentum=momentum)
    given = {name: value for name in _OVERRIDES if (value := getattr(config, name)) is not None}
    if "momentum" in given and hyp.warmup_momentum == hyp.momentum:
        given["warmup_momentum"] = given["momentum"]  # a warm-up without one of its own
    return replace(hyp, **given)


def settled(config: TrainConfig, hyp: Hyp, recipe: Recipe, *, images: int) -> tuple[TrainConfig, Hyp]:
    """Return settings and hyper-parameters of a run with values for all that depends on its length.

    Checkpoints keep these settings, so that a resumed run goes on as it began, whatever the rules are by then.

    Args:
        config: Settings as given; those that are not None stay, and so does the rate of a YAML that is given.
        hyp: Hyper-parameters, with those that the settings override.
        recipe: Recipe of long runs of the task, with the rules for short ones.
        images: Training images.
    """
    rules, usual = recipe.short_runs, recipe.nominal_batch
    nominal, closing, lrf = usual, 0, hyp.lrf
    if rules is not None:
        length = RunLength(images=images, epochs=config.epochs)
        nominal = rules.nominal_batch(length, usual, batch_size=config.batch_size)
        if has_mosaics(config, hyp):
            closing = rules.closing(length, usual)
        if not _gives_rate(config):
            lrf = rules.last_rate(length, usual, lrf=hyp.lrf)
    chosen = replace(
        config,
        nominal_batch=nominal if config.nominal_batch is None else config.nominal_batch,
        close_mosaic=closing if config.close_mosaic is None else config.close_mosaic,
        lrf=lrf,
    )
    return chosen, replace(hyp, lrf=lrf)


def is_settled(config: TrainConfig) -> bool:
    """Return whether the settings come from `settled`, unlike those of runs of versions without it."""
    return None not in (config.nominal_batch, config.close_mosaic, config.lrf)


def has_mosaics(config: TrainConfig, hyp: Hyp) -> bool:
    """Return whether images are put together to mosaics."""
    return hyp.mosaic > 0 and not config.rect


def _gives_rate(config: TrainConfig) -> bool:
    return bool(config.hyp) or config.lrf is not None


@dataclass(frozen=True, kw_only=True)
class RunRecipe:
    """The choices of a run, in terms of its length.

    Attributes:
        steps: Optimiser steps of the run.
        nominal_batch: Images per step.
        close_mosaic: Last epochs without mosaics.
        lrf: Last learning rate as a share of the first.
        warmup_batches: Batches over which the rate rises.
        ema_steps: Last steps over which weights are averaged; None where they are not.
    """

    steps: int
    nominal_batch: int
    close_mosaic: int
    lrf: float
    warmup_batches: int
    ema_steps: float | None

    @classmethod
    def of(cls, config: TrainConfig, schedule: Schedule, *, is_averaged: bool) -> RunRecipe:
        """Return that of a run with settled settings."""
        assert config.nominal_batch is not None, "settings of `settled`"
        assert config.close_mosaic is not None, "settings of `settled`"
        steps = schedule.total_updates
        return cls(
            steps=steps,
            nominal_batch=config.nominal_batch,
            close_mosaic=config.close_mosaic,
            lrf=schedule.hyp.lrf,
            warmup_batches=schedule.warmup_batches,
            ema_steps=(config.ema_steps or averaged_steps(steps)) if is_averaged else None,
        )

    def lines(self, given: TrainConfig, schedule: Schedule, usual: Recipe) -> list[str]:
        """Say each choice in a line, with the flag that makes another.

        Args:
            given: Settings as given.
            schedule: Schedule of the run.
            usual: Recipe of long runs.
        """
        batches = schedule.epochs * schedule.batches
        lines = [
            self._steps_line(given, schedule, usual),
            f"learning rate falls to {self.lrf:g} of its start{_origin(_gives_rate(given), 'lrf')}",
            f"warm-up over {self.warmup_batches:,} of {batches:,} batches"
            + _origin(given.warmup_epochs is not None, "warmup_epochs"),
        ]
        if has_mosaics(given, schedule.hyp) and usual.short_runs is not None:
            closing = f"last {self.close_mosaic} of {schedule.epochs} epochs without mosaics, on whole images"
            text = closing if self.close_mosaic else "mosaics to the end"
            lines.insert(1, text + _origin(given.close_mosaic is not None, "close_mosaic"))
        if self.ema_steps is not None:
            text = f"weights averaged over about the last {self.ema_steps:,.0f} steps"
            lines.append(text + _origin(given.ema_steps is not None, "ema_steps"))
        return lines

    def _steps_line(self, given: TrainConfig, schedule: Schedule, usual: Recipe) -> str:
        line, long = f"nominal batch {self.nominal_batch}: {self.steps:,} steps", usual.nominal_batch
        if given.nominal_batch is None and usual.short_runs and self.nominal_batch < long:
            fewer = replace(schedule, accumulate=max(round(long / given.batch_size), 1)).total_updates
            line += f"; {long} would make {fewer:,}, too few below {usual.short_runs.long_steps:,}"
        return line + _origin(given.nominal_batch is not None, "nominal_batch")


def _origin(is_given: bool, name: str) -> str:
    """Return the end of a line: whether the setting was given, else its flag."""
    return ", as given" if is_given else f" (--{name.replace('_', '-')})"


def tell(config: TrainConfig, schedule: Schedule, recipe: Recipe, *, given: TrainConfig, folder: Path) -> None:
    """Show what a run trains with, in a line for each choice, and write it to its folder.

    Args:
        config: Settled settings.
        schedule: Schedule of the run.
        recipe: Recipe of long runs of the task.
        given: Settings as given.
        folder: Run folder.
    """
    run = RunRecipe.of(config, schedule, is_averaged=recipe.is_averaged)
    for line in run.lines(given, schedule, recipe):
        LOGGER.info("%s", line)
    write_yaml(folder / RECIPE_NAME, asdict(run))


def told(folder: Path) -> dict[str, Any]:
    """Return what `tell` wrote; nothing for runs of versions without it."""
    path = folder / RECIPE_NAME
    return read_yaml(path, what="recipe") if path.is_file() else {}
