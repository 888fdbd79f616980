"""prune.py from its settings to its result: plan, cut, measure, write."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from commands.prune_config import PruneConfig
from commands.prune_latency import LATENCY_NAME, predicted_ms, table_for, write_layers
from commands.prune_rounds import ROUND_NAME, RoundScore, SavedRound, prune_in_rounds
from engine.evaluation.evaluator import Evaluation, Evaluator, change
from pruning.channels.graph import ChannelGraph
from pruning.selection.allocation import Allocation
from pruning.selection.latency import LatencyTable
from pruning.selection.planner import Planner
from pruning.selection.scan import Scan, scan
from pruning.selection.sensitivity import SENSITIVITY_NAME, Sensitivity, measured
from pruning.surgery.cut import apply_plan, cut
from pruning.surgery.plan import PLAN_NAME, PruningPlan
from pruning.surgery.report import NetworkSize, SurgeryReport
from pruning.zeros.masks import UnstructuredSettings, apply_masks_, l1_masks, sparsity_table
from tasks.choose import task_of
from tasks.measuring import open_evaluator
from tasks.short_training import importance_on_training_batches
from tasks.task import Network, Task
from utils.config.cli import config_from_values
from utils.config.hyp import load_hyp
from utils.config.values import warn_of_ignored
from utils.device import select_device
from utils.errors import PruningError
from utils.plots.pruning import plot_kept
from utils.storage.checkpoint import save_checkpoint
from utils.storage.files import check_writable, read_yaml, write_text
from utils.storage.run_folder import CONFIG_NAME, RunFolder, continued_by, plain

LOGGER = logging.getLogger(__name__)

CHECKPOINT_NAME = "pruned_model.pt"
# Settings that only matter where a plan is made.
_TIMING = ("runtime", "precision", "threads", "latency_table")
_PLANNING = (
    *("criterion", "shortcuts", "round", "round_direction", "min_channels", "protect", "limit"),
    *("strict", "seed"),
)
# Settings of cuts of the whole network that single layers do not have.
_WHOLE = ("round", "round_direction", "min_channels", "limit", "strict", "tolerance")


@dataclass(frozen=True, kw_only=True)
class PruneResult:
    """A pruned network.

    Attributes:
        network: In evaluation mode, on the CPU.
        plan: Channels that were kept, by layer.
        report: Sizes before and after.
        scan: Scores over percents, where asked for.
        before, after: Evaluations, where data was given.
        rounds: Scores of the dense network and after each round of `--iterative`.
        folder: The run folder; None as long as there is none, and after a dry run.
    """

    network: Network
    plan: PruningPlan
    report: SurgeryReport
    scan: Scan | None = None
    before: Evaluation | None = None
    after: Evaluation | None = None
    rounds: tuple[RoundScore, ...] = ()
    folder: Path | None = None

    @property
    def model(self) -> Any:
        """The network's module."""
        return self.network.model

    def to_dict(self) -> dict[str, Any]:
        """Return the content of result.json."""
        return {
            "report": self.report.to_dict(),
            "scan": self.scan and self.scan.to_dict(),
            "before": self.before and self.before.to_dict(),
            "after": self.after and self.after.to_dict(),
            "rounds": [score.to_dict() for score in self.rounds],
            "threshold": self.plan.settings.get("threshold"),
        }


def prune(config: PruneConfig) -> PruneResult | None:
    """Prune a checkpoint; `--latency-layers` only writes the layers to time, `--sensitivity` only measures.

    Raises:
        UserError: Anything about weights, settings or data that does not allow it; nothing is written then.
    """
    if config.sensitivity or (config.resume and (Path(config.resume) / SENSITIVITY_NAME).exists()):
        measure_sensitivity(config)
        return None
    if not config.latency_layers:
        return run_pruning(config)
    task = task_of(data=config.data, weights=config.weights, cfg=config.cfg)
    network = task.load(config.weights)
    image_chw = task.image_chw(network, config.img_size)
    write_layers(config, task, network, image_chw=image_chw, weights=config.weights)
    return None


def measure_sensitivity(config: PruneConfig) -> Sensitivity:
    """Measure one layer at a time pruned by each of the shares; nothing is trained, and no network is written.

    With `resume`, the settings of the resumed run count, but for `device`, and what it has measured is kept.

    Raises:
        UserError: Weights, settings or data do not allow it, or the network scores nothing before any cut.
    """
    folder = Path(config.resume) if config.resume else None
    if folder is not None:
        path = folder / CONFIG_NAME
        settings = config_from_values(PruneConfig, read_yaml(path, what="configuration"), where=str(path))
        config = replace(settings, device=config.device)
    warn_of_ignored(config, {"--sensitivity prunes layers by its own shares": _WHOLE})
    check_writable(config.project)
    return _Run.of(config, is_resumed=folder is not None).sensitivity(folder)


