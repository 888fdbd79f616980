"""One training run from its settings to its result: what train.py and its relatives call."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from commands.train_assembly import make_observers, make_trainer
from commands.train_config import TrainConfig
from commands.train_parts import Data, freeze_, make_model, make_val_loader, read_data, read_hyp
from commands.train_result import TrainResult, best_checkpoint, finish_run
from engine.training.checkpointing import CheckpointHook, EmaHook, SavePolicy, resumed_path
from engine.training.distributed import Process, process_group, share, this_process
from engine.training.hooks import Hook
from engine.training.resuming import load_weights_, resume_
from engine.training.sync_bn import synchronise_batch_norms_
from engine.training.trainer import TrainState
from models.detector import Detector, build_model
from models.spec import ModelSpec
from pruning.repr.hook import ReprHook, ReprSettings
from utils.config.cli import config_from_values
from utils.config.hyp import Hyp, load_hyp
from utils.datasets.loading.loader import Loader
from utils.device import amp_dtype, memory_advice, seed_everything, select_device
from utils.errors import CheckpointError
from utils.plots.labels import plot_labels
from utils.storage.checkpoint import Checkpoint, load_checkpoint
from utils.storage.files import write_yaml
from utils.storage.run_folder import RunFolder

LOGGER = logging.getLogger(__name__)

# Hooks of a method (sparsity, masks, distillation), given network, settings and run folder; they run before those of
# the engine.
HookFactory = Callable[[Detector, TrainConfig, Path], Sequence[Hook]]


def train(config: TrainConfig) -> TrainResult | None:
    """Train as `config` says, or search hyper-parameters over many such trainings.

    Returns:
        The result; None on all but the first process of a distributed run, and after a search.
    """
    if config.evolve:
        from commands.evolve import run_evolution  # which trains by `run_training`

        run_evolution(config)
        return None
    return run_training(config)


def repr_hooks(settings: ReprSettings) -> HookFactory:
    """Return the hooks of a detector's training with RePr."""

    def make(model: Detector, config: TrainConfig, folder: Path) -> Sequence[Hook]:
        settings.check_fits(config.epochs)
        return [ReprHook(model, settings=settings, folder=folder, is_plotting=not config.noplots)]

    return make


def no_hooks(model: Detector, config: TrainConfig, folder: Path) -> Sequence[Hook]:
    """Plain training."""
    return ()


