"""prune.py from its settings to its result: plan, cut, measure, write."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from commands.prune_config import PruneConfig, training_config
from commands.prune_rounds import ROUND_NAME, SavedRound, prune_in_rounds
from commands.train_task import detector_taylor
from engine.evaluation.evaluate import Evaluation
from engine.evaluation.evaluator import Measure
from engine.evaluation.report import result_of
from engine.evaluation.session import round_up
from models.detector import Detector, build_model
from models.load import LoadedModel, load_model
from models.spec import ModelSpec
from pruning.channels.graph import ChannelGraph
from pruning.selection.allocation import Allocation
from pruning.selection.planner import MeasureImportance, Planner
from pruning.selection.scan import Scan, scan
from pruning.surgery.cut import apply_plan, cut
from pruning.surgery.plan import PruningPlan
from pruning.surgery.report import NetworkSize, SurgeryReport
from pruning.zeros.masks import UnstructuredSettings, apply_masks_, l1_masks, sparsity_table
from utils.config.values import warn_of_ignored
from utils.device import select_device
from utils.errors import PruningError
from utils.plots.pruning import plot_kept
from utils.storage.checkpoint import Checkpoint, save_checkpoint
from utils.storage.files import check_writable, write_text
from utils.storage.run_folder import RunFolder, plain

LOGGER = logging.getLogger(__name__)

CHECKPOINT_NAME = "pruned_model.pt"
# Settings that only matter where a plan is made.
_PLANNING = ("criterion", "shortcuts", "round", "round_direction", "min_channels", "protect", "strict", "seed")


@dataclass(frozen=True, kw_only=True)
class PruneResult:
    """A pruned network.

    Attributes:
        model: In evaluation mode, on the CPU.
        plan: Channels that were kept, by layer.
        report: Sizes before and after.
        scan: mAP over percents, where asked for.
        before, after: Evaluations, where data was given.
        folder: The run folder; None as long as there is none, and after a dry run.
    """

    model: Detector
    plan: PruningPlan
    report: SurgeryReport
    scan: Scan | None = None
    before: Evaluation | None = None
    after: Evaluation | None = None
    folder: Path | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the content of result.json."""
        return {
            "report": self.report.to_dict(),
            "scan": self.scan and self.scan.to_dict(),
            "before": self.before and result_of(self.before),
            "after": self.after and result_of(self.after),
            "threshold": self.plan.settings.get("threshold"),
        }


def run_pruning(config: PruneConfig) -> PruneResult:
    """Prune a checkpoint.

    Raises:
        UserError: Anything about weights, settings or data that does not allow it; nothing is written then.
    """
    saved = SavedRound.load(Path(config.resume)) if config.resume else None
    if saved is not None:
        config = replace(saved.config, device=config.device)
    _warn_of_ignored(config)
    if not config.dry_run:
        check_writable(config.project)
    loaded = load_model(config.weights)
    model = loaded.model
    config = replace(config, img_size=round_up(config.img_size, model.max_stride))
    if config.is_unstructured_only:
        config = replace(config, percent=0.0, round="none")
    if config.cfg:
        check_agrees(model, config.cfg, weights=config.weights)
    measure = _measure(config, loaded.names) if config.scan or (config.data and not config.dry_run) else None
    result = _pruned(loaded, config, saved=saved, measure=measure)
    LOGGER.info("%s", result.report.as_text())
    if config.unstructured is not None:
        _zero_weights_(result.model, config, sparsity=config.unstructured)
    if config.dry_run:
        LOGGER.info("dry run: nothing was written")
        return result
    if measure is not None:
        result = replace(result, before=measure(model), after=measure(result.model))
        when = "after the last round" if config.iterative else "before any fine-tuning"
        LOGGER.info("%s: %s", when, _change(result))
    return _write(result, loaded, config)


def _pruned(
    loaded: LoadedModel, config: PruneConfig, *, saved: SavedRound | None, measure: Measure | None
) -> PruneResult:
    """Return the pruned network, in rounds or by one plan."""
    before = NetworkSize.of(loaded.model, config.image_chw)
    if config.iterative:
        rounds = prune_in_rounds(loaded, config, saved=saved)
        report = SurgeryReport(before=before, after=NetworkSize.of(rounds.model, config.image_chw))
        return PruneResult(model=rounds.model, plan=rounds.plan, report=report, folder=rounds.folder)
    found: Scan | None = None
    if config.plan:
        plan = PruningPlan.load(Path(config.plan))
        pruned = apply_plan(loaded.model, plan, carry=config.constants)
    else:
        planner, allocation, found = _allocate(loaded.model, config, measure)
        plan = planner.plan(allocation, settings={**plain(config), "percent": planner.settings.percent})
        # The planner has removed bottlenecks and traced the network: no need to do it again.
        pruned = cut(planner.model, planner.graph, allocation.dropped, carry=config.constants)
    assert isinstance(pruned, Detector)
    report = SurgeryReport(before=before, after=NetworkSize.of(pruned, config.image_chw))
    return PruneResult(model=pruned, plan=plan, report=report, scan=found)


