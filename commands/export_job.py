"""The network that export.py writes, the images it is compared on, and its metric."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from functools import cache
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from commands.export_config import ExportConfig
from commands.quantize_training import trained_network
from deploy.job import ExportJob
from deploy.settings import FormatSettings
from deploy.verification.verify import MeasureMetric, Reference
from engine.evaluation.evaluator import Evaluator
from tasks.choose import task_of
from tasks.measuring import open_evaluator
from tasks.settings import TaskSettings
from tasks.task import Task
from utils.config.values import warn_of_ignored
from utils.errors import ConfigError

# Images per step when the metric is measured.
_VAL_BATCH = 32


@dataclass(frozen=True, kw_only=True, eq=False)
class Prepared:
    """A network to export.

    Attributes:
        job: The network with its settings.
        images: Images (B, C, H, W) in the form of network input to compare its artefacts on.
        beside: Another network to time beside its artefacts; None if there is none.
    """

    job: ExportJob
    images: Tensor
    beside: ExportJob | None = None

    def reference(self, config: ExportConfig) -> Reference:
        """Return the network that artefacts are compared with."""
        if config.threads:
            torch.set_num_threads(config.threads)
        return Reference(
            path=Path(config.weights),
            source=self.job.source,
            images=self.images,
            threads=torch.get_num_threads(),
            measure=self.job.measure,
        )


def for_its_task(config: ExportConfig) -> tuple[Task, ExportConfig]:
    """Return the task, and the settings without those that mean nothing to it, after a warning that names them."""
    task = task_of(data=config.data, weights=config.weights)
    warn_of_ignored(config, {f"{task.name} does not use them": task.ignored_later})
    defaults: dict[str, Any] = {item.name: item.default for item in fields(config)}
    return task, replace(config, **{name: defaults[name] for name in task.ignored_later if name in defaults})


def prepare(task: Task, config: ExportConfig) -> Prepared:
    """Read the weights and the images.

    Raises:
        CheckpointError, ConfigError, DataError: Weights or data cannot be read, or do not fit each other.
    """
    network, device = task.load(config.weights), torch.device("cpu")
    image_chw = task.input_chw(network, config.image_hw)
    settings = TaskSettings(
        weights=config.weights,
        data=config.data,
        img_size=(max(config.image_hw),),
        batch_size=_VAL_BATCH,
        workers=config.workers,
        cache_dir=config.cache_dir,
    )
    evaluator = open_evaluator(task, settings, network, device=device) if config.data else None
    calibration: tuple[Tensor, ...] = ()
    rounded = None
    if config.int8_trained and not config.verify_only:
        trained, runtime = Path(config.int8_trained), config.include[0]
        rounded = trained_network(trained, runtime=runtime, task=task, network=network, image_chw=image_chw)
    elif config.int8 and not config.verify_only:
        batches = task.calibration(settings, network, count=config.calib_images, image_chw=image_chw)
        calibration = torch.split(torch.cat(batches), 1)
    job = ExportJob(
        source=task.source(network, path=config.weights),
        settings=config.settings,
        calibration=calibration,
        special=config.special,
        rounded=rounded,
        measure=_metric(evaluator) if evaluator else None,
    )
    images = task.examples(settings, network, count=config.verify_images, image_chw=image_chw)
    return Prepared(job=job, images=images, beside=_beside(task, config, image_chw) if config.beside else None)


def _beside(task: Task, config: ExportConfig, image_chw: tuple[int, int, int]) -> ExportJob:
    """Read the network that is timed beside the files; it takes the same images.

    Raises:
        CheckpointError: It cannot be read.
        ConfigError: It is of another task, or takes other images.
    """
    own = task_of(weights=config.beside)
    if own.name != task.name:
        raise ConfigError(
            f"--beside {config.beside} is for {own.name}, --weights {config.weights} for {task.name}; "
            "give two networks of one task"
        )
    network = task.load(config.beside)
    if (chw := task.input_chw(network, config.image_hw)) != image_chw:
        sizes = ["x".join(map(str, size)) for size in (chw, image_chw)]
        raise ConfigError(
            f"--beside {config.beside} takes images of {sizes[0]}, --weights {config.weights} of {sizes[1]}; times "
            "compare on the same images alone"
        )
    special = FormatSettings(compute_capability=config.compute_capability)
    return ExportJob(source=task.source(network, path=config.beside), settings=config.settings, special=special)


def _metric(evaluator: Evaluator) -> MeasureMetric:
    """Return a function that measures a runtime; that of the network is measured once for each size."""

    def score(runtime: Any, frame_hw: tuple[int, int] | None) -> float:
        return replace(evaluator, data=evaluator.data.framed(frame_hw)).evaluate(runtime).score

    return cast("MeasureMetric", cache(score))
