"""An exported file and another network, such as the dense one, on the same runtime, timed in turns."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deploy.artefact.runtime import RuntimeModel
from deploy.choices import Precision
from deploy.formats import format_of, load_runtime, resolve
from deploy.job import ExportJob
from deploy.settings import RuntimeOptions
from deploy.verification.latency import clock_for, measure_latencies
from utils.errors import CheckpointError
from utils.storage.run_folder import plain

# Timed calls of each network, of which the fastest counts; one that other programs leave alone is rare.
_RUNS = 60
# Images that int8 ranges are learnt from, where no number but the time counts.
_NUM_CALIBRATION = 2


@dataclass(frozen=True, kw_only=True)
class OtherTime:
    """The other network in one precision.

    Attributes:
        precision: Precision that it computes in.
        milliseconds: Its fastest call.
        speedup: How many times as fast the artefact is.
    """

    precision: Precision
    milliseconds: float
    speedup: float


@dataclass(frozen=True, kw_only=True)
class SideBySide:
    """The fastest calls of an artefact and of another network, called in turns.

    Attributes:
        path: Path of the artefact.
        precision: Precision that the artefact computes in.
        milliseconds: Its fastest call.
        weights: Weights file of the other network.
        others: The other network: in the precision by which speed-ups count, and beside an int8 file in int8 too.
        threads: Number of threads.
        batch_size: Images of a call.
    """

    path: Path
    precision: Precision
    milliseconds: float
    weights: Path
    others: Sequence[OtherTime]
    threads: int
    batch_size: int

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for result.json."""
        return dict(plain(self))

    def as_text(self) -> str:
        """Return a line with the times and how they compare."""
        others = ", ".join(f"{other.milliseconds:.2f} ms in {other.precision}" for other in self.others)
        return (
            f"{self.path.name}: {self.milliseconds:.2f} ms in {self.precision}; {self.weights} beside it: {others}; "
            f"{self.others[0].speedup:.2f} times as fast (threads: {self.threads})"
        )


def counted_precision(precision: Precision) -> Precision:
    """Return the precision of the network by which the speed-up of a file counts: fp32 for int8, else its own."""
    return "fp32" if precision == "int8" else precision


def time_side_by_side(
    path: Path, other: ExportJob, images: Tensor, *, weights: Path, options: RuntimeOptions
) -> SideBySide:
    """Export another network to a temporary place as an artefact was, and time both in turns.

    Beside an int8 file the other network runs in fp32 and in int8, with ranges learnt from noise. What it computes is
    not verified.

    Args:
        path: The artefact.
        other: The other network, with the settings of the artefact's export.
        images: Images (B, C, H, W) in the form of network input, for both.
        weights: Weights file of the other network.
        options: Threads.

    Raises:
        CheckpointError: The artefact is damaged, or of a format that is not written.
        ConfigError: The other network cannot be exported so, or takes other images.
    """
    form = format_of(path)
    if form is None or not form.write:
        raise CheckpointError(f"{path}: not a file of a format that export.py writes; nothing can be timed beside it")
    device = torch.device("cuda" if form.needs_gpu else "cpu")
    artefact = load_runtime(path, device=device, options=options)
    precisions = list(dict.fromkeys([counted_precision(artefact.precision), artefact.precision]))
    runtimes: list[RuntimeModel] = [artefact]
    with tempfile.TemporaryDirectory() as scratch:
        for precision in precisions:
            place = Path(scratch) / f"{precision}{form.suffix}"
            resolve(form.write)(_job(other, precision, images), place)
            runtimes.append(load_runtime(place, device=device, options=options))
        threads = options.num_threads
        # The processor time of this process says nothing about the work of a GPU.
        clock = time.perf_counter if form.needs_gpu else clock_for(threads)
        own, *others = measure_latencies(runtimes, images, threads=threads, runs=_RUNS, clock=clock)
    return SideBySide(
        path=path,
        precision=artefact.precision,
        milliseconds=own.fastest,
        weights=weights,
        others=[
            OtherTime(precision=precision, milliseconds=found.fastest, speedup=found.fastest / own.fastest)
            for precision, found in zip(precisions, others, strict=True)
        ],
        threads=threads,
        batch_size=len(images),
    )


def _job(other: ExportJob, precision: Precision, images: Tensor) -> ExportJob:
    """Return the export of the other network in a precision."""
    channels, height, width = images.shape[1:]
    noise = other.source.noise(_NUM_CALIBRATION, (channels, height, width)) if precision == "int8" else images[:0]
    settings = replace(other.settings, precision=precision)
    return replace(other, settings=settings, calibration=[image[None] for image in noise])
