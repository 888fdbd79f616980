"""quantize.py: calibrate, choose bits, write the artefact, and measure what was written."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from commands.quantize_config import QuantizeConfig, parse_bytes
from commands.quantize_report import Measured, plot_sensitivity, result_table, sensitivity_rows, sensitivity_table
from deploy.artefact.folder import check_replaceable
from deploy.formats import load_runtime
from deploy.integer.export import Forms, bits_text, write_integer
from deploy.integer.runtime import FORMAT, NETWORK_NAME
from engine.evaluation.evaluator import Evaluator
from quantization.choices import Part
from quantization.network import QuantizedNetwork, quantize
from quantization.rounding.compensation import compensate_
from quantization.sensitivity import Sensitivity, mixed_precision, sensitivities, weight_bytes
from quantization.storage.sizes import FormSize, form_sizes
from tasks.choose import task_of
from tasks.measuring import open_evaluator
from tasks.task import Network, Task
from utils.config.values import warn_of_ignored
from utils.errors import ConfigError
from utils.storage.files import check_writable, write_json
from utils.storage.run_folder import RunFolder, plain

logger = logging.getLogger(__name__)


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


def run_quantization(config: QuantizeConfig) -> QuantizeResult:
    """Quantise a network, write it, measure the file, write the run folder.

    Raises:
        ConfigError, CheckpointError, DataError, QuantizationError: Something cannot be had as asked.
    """
    task = task_of(data=config.data, weights=config.weights)
    _warn_of_ignored(config, task)
    if config.threads:
        torch.set_num_threads(config.threads)
    check_replaceable(artefact_path(config), marker=NETWORK_NAME)
    check_writable(config.project)
    subject = _Subject.of(task, config)
    images = task.calibration(
        config.data_settings(), subject.network, count=config.calib_images, image_chw=subject.image_chw
    )
    network = quantize(subject.network.model, images, config=config.quantisation(), image_shape=subject.image_chw)
    check_budget(network, config)
    folder = RunFolder.begin(config)
    logger.info("results in %s", folder.path)
    table = _sensitivity(network, subject, config)
    if table:
        _write_sensitivity(table, folder.path, network=network, metric=task.metric)
    if config.budget:
        network.set_config_(mixed_precision(network, table, budget_bytes=parse_bytes(config.budget)))
    if config.compensate:  # last, for it is right for these bits alone
        logger.info("rounding weights on %d calibration images", config.calib_images)
        compensate_(network, images)
    result = _written(network, subject, config, folder=folder.path, table=table)
    folder.write_result({**plain(result), "config": plain(config)})
    logger.info("%s", result_table(result.measured, result.sizes, written=f"npz {config.layout}"))
    logger.info("%s: %s; report in %s", result.artefact, result.bits, folder.path / "result.json")
    return result


@dataclass(frozen=True, kw_only=True, eq=False)
class _Subject:
    """A network to quantise, and what it is measured by.

    Attributes:
        task: Task of the network.
        network: In evaluation mode, on the CPU.
        image_chw: Size of the images it is quantised for.
        evaluator: Measures on the val split, on the CPU.
    """

    task: Task
    network: Network
    image_chw: tuple[int, int, int]
    evaluator: Evaluator

    @classmethod
    def of(cls, task: Task, config: QuantizeConfig) -> _Subject:
        """Read weights and data."""
        network = task.load(config.weights)
        return cls(
            task=task,
            network=network,
            image_chw=task.input_chw(network, config.image_hw),
            evaluator=open_evaluator(task, config.data_settings(), network, device=torch.device("cpu")),
        )

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
    }
    warn_of_ignored(config, reasons)


def artefact_path(config: QuantizeConfig) -> Path:
    """Where the artefact is written: best_w8a8_integer_model, best_mixed_a8_integer_model."""
    weights = Path(config.weights)
    widths = f"w{config.weight_bits}a{config.activation_bits}"
    if config.budget:
        widths = f"mixed_a{config.activation_bits}"
    return (Path(config.output) if config.output else weights.parent) / f"{weights.stem}_{widths}{FORMAT}"


def check_budget(network: QuantizedNetwork, config: QuantizeConfig) -> None:
    """Refuse a budget that no choice of bits keeps, before anything is measured for it.

    Raises:
        ConfigError: Says the least that could be.
    """
    if not config.budget:
        return
    fewest = min(config.budget_bits)
    least = weight_bytes(network, dict.fromkeys(network.graph.weighted, fewest))
    if parse_bytes(config.budget) < least:
        raise ConfigError(
            f"--budget {config.budget}: the weights take {least / 1e3:.1f}K in {fewest} bits, the fewest of "
            "--budget-bits; raise the budget to that, or allow fewer bits"
        )


def _sensitivity(network: QuantizedNetwork, subject: _Subject, config: QuantizeConfig) -> list[Sensitivity]:
    """Measure the table that was asked for, or that a budget needs."""
    bits: Sequence[int] = config.budget_bits if config.budget else config.sensitivity
    part: Part = "weights" if config.budget else config.sensitivity_part
    if not bits:
        return []

    def metric(quantised: nn.Module) -> float:
        assert isinstance(quantised, QuantizedNetwork), "sensitivities measures what it is given"
        return subject.score(quantised, num_images=config.sensitivity_images)

    return sensitivities(network, metric, bits=sorted(set(bits)), part=part)


def _write_sensitivity(table: Sequence[Sensitivity], folder: Path, *, network: QuantizedNetwork, metric: str) -> None:
    rows = sensitivity_rows(table, num_bytes=lambda layer, bits: weight_bytes(network, {layer: bits}))
    write_json(folder / "sensitivity.json", [plain(row) for row in rows])
    losses: dict[int, dict[str, float]] = {}
    for row in table:
        losses.setdefault(row.bits, {})[row.layer] = row.loss
    plot_sensitivity(losses, folder / "sensitivity.png", metric=metric)
    logger.info("%s", sensitivity_table(rows, metric=metric))


def _written(
    network: QuantizedNetwork,
    subject: _Subject,
    config: QuantizeConfig,
    *,
    folder: Path,
    table: Sequence[Sensitivity],
) -> QuantizeResult:
    """Write the artefact and measure it."""
    program, path = network.to_program(), artefact_path(config)
    source = subject.task.source(subject.network, path=config.weights)
    write_integer(program, path, source=source, forms=Forms(layout=config.layout, with_yaml=config.yaml))
    logger.info("%s: written", path)
    started = time.perf_counter()
    integer = subject.evaluator.evaluate(load_runtime(path, device=torch.device("cpu"))).score
    seconds = time.perf_counter() - started
    network.mode = "fake"
    measured = Measured(
        metric=subject.task.metric,
        floats=subject.evaluator.evaluate(subject.network.model).score,
        fake=subject.score(network) if config.fake else None,
        integer=integer,
        seconds=seconds,
    )
    return QuantizeResult(
        folder=folder,
        artefact=path,
        measured=measured,
        sizes=form_sizes(program, with_yaml=config.yaml),
        bits=bits_text(program),
        weight_bits={step.name: step.weight_bits for step in program.operations if step.weight_bits},
        sensitivity=tuple(table),
    )
