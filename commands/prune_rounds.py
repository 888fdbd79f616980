"""`prune.py --iterative`: the loop of `pruning.iterative` as a run that continues after it was killed."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from commands.prune_config import PruneConfig
from commands.prune_latency import LATENCY_NAME
from engine.evaluation.evaluator import Evaluator, label
from models.fingerprint import network_fingerprint
from pruning.channels.graph import ChannelGraph
from pruning.iterative import IterativeSettings, Quantity, Round, before_rounds, prune_iteratively
from pruning.selection.candidates import free_ids, least_widths
from pruning.selection.costs import Costs
from pruning.selection.latency import LatencyTable
from pruning.selection.settings import DEFAULT_PERCENT, parse_limits
from pruning.selection.targets import parse_target
from pruning.surgery.plan import PruningPlan
from tasks.choose import task_of
from tasks.short_training import short_training
from tasks.task import Network, Task
from utils.config.cli import config_from_values
from utils.config.hyp import load_hyp
from utils.device import memory_advice, select_device
from utils.errors import CheckpointError, PruningError
from utils.plots.pruning import plot_scores_over_shares
from utils.storage.checkpoint import save_checkpoint
from utils.storage.run_folder import RunFolder, plain

LOGGER = logging.getLogger(__name__)

ROUND_NAME = "last_round.pt"
# Plot of a run folder with the scores after each round.
ROUNDS_PLOT = "rounds.png"


@dataclass(frozen=True, kw_only=True)
class RoundScore:
    """Scores of the network after a round; those of the dense one come first, as round 0.

    Attributes:
        number: Rounds so far.
        pruned: Share that is pruned of the prunable channels, multiply-adds, parameters and milliseconds.
        loss: Mean loss over the updates of the round.
        headline: Scores by name; the last one decides.
    """

    number: int
    pruned: Mapping[Quantity, float]
    loss: float
    headline: Mapping[str, float]

    @classmethod
    def of(cls, state: Round, model: nn.Module, evaluator: Evaluator) -> RoundScore:
        """Measure the network after a round."""
        pruned = {name: 1 - state.now[name] / whole for name, whole in state.dense.items()}
        found = evaluator.evaluate(model).headline
        return cls(number=state.number, pruned=pruned, loss=state.loss, headline=dict(found))

    def to_dict(self) -> dict[str, Any]:
        """Return the round's part of result.json."""
        shares = {f"{name}_pruned": share for name, share in self.pruned.items()}
        return {"round": self.number, **shares, "loss": self.loss, **self.headline}

    def as_text(self) -> str:
        """Return one line for people."""
        scores = ", ".join(f"{label(name)} {value:.3f}" for name, value in self.headline.items())
        return f"after round {self.number}, {self.pruned['channels']:.1%} of channels pruned: {scores}"


def plot_scores(scores: Sequence[RoundScore], path: Path) -> None:
    """Plot the scores of all rounds over the share of channels pruned."""
    names = scores[0].headline
    lines = {label(name): [score.headline[name] for score in scores] for name in names}
    plot_scores_over_shares([score.pruned["channels"] for score in scores], lines, path, when="after each round")


