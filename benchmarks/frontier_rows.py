"""The networks of the frontier: how each is trained from COCO weights, with the same number of epochs in all.

Every training has the defaults of train.py. Ours is slim.py with its preset full, whose shares of dense, sparse and
fine-tuning epochs are kept whatever their sum is. torch-pruning trains with its regulariser for as long as ours
trains before the cut, rounds widths to 8 where that reaches the target, and is taught by the network before the cut.
Smaller networks are also slimmed from higher image sizes than all others, to the same speeds.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from benchmarks.pruning_peer import PeerRegulariser, prune_with_peer
from benchmarks.pruning_speed import import_torch_pruning
from benchmarks.training_settings import training_settings
from commands.finetune import run_finetuning
from commands.finetune_config import FinetuneConfig
from commands.prune import CHECKPOINT_NAME
from commands.slim import run_slimming
from commands.slim_config import STAGES, SlimConfig
from commands.train import run_training, train_stage
from commands.train_config import TrainConfig
from commands.train_result import TrainResult, best_checkpoint
from utils.config.cli import RECIPES
from utils.config.shipped import find_shipped
from utils.errors import PruningError
from utils.storage.files import read_yaml

LOGGER = logging.getLogger(__name__)

Way = Literal["dense", "torch-pruning", "ours", "trained", "higher"]

# A dense network is there before them, and the benchmark exports.
_OUR_STAGES = STAGES[1:-1]

# Widths that ncnn is fast at, which our latency table finds by itself.
_PEER_ROUND = 8


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What every training of the benchmark shares.

    Attributes:
        weights: COCO weights by the name of the network; the first one is the reference of speedups.
        data: Data set with the splits train, val and test.
        epochs: Epochs of a row in all.
        size: Longer side of images for all but dense and higher rows.
        higher_sizes: Longer sides of images for higher rows.
        folder: Where rows are kept.
        peer_reg: Strength of torch-pruning's regulariser.
        speeds: Speed of each dense network, by name and longer side, as a multiple of the reference's at `size`.
        settings: Further settings of all trainings, such as workers.
    """

    weights: Mapping[str, str]
    data: str
    epochs: int
    size: int
    higher_sizes: tuple[int, ...]
    folder: Path
    peer_reg: float
    speeds: Mapping[tuple[str, int], float]
    settings: Mapping[str, Any]

    @property
    def reference(self) -> str:
        """The network that speedups are relative to."""
        return next(iter(self.weights))

    def split(self, *stages: str) -> list[int]:
        """Return the epochs of these stages, in the proportions of the preset full; their sum is `epochs`."""
        preset = slim_preset()
        shares = [preset[f"{stage}_epochs" if stage != "sparse" else "epochs"] for stage in stages]
        epochs = [max(1, round(self.epochs * share / sum(shares))) for share in shares[:-1]]
        return [*epochs, max(1, self.epochs - sum(epochs))]

    def shared(self, folder: Path, *, size: int, seed: int) -> dict[str, Any]:
        """Return the settings of any training into a folder."""
        own: dict[str, Any] = {
            "notest": True,  # an epoch chosen on the images it is judged by looks better than it is
            "noplots": True,
            "cache_dir": str(self.folder / "labels"),
        }
        return {**self.settings, **training_settings(folder, data=self.data, img_size=size, seed=seed, **own)}


@dataclass(frozen=True, kw_only=True)
class Row:
    """A network of the frontier.

    Attributes:
        way: How it is made: dense, torch-pruning, ours, ours from a dense network that is trained already, or ours
            from a smaller network at a higher image size.
        network: Name of the network that it is made of.
        size: Longer side of its images.
        speedup: Wanted speed as a multiple of the dense reference's; None for dense rows.
    """

    way: Way
    network: str
    size: int
    speedup: float | None = None

    @property
    def name(self) -> str:
        """Name for --rows, and of its folders."""
        parts = [self.way, self.network]
        parts += [f"{self.size}"] if self.speedup is None or self.way == "higher" else []
        parts += [] if self.speedup is None else [f"x{self.speedup:g}"]
        return "_".join(parts)

    @property
    def line(self) -> str:
        """The curve that it lies on."""
        lines = {
            "dense": f"dense {self.network}",
            "torch-pruning": f"torch-pruning of {self.network}",
            "ours": f"ours, from {self.network}",
            "trained": f"ours, from a trained dense {self.network}",
            "higher": f"ours, from {self.network} at {self.size} px",
        }
        return lines[self.way]

    @property
    def label(self) -> str:
        """Name for readers."""
        return f"{self.line}, " + (f"{self.size} px" if self.speedup is None else f"speedup={self.speedup:g}")


def slim_preset() -> dict[str, Any]:
    """Return the settings of slim.py's preset full."""
    return read_yaml(find_shipped("full", RECIPES), what="recipe")


def rows_of(recipe: Recipe, *, sizes: tuple[int, ...], speedups: tuple[float, ...]) -> list[Row]:
    """Return all rows; a network that is as fast as a target before any cut has none for it."""
    rows = [Row(way="dense", network=network, size=size) for network in recipe.weights for size in sizes]
    networks, own = tuple(recipe.weights), (recipe.size,)
    made: tuple[tuple[Way, Sequence[str], Sequence[int]], ...] = (
        ("torch-pruning", networks, own),
        ("ours", networks, own),
        ("trained", networks[:1], own),
        ("higher", networks[1:], recipe.higher_sizes),
    )
    return rows + [
        Row(way=way, network=network, size=size, speedup=speedup)
        for way, starts, starting_sizes in made
        for network in starts
        for size in starting_sizes
        for speedup in speedups
        if speedup > recipe.speeds[network, size]
    ]


