"""RePr against plain training on CIFAR-10: the same network, epochs and seeds, with and without augmentation.

    python -m examples.repr_cifar --epochs 100 --seeds 0 1 2

Prakash et al., "RePr: Improved Training of Convolutional Filters", CVPR 2019: 72.1 to 76.4 % for this network.
"""

from __future__ import annotations

import json
import logging
import statistics
from dataclasses import dataclass
from pathlib import Path

from engine.classification import make_classifier, read_pictures, train_classifier
from engine.classifier_config import ClassifierConfig
from pruning.repr import ReprHook, ReprSettings
from utils.cli import run_script
from utils.datasets.classification import PictureData
from utils.datasets.picture_loader import Augment
from utils.run_folder import RunFolder

LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ReprCifarConfig:
    """Train plainly and with RePr, and compare."""

    model: str = "vanilla"  # name of the network
    data: str = "cifar10"  # cifar10, fetched once, or an .npz of x_train, y_train, x_test and y_test
    cache_dir: str = ""  # where fetched data are kept; empty is the user's cache folder
    epochs: int = 100  # of each training
    s1: int = 20  # epochs with all filters
    s2: int = 10  # epochs without those that were dropped
    cycles: int = 3  # how often that is repeated
    ratio: float = 0.3  # share of filters dropped
    seeds: tuple[int, ...] = (0, 1, 2)  # one plain and one RePr training each
    augments: tuple[Augment, ...] = ("none", "crop-flip")  # one table row each
    batch_size: int = 128  # pictures per step
    lr0: float = 0.01  # learning rate, the same from first to last epoch
    momentum: float = 0.9  # of SGD
    weight_decay: float = 0.0  # none, as RePr's filters are to differ
    project: str = "runs/repr_cifar"  # where run folders are made
    name: str = "exp"  # name of the run folder
    exist_ok: bool = False  # go on in this folder: trainings whose result.json is there are not run again


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Accuracies after the last epoch, 0 to 1, one per seed."""

    augment: str
    plain: tuple[float, ...]
    repr: tuple[float, ...]

    @property
    def gains(self) -> tuple[float, ...]:
        """By seed, in points."""
        return tuple(100 * (better - base) for base, better in zip(self.plain, self.repr, strict=True))


def run(config: ReprCifarConfig) -> None:
    """Every training, then a line per augmentation."""
    settings = ReprSettings(s1=config.s1, s2=config.s2, cycles=config.cycles, ratio=config.ratio)
    folder = RunFolder.create(project=config.project, name=config.name, exist_ok=config.exist_ok)
    folder.write_config(config)
    data = read_pictures(_training(config, folder.path, "none", seed=0, is_repr=False))
    rows = []
    for augment in config.augments:
        accuracies = {
            is_repr: tuple(
                _accuracy(config, folder.path, data, augment, seed, settings if is_repr else None)
                for seed in config.seeds
            )
            for is_repr in (False, True)
        }
        rows.append(Comparison(augment=augment, plain=accuracies[False], repr=accuracies[True]))
    for row in rows:
        LOGGER.info(
            "augmentation %-9s plain %.2f %%, RePr %.2f %%, gain %+.2f points (%s)",
            row.augment,
            100 * statistics.mean(row.plain),
            100 * statistics.mean(row.repr),
            statistics.mean(row.gains),
            ", ".join(f"{gain:+.2f}" for gain in row.gains),
        )
    folder.write_result({"rows": [{**vars(row), "gains": row.gains} for row in rows]})
    LOGGER.info("results in %s", folder.path)


def _training(
    config: ReprCifarConfig, folder: Path, augment: Augment, *, seed: int, is_repr: bool
) -> ClassifierConfig:
    return ClassifierConfig(
        model=config.model,
        data=config.data,
        cache_dir=config.cache_dir,
        epochs=config.epochs,
        batch_size=config.batch_size,
        augment=augment,
        lr0=config.lr0,
        lrf=1.0,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        warmup_epochs=0,
        seed=seed,
        project=str(folder),
        name=f"{'repr' if is_repr else 'plain'}_{augment}_seed{seed}",
        exist_ok=True,
    )


def _accuracy(
    config: ReprCifarConfig,
    folder: Path,
    data: PictureData,
    augment: Augment,
    seed: int,
    settings: ReprSettings | None,
) -> float:
    """After the last epoch of one training, which is run where its result is missing."""
    training = _training(config, folder, augment, seed=seed, is_repr=settings is not None)
    path = folder / training.name / "result.json"
    if not path.exists():
        model = make_classifier(training, data)
        hooks = []
        if settings is not None:
            hooks.append(ReprHook(model, settings=settings, folder=path.parent, image_chw=data.image_chw))
        train_classifier(model, data, config=training, hooks=hooks)
    accuracy: float = json.loads(path.read_text(encoding="utf-8"))["final_accuracy"]
    return accuracy


if __name__ == "__main__":
    run_script(run, ReprCifarConfig)