def _zero_weights_(model: Detector, config: PruneConfig, *, sparsity: float) -> None:
    """Set the smallest weights of the pruned network to zero, as `--unstructured` asks."""
    settings = UnstructuredSettings(sparsity=sparsity, scope=config.unstructured_scope, protect=config.protect)
    apply_masks_(model, l1_masks(model, settings))
    LOGGER.info("%s", sparsity_table(model))


def check_agrees(model: Detector, cfg: str, *, weights: str) -> None:
    """Refuse weights whose layers are not those of a model YAML.

    Raises:
        PruningError: Names the first layer that differs.
    """
    with torch.device("meta"):
        wanted = build_model(ModelSpec.from_yaml(cfg, num_classes=model.spec.num_classes)).state_dict()
    found = model.state_dict()
    for name in [*wanted, *found]:
        if name.endswith(".anchors"):
            continue
        shapes = [tuple(state[name].shape) if name in state else None for state in (wanted, found)]
        if shapes[0] != shapes[1]:
            there, here = (f"has {shape}" if shape else "lacks it" for shape in shapes)
            raise PruningError(
                f"--cfg {cfg} and --weights {weights} disagree at {name}: the YAML {there}, the weights {here}; "
                "give the YAML of these weights or leave --cfg out"
            )


def _measure(config: PruneConfig, names: Sequence[str]) -> Measure:
    return Measure.on_split(
        config.data,
        "val",
        names=names,
        img_size=config.img_size,
        batch_size=config.batch_size,
        device=select_device(config.device),
        workers=config.workers,
    )


def _allocate(
    model: Detector, config: PruneConfig, measure: Measure | None
) -> tuple[Planner, Allocation, Scan | None]:
    """Return the planner, the channels it drops, and the scan that led to it."""
    planner, found = Planner.of(model, config.plan_settings(), measure=_taylor(config)), None
    if config.scan:
        assert measure is not None
        found = scan(planner, _scores(measure), tolerance=config.tolerance, carry=config.constants)
        LOGGER.info("%s", found.as_text())
        if config.percent is None:
            planner = replace(planner, settings=replace(planner.settings, percent=found.recommended))
    allocation = planner.allocate()
    LOGGER.info("%s", planner.describe(allocation))
    return planner, allocation, found


def _taylor(config: PruneConfig) -> MeasureImportance:
    """Return what measures importance by Taylor expansion, where that is asked for."""
    return partial(detector_taylor, config=training_config(config), batches=config.taylor_batches)


def _warn_of_ignored(config: PruneConfig) -> None:
    """Say which settings change nothing beside the others."""
    reasons = {
        "--plan says which channels are kept": _PLANNING if config.plan else (),
        "--bn-percent and --conv-percent rank by scales and by kernels": ("criterion",) if config.is_mixed else (),
        "without --scan": () if config.scan else ("tolerance",),
        "without --criterion taylor": () if config.criterion == "taylor" else ("taylor_batches",),
    }
    warn_of_ignored(config, reasons)


def _scores(measure: Measure) -> Callable[[Detector], tuple[float, float]]:
    def scores(model: Detector) -> tuple[float, float]:
        metrics = measure(model).metrics
        return metrics.AP50, metrics.AP

    return scores


def _change(result: PruneResult) -> str:
    assert result.before is not None
    assert result.after is not None
    before, after = result.before.metrics, result.after.metrics
    return f"mAP50 {before.AP50:.3f} -> {after.AP50:.3f}, mAP {before.AP:.3f} -> {after.AP:.3f}"


def _write(result: PruneResult, loaded: LoadedModel, config: PruneConfig) -> PruneResult:
    """Write the run folder: checkpoint, plan, YAML, channel groups, plots, result.json."""
    if result.folder is not None:
        folder = RunFolder(path=result.folder)
    else:
        folder = RunFolder.create(project=config.project, name=config.name, exist_ok=config.exist_ok)
    path, checkpoint = folder.path, folder.path / CHECKPOINT_NAME
    folder.write_config(config)
    save_checkpoint(
        Checkpoint(
            spec=result.model.spec.to_dict(),
            names=loaded.names,
            weights=result.model.state_dict(),
            config={"pruned_from": config.weights, **plain(config)},
        ),
        checkpoint,
    )
    result.plan.save(path / "plan.json")
    result.model.spec.to_yaml(path / "pruned.yaml")
    write_text(path / "channels.txt", ChannelGraph.of(result.model).as_text() + "\n")
    if not config.noplots:
        plot_kept(result.report.widths, path / "kept_channels.png")
        if result.scan is not None:
            result.scan.plot(path / "scan.png")
    folder.write_result({**result.to_dict(), "checkpoint": str(checkpoint), "config": plain(config)})
    (path / ROUND_NAME).unlink(missing_ok=True)  # what is complete needs nothing to continue from
    LOGGER.info("pruned checkpoint %s\nresults in %s", checkpoint, path)
    return replace(result, folder=path)
