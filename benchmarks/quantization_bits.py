"""A network in integers of 8 bits down to 2, or with bits to fit a budget: mAP or accuracy, and the size of its file.

python -m benchmarks.quantization_bits --weights pruned.pt --data data/bccd.yaml --img-size 320
python -m benchmarks.quantization_bits --weights pruned.pt --data data/bccd.yaml --img-size 320 --bits --budgets 330K
python -m benchmarks.quantization_bits --weights pruned.pt --data data/bccd.yaml --bits 4/8 4/4 --qat-epochs 24
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.report import table, write_report
from benchmarks.scores import load, scores_on
from commands.quantize import run_quantization
from commands.quantize_config import QuantizeConfig
from deploy.integer.runtime import load_integer
from deploy.settings import RuntimeOptions
from quantization.ranges.config import Observer
from utils.config.cli import run_script


@dataclass(frozen=True, kw_only=True)
class BitsConfig:
    """Quantise with given bits for weights and activations, or with mixed ones."""

    weights: str  # checkpoint of a detector or a classifier
    data: str = "data/bccd.yaml"
    img_size: int = 320
    bits: tuple[str, ...] = ("8", "7", "6", "5", "4", "3", "2")  # of weights and activations alike, or such as 4/8
    qat_epochs: int = 0  # train each with simulated rounding
    lr0: float = QuantizeConfig.lr0  # of that training
    budgets: tuple[str, ...] = ()  # of all weights, in bytes: bits of each layer's weights to fit, values in 8 bits
    sensitivity_images: int = 16  # pictures of val that these bits are chosen on
    test: bool = False  # measure what is written on the test split of a detector's data, too
    observer: Observer = QuantizeConfig.observer
    calib_images: int = QuantizeConfig.calib_images
    project: str = "runs/benchmark/quantization"
    label: str = ""  # of the report's file name


def measure(config: BitsConfig) -> None:
    """Quantise, measure what was written, write the report."""
    rows: list[list[object]] = []
    for name, settings in _ways(config):
        start = time.perf_counter()
        result = run_quantization(
            QuantizeConfig(
                weights=config.weights,
                data=config.data,
                img_size=(config.img_size,),
                **settings,
                observer=config.observer,
                calib_images=config.calib_images,
                output=f"{config.project}/{name}",
                project=config.project,
                name=f"{name}_run",
                exist_ok=True,
            )
        )
        seconds = time.perf_counter() - start
        assert result is not None, "this is the only process"
        measured, size = result.measured, next(size for size in result.sizes if size.form == "npz dense")
        rows.append([name, f"{measured.integer:.4f}", f"{measured.integer - measured.floats:+.4f}"])
        rows[-1] += [_on_test(result.artefact, config)] if config.test else []
        rows[-1] += [f"{size.num_bytes / 1e6:.3f}", f"{size.times_smaller:.1f}", f"{seconds:.0f}"]
    header = ["bits", measured.metric, "against floats", *(["on test"] if config.test else [])]
    path = write_report(
        f"quantization_bits{'_' if config.label else ''}{config.label}",
        title=f"{Path(config.weights).stem} in integers of fewer and fewer bits, {Path(config.data).stem}",
        body=table([*header, "MB", "times smaller", "seconds in all"], rows),
        facts={
            "float32": f"{measured.metric} {measured.floats:.4f}",
            "how": f"weights per channel, activations per tensor, observer {config.observer}, {config.calib_images} "
            "calibration pictures, rounding compensated; measured in integers from the file, on all of val",
        },
    )
    sys.stdout.write(f"{path.read_text()}written to {path}\n")


def _ways(config: BitsConfig) -> Iterator[tuple[str, dict[str, Any]]]:
    """Return a name for each row, and its settings."""
    for bits in config.bits:
        weights, _, activations = bits.partition("/")
        name = f"w{weights}a{activations or weights}"
        training = {"qat_epochs": config.qat_epochs, "lr0": config.lr0} if config.qat_epochs else {}
        yield name, {"weight_bits": int(weights), "activation_bits": int(activations or weights), **training}
    for budget in config.budgets:
        yield f"mixed_{budget}", {"budget": budget, "sensitivity_images": config.sensitivity_images}


def _on_test(artefact: Path, config: BitsConfig) -> str:
    """mAP50-95 of the file on the test split."""
    runtime = load_integer(artefact, device=torch.device("cpu"), options=RuntimeOptions())
    network, device = load(config.weights), torch.device("cpu")
    scores = scores_on(
        "test", network=network, data=config.data, img_size=config.img_size, runtime=runtime, device=device
    )
    return f"{scores.score:.4f}"


if __name__ == "__main__":
    run_script(measure, BitsConfig)
