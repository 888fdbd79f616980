"""One training run from its settings to its result: what train.py and its relatives call."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from engine.checkpointing import CheckpointHook, EmaHook
from engine.config import RESUME_LATEST, TrainConfig
from engine.distributed import Process, mean_over_ranks, process_group, share, this_process
from engine.eval_report import SamplePictures, metrics_table, result_of, save_evaluation
from engine.evaluate import EvalSettings, Evaluation, evaluate, predictor
from engine.hooks import Hook
from engine.logging_hooks import EpochLineHook, ResultsHook, TensorBoardHook
from engine.loss import DetectionLoss, LossGains
from engine.materials import Data, make_model, make_train_loader, make_val_loader, read_data, read_hyp, train_size
from engine.optim import build_optimizer
from engine.schedule import Schedule
from engine.sync_bn import synchronise_batch_norms_
from engine.trainer import Trainer, TrainerSettings, TrainState
from engine.validation import EarlyStoppingHook, ImageWeightsHook, ValidationHook
from models.detector import Detector, build_model
from models.fuse import fuse
from models.load import load_model
from models.spec import ModelSpec
from utils.checkpoint import Checkpoint, load_checkpoint
from utils.cli import config_from_values
from utils.device import amp_dtype, memory_advice, seed_everything, select_device
from utils.errors import CheckpointError
from utils.files import write_yaml
from utils.hyp import Hyp, load_hyp
from utils.plots.labels import plot_labels
from utils.run_folder import RunFolder

LOGGER = logging.getLogger(__name__)

# Hooks of a method (sparsity, masks, distillation); they run before those of the engine.
HookFactory = Callable[[Detector, TrainConfig], Sequence[Hook]]


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """Where a run ended.

    Attributes:
        folder: The run folder.
        best, last: Checkpoints.
        best_epoch: Counted from 0.
        epochs: Epochs trained.
        evaluation: Of the best checkpoint, in float32.
        seconds: Of the whole run in this process's life.
        images_per_second: While training steps ran.
    """

    folder: Path
    best: Path
    last: Path
    best_epoch: int
    epochs: int
    evaluation: Evaluation
    seconds: float
    images_per_second: float

    def to_dict(self) -> dict[str, Any]:
        """The content of result.json."""
        return {
            "best_epoch": self.best_epoch,
            "epochs": self.epochs,
            "metrics": result_of(self.evaluation),
            "seconds": self.seconds,
            "images_per_second": self.images_per_second,
            "checkpoints": {"best": str(self.best), "last": str(self.last)},
        }


def no_hooks(model: Detector, config: TrainConfig) -> Sequence[Hook]:
    """Plain training."""
    return ()


def run_training(config: TrainConfig, *, hooks: HookFactory = no_hooks) -> TrainResult | None:
    """Train, validate, and write the run folder.

    Args:
        config: All settings; with `resume`, those of the resumed run count instead.
        hooks: Makes the hooks of a method, given the network.

    Returns:
        The result on the main process, None on the others.
    """
    process = this_process()
    if not process.is_main:
        logging.disable(logging.INFO)
    device = select_device(config.device, local_rank=process.local_rank)
    with process_group(process, device):
        if config.resume:
            path = share(str(_resumed_path(config) if process.is_main else ""))
            return _continue(Path(path), config, hooks, process=process)
        run = _Run(config, process=process, device=device)
        return run.start(hooks)


def _new_folder(config: TrainConfig, hyp: Hyp) -> str:
    folder = RunFolder.create(project=config.project, name=config.name, exist_ok=config.exist_ok)
    folder.write_config(config)
    write_yaml(folder.path / "hyp.yaml", hyp.to_dict())
    return str(folder.path)


def _resumed_path(config: TrainConfig) -> Path:
    """The last.pt that `--resume` means."""
    if config.resume != RESUME_LATEST:
        return Path(config.resume)
    found = sorted(Path(config.project).glob("*/weights/last.pt"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise CheckpointError(f"--resume: no run in {config.project} has weights/last.pt; give the path of one")
    return found[-1]


def _continue(path: Path, config: TrainConfig, hooks: HookFactory, *, process: Process) -> TrainResult | None:
    """Go on with the run whose last.pt is `path`, under its own settings."""
    checkpoint = load_checkpoint(path)
    if checkpoint.optimizer is None:
        raise CheckpointError(f"{path}: this run is complete; to train on from it use --weights {path}")
    resumed = replace(config_from_values(type(config), checkpoint.config, where=str(path)), device=config.device)
    device = select_device(config.device, local_rank=process.local_rank)
    run = _Run(resumed, process=process, device=device)
    LOGGER.info("resuming %s after epoch %d of %d", path.parent.parent, checkpoint.epoch + 1, resumed.epochs)
    return run.resume(hooks, checkpoint, RunFolder(path=path.parent.parent))


class _Run:
    """Builds the parts of one run and joins them."""

    def __init__(self, config: TrainConfig, *, process: Process, device: torch.device) -> None:
        self.config, self.process, self.device = config, process, device
        self.autocast = amp_dtype(device, config.amp_name)
        seed_everything(config.seed)
        self.data: Data = read_data(config)

    def start(self, hooks: HookFactory) -> TrainResult | None:
        """Train from the first epoch."""
        hyp = read_hyp(self.config)
        model = make_model(self.config, self.data)
        # Only now, so that a mistake in what was given leaves no folder behind and overwrites nothing.
        folder = share(_new_folder(self.config, hyp) if self.process.is_main else "")
        self.folder = RunFolder(path=Path(folder))
        LOGGER.info("run folder %s", self.folder.path)
        if self.process.is_main and not self.config.noplots:
            plot_labels(self.data.train, self.folder.path / "labels.jpg")
        return self._train(model, hyp, hooks, checkpoint=None)

    def resume(self, hooks: HookFactory, checkpoint: Checkpoint, folder: RunFolder) -> TrainResult | None:
        """Train on from a checkpoint."""
        self.folder = folder
        model = build_model(ModelSpec.from_dict(checkpoint.spec))
        model.load_state_dict(checkpoint.weights)
        return self._train(model, load_hyp(self.folder.path / "hyp.yaml"), hooks, checkpoint=checkpoint)

    def _train(
        self, model: Detector, hyp: Hyp, hooks: HookFactory, *, checkpoint: Checkpoint | None
    ) -> TrainResult | None:
        config = self.config
        advice = (
            f"lower --batch-size (now {config.batch_size}), --img-size (now {config.img_size[0]}) "
            f"or --workers (now {config.workers})"
        )
        with memory_advice(advice):
            return self._fit_and_measure(model, hyp, hooks, checkpoint=checkpoint)

    def _fit_and_measure(
        self, model: Detector, hyp: Hyp, hooks: HookFactory, *, checkpoint: Checkpoint | None
    ) -> TrainResult | None:
        started = time.perf_counter()
        model = model.to(device=self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        if self.config.sync_bn and self.process.world_size > 1:
            synchronise_batch_norms_(model, self.device)
        trainer = self._trainer(model, hyp)
        ema = EmaHook(model, total_updates=trainer.schedule.total_updates)
        checkpoints = CheckpointHook(
            self.folder.path / "weights",
            ema=ema.ema,
            names=self.data.train.names,
            config=self.config,
            save_period=self.config.save_period,
            is_final_only=self.config.nosave,
        )
        trainer.hooks = [*hooks(model, self.config), ema, *self._observers(model, hyp, ema), checkpoints]
        if checkpoint is not None:
            trainer.optimizer.load_state_dict(checkpoint.optimizer or {})
            ema.ema.restore_(checkpoint.ema or {}, checkpoint.ema_updates)
            trainer.restore(checkpoint.training_state, epoch=checkpoint.epoch)
        state = trainer.fit()
        if not self.process.is_main:
            return None
        return self._finish(checkpoints, state, hyp, seconds=time.perf_counter() - started)

    def _trainer(self, model: Detector, hyp: Hyp) -> Trainer:
        config, process = self.config, self.process
        size = train_size(config, model)
        loader = make_train_loader(config, model, self.data, hyp=hyp, device=self.device, process=process)
        accumulate = max(round(config.nominal_batch / config.batch_size), 1)
        gains = LossGains.from_hyp(
            hyp, num_classes=model.spec.num_classes, num_levels=len(model.strides), img_size=size
        )
        stride = model.max_stride
        scales = range(int(size * 0.5) // stride * stride or stride, int(size * 1.5) + 1, stride)
        return Trainer(
            model,
            loss=DetectionLoss(
                gains=gains,
                anchors=model.anchors,
                strides=model.strides,
                world_size=process.world_size,
                mean_over_ranks=mean_over_ranks,
            ),
            optimizer=build_optimizer(
                config.optimizer_name,
                model,
                lr=hyp.lr0,
                momentum=hyp.momentum,
                weight_decay=hyp.weight_decay * config.batch_size * accumulate / config.nominal_batch,
            ),
            schedule=Schedule(
                name=config.schedule_name, hyp=hyp, epochs=config.epochs, batches=len(loader), accumulate=accumulate
            ),
            loader=loader,
            settings=TrainerSettings(
                epochs=config.epochs,
                device=self.device,
                autocast=self.autocast,
                seed=config.seed,
                scales=tuple(scales) if config.multi_scale else (),
            ),
            process=process,
        )

    def _observers(self, model: Detector, hyp: Hyp, ema: EmaHook) -> list[Hook]:
        """The hooks that look and report; validation first, since the others tell of it."""
        config, names = self.config, self.data.train.names
        validation = ValidationHook(
            ema=ema.ema,
            loader=make_val_loader(config, model, self.data, hyp=hyp, device=self.device),
            index=self.data.val,
            settings=EvalSettings(autocast=self.autocast, single_cls=config.single_cls, channels_last=True),
            is_final_only=config.notest,
        )
        hooks: list[Hook] = [validation, EarlyStoppingHook(config.patience)]
        if config.image_weights:
            hooks.append(ImageWeightsHook(validation=validation, index=self.data.train))
        return [
            *hooks,
            EpochLineHook(),
            ResultsHook(self.folder.path, is_plotting=not config.noplots),
            TensorBoardHook(self.folder.path, names=names, is_plotting=not config.noplots),
        ]

    def _finish(self, checkpoints: CheckpointHook, state: TrainState, hyp: Hyp, *, seconds: float) -> TrainResult:
        """Measure the best checkpoint as val.py would, and write the result."""
        best = checkpoints.best if checkpoints.best.exists() else checkpoints.last
        model = fuse(load_model(best).model).to(device=self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        names = self.data.val.names
        evaluation = evaluate(
            predictor(model),
            make_val_loader(self.config, model, self.data, hyp=hyp, device=self.device),
            self.data.val,
            settings=EvalSettings(single_cls=self.config.single_cls, channels_last=True),
            device=self.device,
            on_batch=None if self.config.noplots else SamplePictures(folder=self.folder.path, names=names),
        )
        if not self.config.noplots:
            save_evaluation(evaluation, self.folder.path, names=names)
        result = TrainResult(
            folder=self.folder.path,
            best=best,
            last=checkpoints.last,
            best_epoch=state.best_epoch,
            epochs=state.epoch + 1,
            evaluation=evaluation,
            seconds=seconds,
            images_per_second=state.images / max(state.seconds, 1e-9),
        )
        self.folder.write_result(result.to_dict())
        LOGGER.info(
            "best model, epoch %d, in float32:\n%s", state.best_epoch + 1, metrics_table(evaluation, names=names)
        )
        LOGGER.info("%s\n%s", f"checkpoints: {best}, {checkpoints.last}", f"results in {self.folder.path}")
        return result
