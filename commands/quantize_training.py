"""The training of quantize.py: a network that is rounded as it will be in integers learns to make up for it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import cast

from torch import Tensor, nn

from commands.quantize_config import QAT_NAME, QuantizeConfig
from commands.train import run_training, train_stage
from commands.train_config import TrainConfig
from commands.train_result import best_checkpoint
from deploy.formats import FORMATS, resolve
from deploy.int8.calibration import Arithmetic, bits_with_floats, kept_floats
from deploy.outputs.outputs import Source
from engine.training.hooks import Hook
from pruning.features import Teaching
from pruning.zeros.hooks import FrozenZerosHook
from quantization.network import QuantizedNetwork, uncalibrated
from quantization.ranges.config import QuantConfig
from tasks.quantised import QuantisedTask
from tasks.task import Network, Task
from utils.config.cli import config_from_values
from utils.errors import CheckpointError, ConfigError
from utils.storage.files import read_yaml, write_json
from utils.storage.run_folder import CONFIG_NAME

# File of a run folder that says which network and weights it quantises.
_SOURCE_NAME = "source.json"


def quantised_for(
    model: nn.Module, config: QuantizeConfig, image_chw: tuple[int, int, int], *, images: Sequence[Tensor] = ()
) -> QuantizedNetwork:
    """Return a network that is rounded as the runtime of the settings does it, with its real weights.

    Args:
        model: Network in floating point.
        config: Settings of the command.
        image_chw: Size of an image.
        images: Images that ranges are learnt from; without any there are no ranges.
    """
    settings: QuantConfig = config.quantisation()
    arithmetic: Arithmetic | None = None if config.is_all_integers else resolve(FORMATS[config.runtime].int8)
    if arithmetic is not None:
        settings = replace(arithmetic.rounding, observer=config.observer, percentile=config.percentile)
    network = uncalibrated(model, config=settings, image_shape=image_chw)
    if arithmetic is not None:
        network.bits = bits_with_floats(network, kept_floats(network.graph, arithmetic))
    if images:
        network.calibrate(images)
        network.mode = "fake"
    return network


def write_source(source: Source, folder: Path) -> None:
    """Write, into the folder of a run, which network and weights it quantises."""
    write_json(folder / _SOURCE_NAME, dict(source.identity))


def check_source(source: Source, folder: Path) -> None:
    """Refuse the run of another network, or of other weights of the same.

    Raises:
        CheckpointError: One of them differs; the message says which.
    """
    path = folder / _SOURCE_NAME
    own = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    for what, digest in source.identity.items():
        if own.get(what) != digest:
            raise CheckpointError(
                f"{folder} quantises {what}; give the --weights of that run, or run quantize.py for these"
            )


def trained_network(
    folder: Path, *, runtime: str, task: Task, network: Network, source: Source, image_chw: tuple[int, int, int]
) -> QuantizedNetwork:
    """Return what a run of quantize.py has trained for a runtime, its scales fixed.

    Args:
        folder: The run folder.
        runtime: Name of the runtime.
        task: Task of the network.
        network: The network in floating point.
        source: The same as a source of artefacts.
        image_chw: Size of an image.

    Raises:
        ConfigError: The folder is no such run, is of another runtime, or its training is not complete.
        CheckpointError: The run is of another network, or of other weights.
    """
    path = folder / CONFIG_NAME
    if not (folder / QAT_NAME).is_dir() or not path.is_file():
        raise ConfigError(
            f"{folder}: no run of quantize.py --qat-epochs; give the folder of one, such as runs/quantize/exp"
        )
    config = config_from_values(QuantizeConfig, read_yaml(path, what="configuration"), where=str(path))
    if config.runtime != runtime:
        raise ConfigError(f"{folder} was trained for {config.runtime}, not for {runtime}; export to that runtime")
    if not (folder / QAT_NAME / "result.json").exists():
        raise ConfigError(f"{folder}: the training is not complete; python quantize.py --resume {folder}")
    check_source(source, folder)
    fresh = quantised_for(network.model, config, image_chw)
    own = QuantisedTask(task=task, floats=network, quantised=fresh, learns=config.learn_scales)
    return own.settled(best_checkpoint(folder / QAT_NAME))


@dataclass(frozen=True, kw_only=True, eq=False)
class QatRun:
    """A training with simulated rounding, which `run` begins or goes on with.

    Attributes:
        task: The network that trains, and its task.
        config: Settings of the command.
    """

    task: QuantisedTask
    config: QuantizeConfig

    @classmethod
    def of(cls, quantised: QuantizedNetwork, task: Task, floats: Network, config: QuantizeConfig) -> QatRun:
        """Prepare the training of a network, and refuse a teacher that does not fit, before anything is written.

        Args:
            quantised: Network with its ranges, which trains.
            task: Task of the network.
            floats: The network in floating point.
            config: Settings of the command.
        """
        own = QuantisedTask(task=task, floats=floats, quantised=quantised, learns=config.learn_scales)
        run = cls(task=own, config=config)
        run._hooks(floats, config.training(Path(config.project)), Path())
        return run

    def is_begun(self, folder: Path) -> bool:
        """Return whether a run folder has a checkpoint to go on from."""
        return (folder / QAT_NAME / "weights/last.pt").exists()

    def run(self, folder: Path) -> QuantizedNetwork:
        """Train on all processes, in a folder within that of the run; return the best epoch's network."""
        task = cast("Task", self.task)
        run = partial(run_training, hooks=self._hooks, task=task)
        done = train_stage(self.config.training(folder), run=run)
        return self.task.settled(best_checkpoint(done))

    def _hooks(self, network: Network, config: TrainConfig, folder: Path) -> Sequence[Hook]:
        """Return hooks for zeros that stay, and for a teacher."""
        hooks: list[Hook] = []
        masks = self.task.zero_masks()
        if masks:
            hooks.append(FrozenZerosHook(masks))
        features = 0.0 if self.config.teacher else self.config.features
        if self.config.distill or features:
            teaching = Teaching(answers=self.config.distill, features=features)
            hooks.append(self.task.distillation(self.config.teacher, network, teaching))
        return hooks