def run_pruning(config: PruneConfig) -> PruneResult:
    """Prune a checkpoint.

    Raises:
        UserError: Anything about weights, settings or data that does not allow it; nothing is written then.
    """
    saved = SavedRound.load(Path(config.resume)) if config.resume else None
    if saved is not None:
        config = saved.config_to_resume(device=config.device)
    _warn_of_ignored(config)
    if not config.dry_run:
        check_writable(config.project)
    run = _Run.of(config, is_resumed=saved is not None)
    config, evaluator = run.config, run.evaluator
    result = run.in_rounds(saved) if config.iterative else run.by_plan()
    LOGGER.info("%s", result.report.as_text())
    if config.unstructured is not None:
        _zero_weights_(result.model, config, sparsity=config.unstructured)
    if config.dry_run:
        LOGGER.info("dry run: nothing was written")
        return result
    if evaluator is not None:
        before, after = evaluator.evaluate(run.dense.model), evaluator.evaluate(result.model)
        result = replace(result, before=before, after=after)
        when = "after the last round" if config.iterative else "before any fine-tuning"
        LOGGER.info("%s: %s", when, change(before, after))
    return run.write(result)


@dataclass(frozen=True, kw_only=True)
class _Run:
    """One pruning: what is cut, by which settings, and how it is measured."""

    task: Task
    dense: Network
    config: PruneConfig
    image_chw: tuple[int, int, int]
    evaluator: Evaluator | None
    table: LatencyTable | None

    @classmethod
    def of(cls, config: PruneConfig, *, is_resumed: bool) -> _Run:
        """Read weights and data."""
        task = task_of(data=config.data, weights=config.weights, cfg=config.cfg)
        if not is_resumed:
            warn_of_ignored(config, {f"{task.name} does not use them": task.ignored_later})
        dense = task.load(config.weights)
        image_chw = task.image_chw(dense, config.img_size)
        config = replace(config, img_size=max(image_chw[1:]))
        if config.is_unstructured_only:
            # Nothing is cut, so any criterion will do, and that of kernels ranks every network.
            config = replace(config, percent=0.0, round="none", criterion="kernel_l1")
        if config.cfg:
            task.check_agrees(dense, config.cfg, weights=config.weights)
        is_measured = config.scan or (config.data and not config.dry_run)
        device = select_device(config.device)
        return cls(
            task=task,
            dense=dense,
            config=config,
            image_chw=image_chw,
            evaluator=open_evaluator(task, config.training(), dense, device=device) if is_measured else None,
            table=table_for(config, task, dense, image_chw=image_chw, weights=config.weights),
        )

    def planner(self) -> Planner:
        """Trace and rank the network, on training batches if the criterion needs them."""
        config = self.config
        measure = importance_on_training_batches(
            config.criterion,
            self.task,
            config.training(),
            self.dense,
            hyp=load_hyp(config.hyp or self.task.recipe.hyp),
            device=select_device(config.device),
            num_batches=config.taylor_batches,
        )
        settings = config.plan_settings(self.image_chw, self.dense.trace_chw, self.table)
        return Planner.of(self.dense.model, settings, measure=measure)

    def sensitivity(self, folder: Path | None) -> Sensitivity:
        """Measure one layer at a time pruned, and write what was found into the folder, or into a new one.

        Raises:
            PruningError: The network finds nothing before any cut, or is not that of the folder.
        """
        config, planner = self.config, self.planner()
        assert self.evaluator is not None, "sensitivity needs data"
        evaluator = replace(self.evaluator, data=self.evaluator.data.few(config.sensitivity_images))

        def measure(model: nn.Module) -> Mapping[str, float]:
            return evaluator.evaluate(model).headline

        begun = Sensitivity.load(folder) if folder else Sensitivity.of_uncut(planner, measure)
        if begun.fingerprint != planner.fingerprint:
            raise PruningError(
                f"--weights {config.weights} is not the network this run began with; put that file back"
            )
        # Only now, so that a mistake in what was given leaves no folder behind.
        folder = folder or RunFolder.begin(config).path
        LOGGER.info("results in %s", folder)
        with continued_by(f"python prune.py --resume {folder}"):
            for found in measured(begun, planner, measure, shares=config.sensitivity, carry=config.constants):
                found.save(folder)
        LOGGER.info("%s", found.as_text())
        if not config.noplots:
            found.plot(folder / "sensitivity.png")
        return found

    def in_rounds(self, saved: SavedRound | None) -> PruneResult:
        """Cut and train by turns."""
        rounds = prune_in_rounds(
            self.task,
            self.dense,
            self.config,
            image_chw=self.image_chw,
            saved=saved,
            table=self.table,
            evaluator=self.evaluator,
        )
        result = self._result(rounds.model, rounds.plan, folder=rounds.folder)
        return replace(result, rounds=rounds.scores)

    def by_plan(self) -> PruneResult:
        """Cut once, by a plan that is given or made now."""
        config, dense = self.config, self.dense
        if config.plan:
            plan = PruningPlan.load(Path(config.plan))
            model = apply_plan(dense.model, plan, carry=config.constants, image_chw=dense.trace_chw)
            return self._result(model, plan)
        planner, allocation, found = self._allocate()
        plan = planner.plan(allocation, settings={**plain(config), "percent": planner.settings.percent})
        # The planner has removed bottlenecks and traced the network: no need to do it again.
        model = cut(planner.model, planner.graph, allocation.dropped, carry=config.constants)
        return self._result(model, plan, found=found, milliseconds=planner.milliseconds(allocation))

    def _result(
        self,
        model: nn.Module,
        plan: PruningPlan,
        *,
        found: Scan | None = None,
        folder: Path | None = None,
        milliseconds: float | None = None,
    ) -> PruneResult:
        network, image_chw = self.dense.with_model(model), self.image_chw
        before = predicted_ms(self.dense, self.table, image_chw=image_chw)
        after = milliseconds or predicted_ms(network, self.table, image_chw=image_chw)
        report = SurgeryReport(
            before=NetworkSize.of(self.dense.model, image_chw, milliseconds=before),
            after=NetworkSize.of(model, image_chw, milliseconds=after),
        )
        self.task.check_rebuilt(network)
        return PruneResult(network=network, plan=plan, report=report, scan=found, folder=folder)

    def _allocate(self) -> tuple[Planner, Allocation, Scan | None]:
        """Return the planner, the channels it drops, and the scan that led to it."""
        config, evaluator, found = self.config, self.evaluator, None
        planner = self.planner()
        if config.scan:
            assert evaluator is not None
            found = scan(
                planner,
                lambda model: evaluator.evaluate(model).headline,
                tolerance=config.tolerance,
                carry=config.constants,
            )
            LOGGER.info("%s", found.as_text())
            if config.percent is None:
                planner = replace(planner, settings=replace(planner.settings, percent=found.recommended))
        allocation = planner.allocate()
        LOGGER.info("%s", planner.describe(allocation))
        return planner, allocation, found

    def write(self, result: PruneResult) -> PruneResult:
        """Write the run folder: checkpoint, plan, description, channel groups, plots, result.json."""
        config, network = self.config, result.network
        if result.folder is not None:
            folder = RunFolder(path=result.folder)
        else:
            folder = RunFolder.create(project=config.project, name=config.name, exist_ok=config.exist_ok)
        path, checkpoint = folder.path, folder.path / CHECKPOINT_NAME
        folder.write_config(config)
        save_checkpoint(network.to_checkpoint({"pruned_from": config.weights, **plain(config)}), checkpoint)
        result.plan.save(path / PLAN_NAME)
        if self.table is not None:
            self.table.save(path / LATENCY_NAME)
        self.task.describe(network, path)
        graph = ChannelGraph.of(network.model, image_chw=network.trace_chw)
        write_text(path / "channels.txt", graph.as_text() + "\n")
        if not config.noplots:
            plot_kept(result.report.widths, path / "kept_channels.png")
            if result.scan is not None:
                result.scan.plot(path / "scan.png")
        folder.write_result({**result.to_dict(), "checkpoint": str(checkpoint), "config": plain(config)})
        (path / ROUND_NAME).unlink(missing_ok=True)  # what is complete needs nothing to continue from
        LOGGER.info("pruned checkpoint %s\nresults in %s", checkpoint, path)
        return replace(result, folder=path)


def _zero_weights_(model: nn.Module, config: PruneConfig, *, sparsity: float) -> None:
    """Set the smallest weights of the pruned network to zero, as `--unstructured` asks."""
    settings = UnstructuredSettings(sparsity=sparsity, scope=config.unstructured_scope, protect=config.protect)
    apply_masks_(model, l1_masks(model, settings))
    LOGGER.info("%s", sparsity_table(model))


def _warn_of_ignored(config: PruneConfig) -> None:
    """Say which settings change nothing beside the others."""
    reasons = {
        "--plan says which channels are kept": _PLANNING if config.plan else (),
        "--bn-percent and --conv-percent rank by scales and by kernels": ("criterion",) if config.is_mixed else (),
        "without --target ms=... or speedup=...": () if config.is_timed else _TIMING,
        "without --scan": () if config.scan else ("tolerance",),
        "without --sensitivity": ("sensitivity_images",),
        "without --criterion taylor or fisher": () if config.is_measured else ("taylor_batches",),
    }
    warn_of_ignored(config, reasons)
