"""One training run from its settings to its result: what train.py and its relatives call."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch

from commands.train_assembly import make_hooks, make_trainer
from commands.train_config import TrainConfig
from commands.train_recipe import read_hyp, settled, tell
from commands.train_result import TrainResult, best_checkpoint, finish_run
from engine.evaluation.evaluator import Evaluator
from engine.training.checkpointing import EmaHook, resumed_path
from engine.training.distributed import Process, process_group, share, this_process, wait_for_all
from engine.training.hooks import Hook
from engine.training.resuming import resume_
from engine.training.sync_bn import synchronise_batch_norms_
from engine.training.trainer import TrainState
from pruning.repr.hook import ReprHook
from tasks.choose import task_of
from tasks.task import Network, Task
from utils.config.cli import config_from_values
from utils.config.hyp import Hyp, load_hyp
from utils.config.values import warn_of_ignored
from utils.device import amp_dtype, memory_advice, seed_everything, select_device
from utils.errors import CheckpointError, ConfigError
from utils.storage.checkpoint import Checkpoint, load_checkpoint
from utils.storage.files import write_yaml
from utils.storage.run_folder import RunFolder

LOGGER = logging.getLogger(__name__)

# Hooks of a method (sparsity, masks, distillation), given network, settings and run folder; they run before those of
# the engine.
HookFactory = Callable[[Network, TrainConfig, Path], Sequence[Hook]]

_Training = TypeVar("_Training", bound=TrainConfig)


def train(config: TrainConfig) -> TrainResult | None:
    """Train as `config` says, or search hyper-parameters over many such trainings.

    Returns:
        The result; None on all but the first process of a distributed run, and after a search.
    """
    if config.evolve:
        from commands.evolve import run_evolution  # only now, for it loads Optuna

        run_evolution(config, run=run_training)
        return None
    return run_training(config)


def train_stage(config: _Training, run: Callable[[_Training], TrainResult | None]) -> Path:
    """Run a training, or continue with a killed one, or do nothing where it is complete; returns its folder."""
    folder = Path(config.project) / config.name
    last = folder / "weights/last.pt"
    is_complete, is_begun = share(((folder / "result.json").exists(), last.exists()))
    if is_complete:
        LOGGER.info("%s is complete", folder)
    else:
        run(replace(config, resume=str(last)) if is_begun else config)
    wait_for_all()
    return folder


def no_hooks(network: Network, config: TrainConfig, folder: Path) -> Sequence[Hook]:
    """Plain training."""
    return ()


def run_training(
    config: TrainConfig, *, hooks: HookFactory = no_hooks, task: Task | None = None
) -> TrainResult | None:
    """Train, validate, and write the run folder.

    Args:
        config: All settings; with `resume`, those of the resumed run count instead.
        hooks: Makes the hooks of a method, given the network, these settings and the run folder.
        task: The task, by default that of data and network; one with a network or images of your own from Python.

    Returns:
        The result on the main process, None on the others.
    """
    process = this_process()
    if not process.is_main:
        logging.disable(logging.INFO)
    device = select_device(config.device, local_rank=process.local_rank)
    with process_group(process, device):
        if config.resume:
            path = share(str(resumed_path(config.resume, config.project) if process.is_main else ""))
            result = _continue(Path(path), config, hooks, process=process, task=task)
        else:
            task = task or task_of(data=config.data, weights=config.weights, cfg=config.cfg)
            is_stepped = config.schedule_name == "multistep"
            reasons = {
                f"{task.name} does not use them": task.ignored,
                "without --schedule multistep": () if is_stepped else ("milestones",),
            }
            warn_of_ignored(config, reasons)
            result = _Run(config, task=task, process=process, device=device).start(hooks)
        # torchrun ends all processes when one fails, be it at its exit: first the main one writes its result.
        wait_for_all()
    return result


def _new_folder(config: TrainConfig, hyp: Hyp) -> str:
    folder = RunFolder.begin(config)
    write_yaml(folder.path / "hyp.yaml", hyp.to_dict())
    return str(folder.path)


def _continue(
    path: Path, config: TrainConfig, hooks: HookFactory, *, process: Process, task: Task | None
) -> TrainResult | None:
    """Go on with the run whose last.pt is `path`, under its own settings."""
    checkpoint, folder = load_checkpoint(path), RunFolder(path=path.parent.parent)
    is_trained = checkpoint.optimizer is None
    if is_trained and ((folder.path / "result.json").exists() or not (folder.path / "hyp.yaml").exists()):
        raise CheckpointError(f"{path}: this run is complete; to train on from it use --weights {path}")
    resumed = replace(config_from_values(type(config), checkpoint.config, where=str(path)), device=config.device)
    device = select_device(config.device, local_rank=process.local_rank)
    run = _Run(resumed, task=task or task_of(weights=str(path)), process=process, device=device)
    LOGGER.info("resuming %s after epoch %d of %d", folder.path, checkpoint.epoch + 1, resumed.epochs)
    return run.resume(hooks, checkpoint, path, is_trained=is_trained)


def repr_hooks(network: Network, config: TrainConfig, folder: Path) -> Sequence[Hook]:
    """Return the hook of `--repr`."""
    if not config.repr:
        return ()
    settings, is_plotting = config.repr_settings, not config.noplots
    hook = ReprHook(
        network.model, settings=settings, folder=folder, image_chw=network.trace_chw, is_plotting=is_plotting
    )
    return (hook,)


class _Run:
    """Builds the parts of one run and joins them."""

    def __init__(self, config: TrainConfig, *, task: Task, process: Process, device: torch.device) -> None:
        self.given, self.config = config, config  # what is left open is chosen once the data is known
        self.task, self.process, self.device = task, process, device
        amp_dtype(device, config.amp_name)  # refuses what the device lacks before anything is read or written
        seed_everything(config.seed)

    def start(self, hooks: HookFactory) -> TrainResult | None:
        """Train from the first epoch."""
        config, task = self.config, self.task
        if config.batch_size % (count := self.process.world_size):
            raise ConfigError(
                f"--batch-size {config.batch_size} cannot be split by {count} processes; use a multiple"
            )
        self.data = task.read_data(config)
        hyp = read_hyp(config, task.recipe)
        self.config, hyp = settled(config, hyp, task.recipe, images=len(self.data.train))
        network = task.make_network(config, self.data, hyp=hyp)
        # Only now, so that a mistake in what was given leaves no folder behind and overwrites nothing.
        folder = share(_new_folder(config, hyp) if self.process.is_main else "")
        self.folder = RunFolder(path=Path(folder))
        LOGGER.info("run folder %s", self.folder.path)
        if self.process.is_main and not config.noplots:
            task.plot_data(self.data, self.folder.path)
        return self._train(network, hyp, hooks)

    def resume(
        self, hooks: HookFactory, checkpoint: Checkpoint, path: Path, *, is_trained: bool
    ) -> TrainResult | None:
        """Train on from the checkpoint at `path`, or, killed between its last epoch and its result, write that."""
        self.folder = RunFolder(path=path.parent.parent)
        network = self.task.restored(checkpoint, self.config, where=str(path))
        self.data = self.task.read_data(self.config, network=network)
        if is_trained:
            return self._measure(network, checkpoint)
        hyp = load_hyp(self.folder.path / "hyp.yaml")
        return self._train(network, hyp, hooks, restore_=partial(resume_, checkpoint=checkpoint, where=str(path)))

    def _measure(self, network: Network, checkpoint: Checkpoint) -> TrainResult | None:
        if not self.process.is_main:
            return None
        best = load_checkpoint(best_checkpoint(self.folder.path))
        state = TrainState(epoch=checkpoint.epoch, best_epoch=best.epoch, metrics=dict(checkpoint.metrics))
        return self._finish(state, self._evaluator(network), seconds=0.0)

    def _finish(self, state: TrainState, evaluator: Evaluator, *, seconds: float) -> TrainResult:
        return finish_run(
            self.folder,
            state,
            task=self.task,
            config=self.config,
            evaluator=replace(evaluator, autocast=None),
            seconds=seconds,
        )

    def _evaluator(self, network: Network) -> Evaluator:
        data = self.task.evaluation_set(self.config, self.data.val, network=network)
        autocast = amp_dtype(self.device, self.config.amp_name) if self.task.recipe.has_mixed_validation else None
        return Evaluator(data=data, device=self.device, autocast=autocast)

    def _train(
        self, network: Network, hyp: Hyp, hooks: HookFactory, *, restore_: Callable[..., None] | None = None
    ) -> TrainResult | None:
        config = self.config
        advice = (
            f"lower --batch-size (now {config.batch_size}), --img-size (now {config.train_size}) "
            f"or --workers (now {config.workers})"
        )
        with memory_advice(advice):
            return self._fit_and_measure(network, hyp, hooks, restore_)

    def _fit_and_measure(
        self, network: Network, hyp: Hyp, hooks: HookFactory, restore_: Callable[..., None] | None
    ) -> TrainResult | None:
        config, task, started = self.config, self.task, time.perf_counter()
        model = network.model.to(device=self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        if config.sync_bn and self.process.world_size > 1:
            synchronise_batch_norms_(model, self.device)
        trainer = make_trainer(task, config, network, self.data, hyp=hyp, device=self.device, process=self.process)
        evaluator, folder = self._evaluator(network), self.folder.path
        if self.process.is_main:
            evaluator.data.start(model, self.device)
            if restore_ is None:
                tell(config, trainer.schedule, task.recipe, given=self.given, folder=folder)
        ema = None
        if task.recipe.is_averaged:
            ema = EmaHook(model, total_updates=trainer.schedule.total_updates, window=config.ema_steps)
        trainer.hooks = [
            *repr_hooks(network, config, folder),
            *hooks(network, config, folder),
            *make_hooks(task, config, network, self.data, ema=ema, evaluator=evaluator, folder=folder),
        ]
        if restore_ is not None:
            restore_(trainer, ema=ema.ema if ema else None)
        state = trainer.fit()
        if not self.process.is_main:
            return None
        model.eval()
        return self._finish(state, evaluator, seconds=time.perf_counter() - started)