def train_row(row: Row, seed: int, recipe: Recipe) -> Path:
    """Run the stages of a row that are not complete, and return its network.

    Raises:
        ConfigError: torch-pruning is not installed.
        PruningError: The target cannot be reached.
    """
    return _TRAINED[row.way](row, seed, recipe)


def folder_of(row: Row, seed: int, recipe: Recipe) -> Path:
    """Return the folder of a row's stages and measurements."""
    return recipe.folder / f"{row.name}_seed{seed}"


def _dense(row: Row, seed: int, recipe: Recipe) -> Path:
    return _trained_dense(folder_of(row, seed, recipe), row, seed, recipe, epochs=recipe.epochs)


def _trained_dense(folder: Path, row: Row, seed: int, recipe: Recipe, *, epochs: int) -> Path:
    """Train the network of a row as it is, in the folder `dense` of a folder."""
    values = {**recipe.shared(folder / "dense", size=row.size, seed=seed), "weights": recipe.weights[row.network]}
    return train_stage(TrainConfig(**values, epochs=epochs), run_training) / "weights/last.pt"


def _peer(row: Row, seed: int, recipe: Recipe) -> Path:
    """Train with torch-pruning's regulariser, cut by its scales to the share of MACs, fine-tune."""
    peer, folder = import_torch_pruning(), folder_of(row, seed, recipe)
    dense, sparse, tuning = recipe.split("dense", "sparse", "finetune")
    values = recipe.shared(folder / "regularised", size=row.size, seed=seed)
    config = TrainConfig(**values, weights=recipe.weights[row.network], epochs=dense + sparse)

    def run_regularised(settings: TrainConfig) -> TrainResult | None:
        return run_training(
            settings,
            hooks=lambda network, _, __: [PeerRegulariser(peer, network.model, recipe.peer_reg, row.size)],
        )

    uncut = train_stage(config, run_regularised) / "weights/last.pt"
    small = folder / "cut" / CHECKPOINT_NAME
    if not small.exists():
        _cut_with_peer(uncut, small.parent, 1 / _own_speedup(row, recipe), peer=peer, size=row.size)
    values = recipe.shared(folder / "finetune", size=row.size, seed=seed)
    distill = float(slim_preset().get("distill", SlimConfig.distill))
    teaching: dict[str, Any] = {"distill": distill, "teacher": str(uncut) if distill else ""}
    tuned = FinetuneConfig(**values, weights=str(small), epochs=tuning, **teaching)
    return best_checkpoint(train_stage(tuned, run_finetuning))


def _cut_with_peer(uncut: Path, folder: Path, share: float, *, peer: Any, size: int) -> None:
    """Cut to a share of MACs with widths that ncnn is fast at; with any widths where torch-pruning finds none."""
    own: dict[str, Any] = {"peer": peer, "make": peer.importance.BNScaleImportance, "img_size": size}
    try:
        prune_with_peer(uncut, folder, share, round_to=_PEER_ROUND, **own)
    except PruningError as error:
        LOGGER.warning("%s; with round_to=%d, so widths are not rounded", error, _PEER_ROUND)
        prune_with_peer(uncut, folder, share, **own)


def _ours(row: Row, seed: int, recipe: Recipe) -> Path:
    """Slim a dense network of this many epochs, which is the same one at all speeds."""
    epochs, sparse, tuning = recipe.split("dense", "sparse", "finetune")
    folder = recipe.folder / f"begun_{row.network}_{row.size}_seed{seed}"
    dense = _trained_dense(folder, row, seed, recipe, epochs=epochs)
    return _slimmed(row, seed, recipe, weights=dense, sparse=sparse, tuning=tuning)


def _ours_from_trained(row: Row, seed: int, recipe: Recipe) -> Path:
    """Slim the network of the dense row, which is trained first where it is not yet."""
    dense = _dense(Row(way="dense", network=row.network, size=row.size), seed, recipe)
    sparse, tuning = recipe.split("sparse", "finetune")
    return _slimmed(row, seed, recipe, weights=dense, sparse=sparse, tuning=tuning)


def _slimmed(row: Row, seed: int, recipe: Recipe, *, weights: Path, sparse: int, tuning: int) -> Path:
    """Run slim.py, or go on with it."""
    folder = folder_of(row, seed, recipe) / "slim"
    if not (folder / "result.json").exists():
        # A run that was killed before it had settings is begun again.
        resume = str(folder) if (folder / "opt.yaml").exists() else ""
        values = {**slim_preset(), **recipe.shared(folder, size=row.size, seed=seed)}
        values |= {"epochs": sparse, "finetune_epochs": tuning, "target": f"speedup={_own_speedup(row, recipe):g}"}
        run_slimming(SlimConfig(**values, weights=str(weights), stages=_OUR_STAGES, resume=resume))
    return best_checkpoint(folder / "round1/finetune")


def _own_speedup(row: Row, recipe: Recipe) -> float:
    """Return how much faster a row must be than the dense network that it is made of."""
    assert row.speedup is not None
    return row.speedup / recipe.speeds[row.network, row.size]


_TRAINED: dict[Way, Callable[[Row, int, Recipe], Path]] = {
    "dense": _dense,
    "torch-pruning": _peer,
    "ours": _ours,
    "trained": _ours_from_trained,
    "higher": _ours,
}