@dataclass(frozen=True, kw_only=True, eq=False)
class SavedRound:
    """Content of last_round.pt: a network between two rounds, and all that a resumed run needs.

    Order of images, augmentation and dropout depend on the index of the round alone: no random state is needed.

    Attributes:
        network: As the round left it.
        round: The dense network as the last round left it.
        config: Settings of the run.
        fingerprint: Fingerprint of the dense network.
        folder: Folder of the run.
        scores: Scores after each round so far.
    """

    network: Network
    round: Round
    config: PruneConfig
    fingerprint: str
    folder: Path
    scores: tuple[RoundScore, ...] = ()

    def save(self) -> None:
        """Write it into the run folder, in place of the round before."""
        state = {"round": plain(self.round), "fingerprint": self.fingerprint, "scores": plain(self.scores)}
        checkpoint = self.network.to_checkpoint(plain(self.config), training_state=state)
        save_checkpoint(checkpoint, self.folder / ROUND_NAME)

    def config_to_resume(self, *, device: str) -> PruneConfig:
        """Return the settings of the run, with its own latency table where it has one."""
        table = self.folder / LATENCY_NAME
        path = str(table) if table.is_file() else self.config.latency_table
        return replace(self.config, device=device, latency_table=path)

    @classmethod
    def load(cls, folder: Path) -> SavedRound:
        """Read what `save` wrote; the network comes back on the CPU, in evaluation mode.

        Raises:
            CheckpointError: The run is complete or was no iterative one, or the file is damaged.
        """
        path = folder / ROUND_NAME
        if not path.is_file():
            raise CheckpointError(
                f"--resume {folder}: there is no {ROUND_NAME}; give the folder of an --iterative run that was "
                "killed, a complete one has none"
            )
        network = task_of(weights=str(path)).load(path)
        checkpoint = network.checkpoint
        content = checkpoint.training_state if checkpoint else {}
        try:
            state, fingerprint = Round.from_dict(content["round"]), str(content["fingerprint"])
            scores = tuple(RoundScore(**score) for score in content.get("scores", ()))
        except (KeyError, TypeError, AttributeError):
            raise CheckpointError(
                f"{path} contains no round of prune.py --iterative; give another run folder or start anew"
            ) from None
        assert checkpoint is not None
        config = config_from_values(PruneConfig, checkpoint.config, where=str(path))
        return cls(
            network=network,
            round=state,
            config=config,
            fingerprint=fingerprint,
            folder=folder,
            scores=scores,
        )


@dataclass(frozen=True, kw_only=True)
class PrunedInRounds:
    """A network after its last round.

    Attributes:
        model: In evaluation mode, on the CPU.
        plan: The outputs of the dense network that are kept; the numbers of what is kept have changed since.
        folder: The run folder, made before the first round.
        scores: Scores of the dense network and after each round, where they were measured.
    """

    model: nn.Module
    plan: PruningPlan
    folder: Path
    scores: tuple[RoundScore, ...] = ()


def prune_in_rounds(
    task: Task,
    dense: Network,
    config: PruneConfig,
    *,
    image_chw: tuple[int, int, int],
    saved: SavedRound | None = None,
    table: LatencyTable | None = None,
    evaluator: Evaluator | None = None,
) -> PrunedInRounds:
    """Rank, cut and train by turns; after every round the folder contains what is needed to continue.

    Args:
        task: Task of the network.
        dense: The network of `config.weights`; not touched.
        config: The settings; those of `saved` where the run continues.
        image_chw: Size of an image for which costs are counted.
        saved: The round after which to continue.
        table: Times of the layers, for a target in milliseconds.
        evaluator: Measures the network after each round, unless `config.notest`.

    Raises:
        UserError: Settings, data or network do not allow it; nothing is written before the first round.
    """
    fingerprint = network_fingerprint(dense.model)
    if saved is not None and saved.fingerprint != fingerprint:
        raise PruningError(f"--weights {config.weights} is not the network this run began with; put that file back")
    settings = iterative_settings(dense, config, image_chw=image_chw, table=table)
    start = saved.round if saved else before_rounds(dense.model, settings=settings, image_chw=image_chw)
    device = select_device(config.device)
    model = copy.deepcopy(saved.network.model if saved else dense.model).to(device)
    hyp = load_hyp(config.hyp or task.recipe.hyp)
    training = short_training(task, config.training(), dense.with_model(model), hyp=hyp, device=device)
    # Only now, so that a mistake in what was given leaves no folder behind.
    folder = saved.folder if saved else RunFolder.begin(config).path
    if table is not None:
        table.save(folder / LATENCY_NAME)

    keeper = _RoundKeeper(
        task=task,
        dense=dense,
        config=config,
        fingerprint=fingerprint,
        folder=folder,
        evaluator=None if config.notest else evaluator,
        scores=list(saved.scores) if saved else [],
    )
    if saved is None:
        keeper.keep(start, model)  # a run killed in its first round continues too
    else:
        LOGGER.info("going on in %s after %s", folder, start.as_text())
        _remove_half_written(folder)
    with memory_advice(f"lower --batch-size (now {config.batch_size}) or --img-size (now {config.img_size})"):
        pruned, last = prune_iteratively(
            model, training, settings=settings, image_chw=image_chw, start=start, on_round=keeper.keep
        )
    return PrunedInRounds(model=pruned.cpu(), plan=keeper.plan(last), folder=folder, scores=tuple(keeper.scores))


