"""`prune.py --sensitivity`: what the network loses with one layer at a time pruned, as a table, JSON and a plot."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from commands.prune_config import PruneConfig
from commands.prune_planner import planner_of
from engine.evaluation.evaluator import Evaluator, label
from pruning.selection.planner import Planner
from pruning.selection.sensitivity import LayerScore, layer_cuts, layer_scores
from tasks.choose import task_of
from tasks.measuring import open_evaluator
from utils.config.cli import config_from_values
from utils.config.values import warn_of_ignored
from utils.device import select_device
from utils.errors import CheckpointError, PruningError
from utils.plots.layers import plot_layer_losses
from utils.storage.files import check_writable, read_yaml, write_json
from utils.storage.run_folder import CONFIG_NAME, RunFolder, continued_by

LOGGER = logging.getLogger(__name__)

SENSITIVITY_NAME = "sensitivity.json"
# Settings of cuts that the shares of single layers replace.
_UNUSED = ("round", "round_direction", "min_channels", "limit", "strict", "tolerance")


@dataclass(frozen=True, kw_only=True)
class Sensitivity:
    """Content of sensitivity.json: what was measured so far.

    Attributes:
        fingerprint: Fingerprint of the network.
        dense: Scores of the network without any cut, by name; the last one decides.
        rows: Scores with one layer pruned, in the order of the network.
    """

    fingerprint: str
    dense: Mapping[str, float]
    rows: tuple[LayerScore, ...] = ()

    @property
    def metric(self) -> str:
        """Name of the score that decides, for people."""
        return label(list(self.dense)[-1])

    @property
    def score(self) -> float:
        """The score of the network without any cut that decides."""
        return list(self.dense.values())[-1]

    def has(self, layers: Sequence[str], share: float) -> bool:
        """Return whether this cut was measured."""
        return any(row.layers == tuple(layers) and row.share == share for row in self.rows)

    def save(self, folder: Path) -> None:
        """Write it into the run folder."""
        rows = [row.to_dict() for row in self.rows]
        write_json(
            folder / SENSITIVITY_NAME, {"fingerprint": self.fingerprint, "dense": dict(self.dense), "rows": rows}
        )

    @classmethod
    def load(cls, folder: Path) -> Sensitivity:
        """Read what `save` wrote.

        Raises:
            CheckpointError: The file is damaged.
        """
        path = folder / SENSITIVITY_NAME
        try:
            values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            return cls(**{**values, "rows": tuple(LayerScore.from_dict(row) for row in values["rows"])})
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{path} is damaged ({error!r}); run prune.py --sensitivity anew") from None

    def by_share(self) -> dict[float, dict[str, float]]:
        """Return what is lost of the score, by share and then by layer, in the order of the network."""
        losses: dict[float, dict[str, float]] = {share: {} for share in sorted({row.share for row in self.rows})}
        for row in self.rows:
            losses[row.share][layer_name(row)] = self.score - row.score
        return losses

    def as_text(self) -> str:
        """Return a line for each layer: its score by share pruned, and the loss; what loses most comes first."""
        losses = self.by_share()
        worst: dict[str, float] = {}
        channels: dict[str, int] = {}
        for row in self.rows:
            name, lost = layer_name(row), self.score - row.score
            worst[name], channels[name] = max(lost, worst.get(name, lost)), row.channels
        width = max(len(name) for name in channels)
        lines = [f"{'layer':{width}}  channels" + "".join(f"{share:>17.0%}" for share in losses)]
        for name in sorted(worst, key=worst.__getitem__, reverse=True):
            cells = [self._cell(by_layer.get(name)) for by_layer in losses.values()]
            lines.append(f"{name:{width}}  {channels[name]:8}{''.join(cells)}")
        return "\n".join([f"{self.metric} {self.score:.4f} without a cut; with one layer pruned:", *lines])

    def _cell(self, lost: float | None) -> str:
        return f"{'-':>17}" if lost is None else f"{self.score - lost:9.4f} {-lost:+7.4f}"

    def plot(self, path: Path) -> None:
        """Plot a bar for each layer and share."""
        losses = {f"{share:.0%} pruned": by_layer for share, by_layer in self.by_share().items()}
        plot_layer_losses(losses, path, what=f"{self.metric} lost with this layer alone pruned")


def layer_name(row: LayerScore) -> str:
    """Return the name of a row for people: its first layer, and how many others are cut with it."""
    others = len(row.layers) - 1
    return f"{row.layers[0]} +{others}" if others else row.layers[0]


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
    warn_of_ignored(config, {"--sensitivity prunes layers by its own shares": _UNUSED})
    check_writable(config.project)
    task = task_of(data=config.data, weights=config.weights, cfg=config.cfg)
    dense = task.load(config.weights)
    image_chw = task.image_chw(dense, config.img_size)
    config = replace(config, img_size=max(image_chw[1:]))
    if config.cfg:
        task.check_agrees(dense, config.cfg, weights=config.weights)
    whole = open_evaluator(task, config.training(), dense, device=select_device(config.device))
    evaluator = replace(whole, data=whole.data.few(config.sensitivity_images))
    planner = planner_of(task, dense, config, image_chw=image_chw)
    found = Sensitivity.load(folder) if folder is not None else _uncut(planner, evaluator)
    if found.fingerprint != planner.fingerprint:
        raise PruningError(f"--weights {config.weights} is not the network this run began with; put that file back")
    # Only now, so that a mistake in what was given leaves no folder behind.
    folder = folder or RunFolder.begin(config).path
    LOGGER.info("results in %s", folder)
    with continued_by(f"python prune.py --resume {folder}"):
        found = _measured(found, planner, evaluator, config, folder)
    LOGGER.info("%s", found.as_text())
    if not config.noplots:
        found.plot(folder / "sensitivity.png")
    return found


def _uncut(planner: Planner, evaluator: Evaluator) -> Sensitivity:
    """Measure the network without any cut.

    Raises:
        PruningError: It finds nothing, so that there is nothing to lose.
    """
    found = Sensitivity(fingerprint=planner.fingerprint, dense=dict(evaluator.evaluate(planner.model).headline))
    if found.score <= 0:
        raise PruningError(
            f"the network has {found.metric} {found.score:.3f} on this data before any channel is cut, so no layer "
            "can lose any; check --data and --img-size"
        )
    return found


def _measured(
    found: Sensitivity, planner: Planner, evaluator: Evaluator, config: PruneConfig, folder: Path
) -> Sensitivity:
    """Measure the cuts that are missing, and write each into the folder."""
    found.save(folder)
    cuts = layer_cuts(planner, config.sensitivity)
    missing = [item for item in cuts if not found.has(item.layers, item.share)]
    began = time.monotonic()
    scores = layer_scores(planner, missing, lambda model: evaluator.evaluate(model).headline, carry=config.constants)
    for done, row in enumerate(scores, start=1):
        found = replace(found, rows=(*found.rows, row))
        found.save(folder)
        minutes = (time.monotonic() - began) / 60 * (len(missing) - done) / done
        text = ", ".join(f"{label(name)} {value:.3f}" for name, value in row.headline.items())
        LOGGER.info(
            "%d of %d: %s without %d of %d channels: %s, %.1f min left",
            *(len(cuts) - len(missing) + done, len(cuts), layer_name(row), row.pruned, row.channels, text, minutes),
        )
    return found