def run_training(config: TrainConfig, *, hooks: HookFactory = no_hooks) -> TrainResult | None:
    """Train, validate, and write the run folder.

    Args:
        config: All settings; with `resume`, those of the resumed run count instead.
        hooks: Makes the hooks of a method, given the network, these settings and the run folder.

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
            return _continue(Path(path), config, hooks, process=process)
        run = _Run(config, process=process, device=device)
        return run.start(hooks)


def _new_folder(config: TrainConfig, hyp: Hyp) -> str:
    folder = RunFolder.begin(config)
    write_yaml(folder.path / "hyp.yaml", hyp.to_dict())
    return str(folder.path)


def _continue(path: Path, config: TrainConfig, hooks: HookFactory, *, process: Process) -> TrainResult | None:
    """Go on with the run whose last.pt is `path`, under its own settings."""
    checkpoint, folder = load_checkpoint(path), RunFolder(path=path.parent.parent)
    is_trained = checkpoint.optimizer is None
    if is_trained and ((folder.path / "result.json").exists() or not (folder.path / "hyp.yaml").exists()):
        raise CheckpointError(f"{path}: this run is complete; to train on from it use --weights {path}")
    resumed = replace(config_from_values(type(config), checkpoint.config, where=str(path)), device=config.device)
    device = select_device(config.device, local_rank=process.local_rank)
    run = _Run(resumed, process=process, device=device, names=checkpoint.names)
    LOGGER.info("resuming %s after epoch %d of %d", folder.path, checkpoint.epoch + 1, resumed.epochs)
    return run.measure(checkpoint, folder) if is_trained else run.resume(hooks, checkpoint, path)


class _Run:
    """Builds the parts of one run and joins them."""

    def __init__(
        self, config: TrainConfig, *, process: Process, device: torch.device, names: tuple[str, ...] | None = None
    ) -> None:
        self.config, self.process, self.device = config, process, device
        amp_dtype(device, config.amp_name)  # refuses what the device lacks before anything is read or written
        seed_everything(config.seed)
        self.data: Data = read_data(config, names=names)

    def start(self, hooks: HookFactory) -> TrainResult | None:
        """Train from the first epoch."""
        hyp = read_hyp(self.config)
        model = make_model(self.config, self.data, hyp=hyp)
        # Only now, so that a mistake in what was given leaves no folder behind and overwrites nothing.
        folder = share(_new_folder(self.config, hyp) if self.process.is_main else "")
        self.folder = RunFolder(path=Path(folder))
        LOGGER.info("run folder %s", self.folder.path)
        if self.process.is_main and not self.config.noplots:
            plot_labels(self.data.train, self.folder.path / "labels.jpg")
        return self._train(model, hyp, hooks)

    def resume(self, hooks: HookFactory, checkpoint: Checkpoint, path: Path) -> TrainResult | None:
        """Train on from the checkpoint at `path`."""
        self.folder = RunFolder(path=path.parent.parent)
        model = build_model(ModelSpec.from_dict(checkpoint.spec))
        load_weights_(model, checkpoint, where=str(path))
        freeze_(model, self.config.freeze)
        hyp = load_hyp(self.folder.path / "hyp.yaml")
        return self._train(model, hyp, hooks, restore_=partial(resume_, checkpoint=checkpoint, where=str(path)))

    def measure(self, checkpoint: Checkpoint, folder: RunFolder) -> TrainResult | None:
        """Write the result of a run that was killed between its last epoch and that."""
        if not self.process.is_main:
            return None
        loader = make_val_loader(
            self.config, build_model(ModelSpec.from_dict(checkpoint.spec)), self.data, device=self.device
        )
        state = TrainState(epoch=checkpoint.epoch, best_epoch=load_checkpoint(best_checkpoint(folder.path)).epoch)
        return finish_run(folder, state, config=self.config, loader=loader, device=self.device, seconds=0.0)

    def _train(
        self, model: Detector, hyp: Hyp, hooks: HookFactory, *, restore_: Callable[..., None] | None = None
    ) -> TrainResult | None:
        config = self.config
        advice = (
            f"lower --batch-size (now {config.batch_size}), --img-size (now {config.img_size[0]}) "
            f"or --workers (now {config.workers})"
        )
        with memory_advice(advice):
            return self._fit_and_measure(model, hyp, hooks, restore_)

    def _fit_and_measure(
        self, model: Detector, hyp: Hyp, hooks: HookFactory, restore_: Callable[..., None] | None
    ) -> TrainResult | None:
        config, started = self.config, time.perf_counter()
        model = model.to(device=self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        if config.sync_bn and self.process.world_size > 1:
            synchronise_batch_norms_(model, self.device)
        trainer = make_trainer(config, model, self.data, hyp=hyp, device=self.device, process=self.process)
        val_loader = make_val_loader(config, model, self.data, device=self.device)
        assert isinstance(trainer.loader, Loader)  # as `make_trainer` built it
        trainer.loader.start_workers()
        if self.process.is_main:
            val_loader.start_workers()
        ema = EmaHook(model, total_updates=trainer.schedule.total_updates)
        checkpoints = CheckpointHook(
            self.folder.path / "weights",
            spec=model.spec.to_dict(),
            names=self.data.train.names,
            config=config,
            ema=ema.ema,
            policy=SavePolicy(period=config.save_period, is_final_only=config.nosave),
        )
        observers = make_observers(
            config, self.data, ema=ema, loader=val_loader, device=self.device, folder=self.folder.path
        )
        trainer.hooks = [*hooks(model, config, self.folder.path), ema, *observers, checkpoints]
        if restore_ is not None:
            restore_(trainer, ema=ema.ema)
        state = trainer.fit()
        if not self.process.is_main:
            return None
        seconds = time.perf_counter() - started
        return finish_run(self.folder, state, config=config, loader=val_loader, device=self.device, seconds=seconds)
