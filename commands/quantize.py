"""quantize.py: calibrate, choose bits, train if asked for, write the artefact, and measure what was written."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn

from commands.quantize_config import QuantizeConfig, parse_bytes
from commands.quantize_files import artefact_path, check_place, form_name, write_file
from commands.quantize_report import (
    SENSITIVITY_NAME,
    Measured,
    read_sensitivity,
    result_table,
    sensitivity_rows,
    sensitivity_table,
)
from commands.quantize_training import QatRun, check_source, quantised_for, write_source
from deploy.formats import FORMATS, load_runtime
from deploy.layer_errors import LAYERS_NAME, write_layer_errors
from deploy.outputs.outputs import Source
from engine.evaluation.evaluator import Evaluator
from engine.training.distributed import process_group, share, this_process
from quantization.choices import Part
from quantization.layer_errors import layer_errors
from quantization.network import QuantizedNetwork, uncalibrated
from quantization.ranges.config import LayerBits
from quantization.rounding.compensation import compensate_
from quantization.sensitivity import Sensitivity, mixed_precision, sensitivities, weight_bytes
from quantization.storage.sizes import FormSize
from tasks.choose import task_of
from tasks.measuring import open_evaluator
from tasks.task import Network, Task
from utils.config.cli import config_from_values
from utils.config.values import warn_of_ignored
from utils.device import select_device
from utils.errors import ConfigError
from utils.plots.layers import plot_layer_losses
from utils.storage.files import read_yaml, write_json
from utils.storage.run_folder import CONFIG_NAME, RunFolder, continued_by, plain, resumed_folder

logger = logging.getLogger(__name__)

# File of a run folder with the metric of rounded real numbers before training.
_UNTRAINED_NAME = "untrained.json"
# Settings of the training with simulated rounding.
_OF_TRAINING = (
    "lr0",
    "learn_scales",
    "teacher",
    "distill",
    "features",
    "batch_size",
    "hyp",
    "augment",
    "seed",
    "device",
    "amp",
    "max_map_drop",
)


@dataclass(frozen=True, kw_only=True)
class QuantizeResult:
    """Result of a run.

    Attributes:
        folder: The run folder.
        artefact: The folder with the network in integers.
        measured: Metric of the network before and after.
        sizes: Bytes of each form of the network.
        bits: For people: how wide its integers are.
        weight_bits: Bits of each layer with weights.
        sensitivity: The table, where one was asked for.
    """

    folder: Path
    artefact: Path
    measured: Measured
    sizes: tuple[FormSize, ...]
    bits: str
    weight_bits: dict[str, int]
    sensitivity: tuple[Sensitivity, ...] = ()


def run_quantization(config: QuantizeConfig) -> QuantizeResult | None:
    """Quantise a network, train it if asked for, write it, measure the file, write the run folder.

    Args:
        config: All settings; with `resume`, those of the resumed run count instead, but for `device`.

    Returns:
        The result; None on all but the first process.

    Raises:
        ConfigError, CheckpointError, DataError, QuantizationError: Something cannot be had as asked.
        KeyboardInterrupt: The user stopped the training; the message is the command that continues it.
    """
    process = this_process()
    if not process.is_main:
        logging.disable(logging.INFO)
    with process_group(process, select_device(config.device, local_rank=process.local_rank)):
        config, folder = _resumed(config) if config.resume else (config, None)
        task = task_of(data=config.data, weights=config.weights)
        if process.is_main and folder is None:
            _warn_of_ignored(config, task)
        if config.threads:
            torch.set_num_threads(config.threads)
        check_place(config, is_resumed=folder is not None)
        subject = _Subject.of(task, config)
        if folder is not None:
            check_source(subject.source, folder)
        return _quantised(subject, config, folder)


def _resumed(config: QuantizeConfig) -> tuple[QuantizeConfig, Path]:
    """Return the settings that a run began with, but for its device, and its folder."""
    folder = Path(share(str(resumed_folder(config.resume, config.project, script="quantize"))))
    path = folder / CONFIG_NAME
    settings = config_from_values(QuantizeConfig, read_yaml(path, what="configuration"), where=str(path))
    if not settings.qat_epochs:
        raise ConfigError(f"--resume {folder}: nothing is trained in this run; run its command again")
    logger.info("resuming %s", folder)
    return replace(settings, device=config.device), folder


def _quantised(subject: _Subject, config: QuantizeConfig, folder: Path | None) -> QuantizeResult | None:
    """Do what the settings ask for, in a folder that was begun, or in a new one."""
    network = subject.quantised(config)
    training = QatRun.of(network, subject.task, subject.network, config) if config.qat_epochs else None
    is_main = this_process().is_main
    begun = share(_begin(network, subject, config, folder) if is_main else None)
    assert begun is not None, "the first process begins"
    if config.budget:
        network.set_config_(replace(network.config, layers=begun.layers))
    if config.compensate and not (training and training.is_begun(begun.folder)):
        logger.info("rounding weights on %d calibration images", config.calib_images)
        compensate_(network, subject.images)  # last, for it is right for these bits alone
    if training and not training.is_begun(begun.folder):
        training = training if share(is_main and _loses(network, subject, config, begun.folder)) else None
    if training:
        with continued_by(f"python quantize.py --resume {begun.folder}"):
            network = training.run(begun.folder)
    if not is_main:
        return None
    result = _written(network, subject, config, begun)
    reals = uncalibrated(subject.network.model, config=network.config, image_shape=subject.image_chw)
    errors = layer_errors(network, reals, subject.images)
    logger.info("%s", write_layer_errors(errors, begun.folder, name=LAYERS_NAME))
    RunFolder(path=begun.folder).write_result({**plain(result), "config": plain(config)})
    logger.info("%s", result_table(result.measured, result.sizes, written=form_name(config)))
    logger.info("%s: %s; report in %s", result.artefact, result.bits, begun.folder / "result.json")
    if training and result.measured.is_spoilt:
        logger.warning("training lost against rounding alone; give more --qat-epochs, or a lower --lr0")
    return result


def _loses(network: QuantizedNetwork, subject: _Subject, config: QuantizeConfig, folder: Path) -> bool:
    """Measure a network before training; return whether it loses so much that it is to be trained."""
    untrained = subject.score(network)
    write_json(folder / _UNTRAINED_NAME, {subject.task.metric: untrained})
    if config.max_map_drop is None:
        return True
    lost = subject.float_score - untrained
    if lost <= config.max_map_drop:
        logger.info("rounding loses %.4f, within --max-map-drop %g: nothing is trained", lost, config.max_map_drop)
    return lost > config.max_map_drop


@dataclass(frozen=True, kw_only=True, eq=False)
class _Begun:
    """A run whose bits are chosen.

    Attributes:
        folder: Run folder.
        layers: Bits of single layers, by pattern of their paths, as `QuantConfig.layers`.
        table: Cost of each layer, where that was measured.
    """

    folder: Path
    layers: Mapping[str, LayerBits]
    table: tuple[Sensitivity, ...]


def _begin(network: QuantizedNetwork, subject: _Subject, config: QuantizeConfig, folder: Path | None) -> _Begun:
    """Make the run folder, and choose the bits of each layer; a run that is resumed has both."""
    layers = network.config.layers
    table: tuple[Sensitivity, ...] = ()
    if folder is not None and (folder / SENSITIVITY_NAME).exists():
        table = read_sensitivity(folder / SENSITIVITY_NAME)
    elif folder is None:
        check_budget(network, config)
        folder = RunFolder.begin(config).path
        write_source(subject.source, folder)
        logger.info("results in %s", folder)
    if not table and (table := _sensitivity(network, subject, config)):
        _write_sensitivity(table, folder, network=network, metric=subject.task.metric)
    if config.budget:
        layers = mixed_precision(network, table, budget_bytes=parse_bytes(config.budget)).layers
    return _Begun(folder=folder, layers=layers, table=table)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Subject:
    """A network to quantise, and what it is measured by.

    Attributes:
        task: Task of the network.
        network: In evaluation mode, on the CPU.
        source: The network as a source of artefacts.
        image_chw: Size of the images it is quantised for.
        images: Training images that ranges are learnt from.
        evaluator: Measures on the val split, on the CPU.
    """

    task: Task
    network: Network
    source: Source
    image_chw: tuple[int, int, int]
    images: Sequence[Tensor]
    evaluator: Evaluator

    @classmethod
    def of(cls, task: Task, config: QuantizeConfig) -> _Subject:
        """Read weights and data."""
        network, settings = task.load(config.weights), config.data_settings()
        image_chw = task.input_chw(network, config.image_hw)
        return cls(
            task=task,
            network=network,
            source=task.source(network, path=config.weights),
            image_chw=image_chw,
            images=task.calibration(settings, network, count=config.calib_images, image_chw=image_chw),
            evaluator=open_evaluator(task, settings, network, device=torch.device("cpu")),
        )

    @cached_property
    def float_score(self) -> float:
        """Metric of the network in floating point."""
        return self.evaluator.evaluate(self.network.model).score

    def quantised(self, config: QuantizeConfig) -> QuantizedNetwork:
        """Return the network with ranges, and with its real weights."""
        return quantised_for(self.network.model, config, self.image_chw, images=self.images)

    def score(self, quantised: QuantizedNetwork, *, num_images: int = 0) -> float:
        """Measure a quantised network in its mode, on so many images; 0 are all."""
        evaluator = replace(self.evaluator, data=self.evaluator.data.few(num_images))
        return evaluator.evaluate(self.task.quantised(quantised, self.network)).score


def _warn_of_ignored(config: QuantizeConfig, task: Task) -> None:
    """Say which settings change nothing beside the others."""
    is_measured = config.sensitivity or config.budget
    reasons = {
        f"{task.name} does not use them": task.ignored_later,
        "without --observer percentile": () if config.observer == "percentile" else ("percentile",),
        "without --sensitivity": () if config.sensitivity else ("sensitivity_part",),
        "without --sensitivity and --budget": () if is_measured else ("sensitivity_images",),
        "without --budget": () if config.budget else ("budget_bits",),
        "--budget chooses the bits of weights": ("weight_bits",) if config.budget else (),
        f"{config.runtime} has a file of its own": () if config.is_all_integers else ("layout", "yaml", "float_yaml"),
        "without --qat-epochs": () if config.qat_epochs else _OF_TRAINING,
    }
    warn_of_ignored(config, reasons)


def check_budget(network: QuantizedNetwork, config: QuantizeConfig) -> None:
    """Refuse a budget that no choice of bits keeps, before anything is measured for it.

    Raises:
        ConfigError: Says the least that could be.
    """
    if not config.budget:
        return
    fewest = min(config.budget_bits)
    least = weight_bytes(network, dict.fromkeys(network.graph.layers, fewest))
    if parse_bytes(config.budget) < least:
        raise ConfigError(
            f"--budget {config.budget}: the weights take {least / 1e3:.1f}K in {fewest} bits, the fewest of "
            "--budget-bits; raise the budget to that, or allow fewer bits"
        )


def _sensitivity(network: QuantizedNetwork, subject: _Subject, config: QuantizeConfig) -> tuple[Sensitivity, ...]:
    """Measure the table that was asked for, or that a budget needs."""
    bits: Sequence[int] = config.budget_bits if config.budget else config.sensitivity
    part: Part = "weights" if config.budget else config.sensitivity_part
    if not bits:
        return ()

    def metric(quantised: nn.Module) -> float:
        assert isinstance(quantised, QuantizedNetwork), "sensitivities measures what it is given"
        return subject.score(quantised, num_images=config.sensitivity_images)

    return tuple(sensitivities(network, metric, bits=sorted(set(bits)), part=part))


def _write_sensitivity(table: Sequence[Sensitivity], folder: Path, *, network: QuantizedNetwork, metric: str) -> None:
    rows = sensitivity_rows(table, num_bytes=lambda layer, bits: weight_bytes(network, {layer: bits}))
    write_json(folder / SENSITIVITY_NAME, [plain(row) for row in rows])
    losses: dict[int, dict[str, float]] = {}
    for row in table:
        losses.setdefault(row.bits, {})[row.layer] = row.loss
    plot_layer_losses(
        {f"{bits} bits": losses[bits] for bits in sorted(losses)},
        folder / "sensitivity.png",
        what=f"{metric} lost with this layer alone quantised",
    )
    logger.info("%s", sensitivity_table(rows, metric=metric))


def _written(network: QuantizedNetwork, subject: _Subject, config: QuantizeConfig, begun: _Begun) -> QuantizeResult:
    """Write the artefact and measure it."""
    path = artefact_path(config)
    sizes, bits = write_file(network, subject.source, config, path)
    logger.info("%s: written", path)
    started = time.perf_counter()
    device = torch.device("cuda" if FORMATS[config.runtime].needs_gpu else "cpu")
    of_file = replace(subject.evaluator, device=device).evaluate(load_runtime(path, device=device)).score
    seconds = time.perf_counter() - started
    network.mode = "fake"
    measured = Measured(
        metric=subject.task.metric,
        floats=subject.float_score,
        untrained=_untrained(begun.folder, subject.task.metric) if config.qat_epochs else None,
        fake=subject.score(network) if config.fake else None,
        integer=of_file,
        seconds=seconds,
    )
    return QuantizeResult(
        folder=begun.folder,
        artefact=path,
        measured=measured,
        sizes=sizes,
        bits=bits,
        weight_bits={name: number for name, number in network.bits.weights.items() if number is not None},
        sensitivity=begun.table,
    )


def _untrained(folder: Path, metric: str) -> float:
    value = json.loads((folder / _UNTRAINED_NAME).read_text(encoding="utf-8"))[metric]
    assert isinstance(value, float)
    return value
