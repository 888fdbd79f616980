"""Layers in floating point and in int8 on a runtime, chosen by measured times so that a call is within a budget."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

from deploy.artefact.runtime import RuntimeModel
from deploy.choices import Precision
from deploy.formats import FORMATS, name_of, resolve
from deploy.int8.calibration import Int8Calibration, Layers
from deploy.int8.mixes import Int8Mix, LayerTime, MixedLayer, MixSearch, loss_left
from deploy.job import ExportJob
from deploy.latency.measure import layer_times
from deploy.outputs.metadata import Metadata
from deploy.settings import Int8Budget, RuntimeOptions
from deploy.verification.latency import clock_for, measure_latencies
from pruning.channels.graph import ChannelGraph
from pruning.selection.latency_layers import timed_layers

logger = logging.getLogger(__name__)

# Writes and loads an artefact with given layers.
RunLayers: TypeAlias = Callable[[Layers, RuntimeOptions], RuntimeModel]

# Timed calls of each network, of which the fastest counts, while one is searched and at the end.
_TRIAL_RUNS, _FINAL_RUNS = 30, 60


def within_budget(
    job: ExportJob, calibration: Int8Calibration, budget: Int8Budget, *, metadata: Metadata, run: RunLayers
) -> tuple[Layers, Int8Mix]:
    """Choose the layers that stay in floating point, and round the weights of the others.

    Args:
        job: Network to export.
        calibration: The network with its ranges.
        budget: Milliseconds of a call.
        metadata: Metadata of the artefact.
        run: Function that writes and loads an artefact.

    Raises:
        ConfigError: No mix is within the budget; the message says how near one comes.
    """
    timing = _Timing.of(job, budget, metadata=metadata, run=run)
    rounded = calibration.nearest()
    times = timing.layers(calibration.choosable)
    turns = _Turns(timing, rounded, _mixed(rounded, times))

    def measure(floats: frozenset[str]) -> float:
        ms = turns.milliseconds(_mixed(rounded, floats))
        logger.info("%d of %d layers in int8: %.3g ms", len(times) - len(floats), len(times), ms)
        return ms

    search = MixSearch(times, measure, budget_ms=budget.milliseconds)
    search.check_reachable()
    shares = {error.layer: error.share for error in calibration.errors(rounded)}
    floats = search.best(shares).floats
    layers = calibration.layers(skip=floats)
    ms, int8_ms, float_ms = turns.all_three(layers, runs=_FINAL_RUNS)
    mix = Int8Mix(
        runtime=timing.runtime,
        floats=timing.floats,
        budget_ms=budget.milliseconds,
        ms=ms,
        float_ms=float_ms,
        int8_ms=int8_ms,
        loss_left=loss_left(shares, floats),
        threads=timing.options.num_threads,
        layers=[
            _mixed_layer(
                name, times.get(name), shares.get(name), precision="int8" if _is_int8(layers, name) else timing.floats
            )
            for name in calibration.network.graph.weighted
        ],
        trials=[(len(times) - len(trial.floats), trial.ms) for trial in search.trials],
    )
    _warn(mix)
    return layers, mix


@dataclass(frozen=True, kw_only=True, eq=False)
class _Timing:
    """Times layers and networks on a runtime.

    Attributes:
        job: Network to export.
        runtime: Name of the runtime.
        floats: Precision of layers that are not in int8.
        options: Threads, and whether layers that are not in int8 compute in 16 bits.
        image_chw: Size of an image.
        run: Function that writes and loads an artefact.
    """

    job: ExportJob
    runtime: str
    floats: Precision
    options: RuntimeOptions
    image_chw: tuple[int, int, int]
    run: RunLayers

    @classmethod
    def of(cls, job: ExportJob, budget: Int8Budget, *, metadata: Metadata, run: RunLayers) -> _Timing:
        """Look at what this processor computes, and say it."""
        runtime = name_of(metadata.format)
        has_fp16 = FORMATS[runtime].has_fp16
        is_half = bool(has_fp16) and bool(resolve(has_fp16)())
        if is_half:
            logger.info("%s computes in fp16 here: fp16 and int8 are mixed; run the file with --half", runtime)
        else:
            logger.info("%s has no fp16 arithmetic on this processor: only fp32 and int8 are mixed", runtime)
        return cls(
            job=job,
            runtime=runtime,
            floats="fp16" if is_half else "fp32",
            options=RuntimeOptions(threads=budget.threads, half=is_half),
            image_chw=metadata.image_chw,
            run=run,
        )

    def layers(self, names: Collection[str]) -> dict[str, LayerTime]:
        """Time layers alone, in floating point and in int8."""
        model = self.job.source.model
        graph = ChannelGraph.of(model, image_chw=self.image_chw)
        wanted = [layer for layer in timed_layers(model, graph, self.image_chw) if layer.name in names]
        found = layer_times(
            wanted, runtime=self.runtime, precisions=(self.floats, "int8"), threads=self.options.num_threads
        )
        return {name: LayerTime(floats=floats, int8=int8) for name, (floats, int8) in found.items()}

    def open(self, layers: Layers) -> RuntimeModel:
        """Write and load an artefact with these layers."""
        return self.run(layers, self.options)

    def fastest(self, runtimes: Sequence[RuntimeModel], *, runs: int) -> list[float]:
        """Return the milliseconds of the fastest call of each artefact, called in turns on a calibration image."""
        images = self.job.calibration[0].expand(self.job.settings.batch_size, -1, -1, -1)
        threads = self.options.num_threads
        latencies = measure_latencies(runtimes, images, threads=threads, runs=runs, clock=clock_for(threads))
        return [latency.fastest for latency in latencies]


class _Turns:
    """Artefacts called in turns with two others, one in int8 and one in floating point.

    The speed of a machine drifts. What is measured while these two take longer than they ever did is scaled to when
    they were fastest.

    Args:
        timing: What runs artefacts.
        int8: Layers of the first.
        floats: Layers of the second.
    """

    def __init__(self, timing: _Timing, int8: Layers, floats: Layers) -> None:
        self._timing = timing
        self._ends = [timing.open(int8), timing.open(floats)]
        self._best = [math.inf, math.inf]

    def milliseconds(self, layers: Layers) -> float:
        """Return the milliseconds of an artefact when the machine is as fast as it ever was."""
        own, *ends = self.all_three(layers, runs=_TRIAL_RUNS)
        self._best = [min(best, now) for best, now in zip(self._best, ends, strict=True)]
        return own * sum(self._best) / sum(ends)

    def all_three(self, layers: Layers, *, runs: int) -> list[float]:
        """Return the milliseconds of an artefact, then of the one in int8, then of the one in floating point."""
        return self._timing.fastest([self._timing.open(layers), *self._ends], runs=runs)


def _mixed(layers: Layers, floats: Collection[str]) -> Layers:
    """Return the layers with some of them in floating point, with whatever weights: for times alone."""
    return {name: replace(layer, integers=None) if name in floats else layer for name, layer in layers.items()}


def _is_int8(layers: Layers, name: str) -> bool:
    return name in layers and layers[name].integers is not None


def _mixed_layer(name: str, time: LayerTime | None, share: float | None, *, precision: Precision) -> MixedLayer:
    return MixedLayer(
        layer=name,
        precision=precision,
        float_ms=time.floats if time else None,
        int8_ms=time.int8 if time else None,
        share=share,
    )


def _warn(mix: Int8Mix) -> None:
    """Say where a choice is not what a budget is for."""
    if not mix.is_within:
        logger.warning(
            "--int8-budget ms=%g: measured again, the file takes %.3g ms; times of this machine vary by as much, so "
            "give a budget with more room",
            mix.budget_ms,
            mix.ms,
        )
    if not any(layer.precision == "int8" for layer in mix.layers):
        logger.warning(
            "--int8-budget ms=%g: the network is within it without int8; export without --int8", mix.budget_ms
        )