@dataclass(frozen=True, kw_only=True, eq=False)
class _RoundKeeper:
    """Measures the network after each round, and writes what is needed to continue into the run folder."""

    task: Task
    dense: Network
    config: PruneConfig
    fingerprint: str
    folder: Path
    evaluator: Evaluator | None
    scores: list[RoundScore]

    def keep(self, state: Round, pruned: nn.Module) -> None:
        """Measure and save the network after a round."""
        network = self.dense.with_model(pruned)
        self.task.check_rebuilt(network)  # what could not be loaded again is not trained on
        if self.evaluator is not None:
            self.scores.append(RoundScore.of(state, pruned, self.evaluator))
            LOGGER.info("%s", self.scores[-1].as_text())
        SavedRound(
            network=network,
            round=state,
            config=self.config,
            fingerprint=self.fingerprint,
            folder=self.folder,
            scores=tuple(self.scores),
        ).save()
        if self.scores and not self.config.noplots:
            plot_scores(self.scores, self.folder / ROUNDS_PLOT)

    def plan(self, last: Round) -> PruningPlan:
        """Return the plan that leads from the dense network to what the last round has left."""
        return PruningPlan(
            fingerprint=self.fingerprint,
            keep=_cut_layers(self.dense.model, last),
            settings=plain(self.config),
            importance=last.importance,
        )


def iterative_settings(
    network: Network,
    config: PruneConfig,
    *,
    image_chw: tuple[int, int, int],
    table: LatencyTable | None = None,
) -> IterativeSettings:
    """Return the loop's settings; the long fine-tuning at the end is left to finetune_pruned.py.

    Raises:
        PruningError: The network is as small as that already.
    """
    quantity, ratio = _share_to_remove(network, config, image_chw, table)
    return IterativeSettings(
        ratio=ratio,
        quantity=quantity,
        step=config.step,
        rank_batches=config.taylor_batches,
        updates=config.updates,
        lr=config.lr,
        final_updates=0,
        shortcuts=config.shortcuts,
        min_channels=config.min_channels,
        rounding=config.rounding,
        protect=config.protect,
        least_widths=least_widths(
            ChannelGraph.of(network.model, image_chw=network.trace_chw), parse_limits(config.limit)
        ),
        cost_power=config.power,
        latency=table,
        has_fast_widths=config.has_fast_widths,
    )


def _share_to_remove(
    network: Network, config: PruneConfig, image_chw: tuple[int, int, int], table: LatencyTable | None
) -> tuple[Quantity, float]:
    """Return what is counted, and which share of it is to be cut."""
    model = network.model
    graph = ChannelGraph.of(model, image_chw=network.trace_chw)
    if not config.target:
        percent = DEFAULT_PERCENT if config.percent is None else config.percent
        free = len(free_ids(model, graph, shortcuts=config.shortcuts, protect=config.protect))
        count = int(percent * free)
        if not count:
            raise PruningError(
                f"--percent {percent} of {free} channels that may go is none; give more, or use --shortcuts tied"
            )
        # The loop counts all prunable channels, also those that shortcuts or patterns protect.
        return "channels", count / len(graph.prunable_ids)
    target = parse_target(config.target)
    now = Costs.of(model, graph, image_chw, table).amount(target.quantity)
    goal = target.absolute(now)
    if goal >= now:
        raise PruningError(
            f"--target {config.target}: the network has no more than {now:.4g} {target.quantity}; give less than that"
        )
    return target.quantity, 1 - goal / now


def _cut_layers(dense: nn.Module, last: Round) -> dict[str, tuple[int, ...]]:
    """Kept outputs of the layers that lost some."""
    widths = {name: len(dense.get_parameter(f"{name}.weight")) for name in last.kept}
    return {name: indices for name, indices in last.kept.items() if len(indices) < widths[name]}


def _remove_half_written(folder: Path) -> None:
    """Remove what a kill in the middle of a write left."""
    for leftover in folder.glob(f".{ROUND_NAME}.*.tmp"):
        leftover.unlink()
