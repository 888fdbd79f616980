"""Does Taylor expansion rank channels as their removal does? LeNet5 on MNIST, over several seeds.

    python -m benchmarks.taylor_oracle --data ../shared/data/classification/mnist.npz

Spearman's rank correlation with the oracle, |change of the loss| when a channel is zero; Molchanov et al. (arXiv
1611.06440) report .73 over all layers of a larger network with each layer normalised, and .14 without.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch

from benchmarks.report import table, write_report
from engine.losses.classification import ClassificationLoss
from engine.training.task import TrainingTask
from models.classifiers import LeNet5
from pruning.channels.graph import ChannelGraph
from pruning.channels.ids import FloatArray
from pruning.importance.criteria import kernel_l1
from pruning.importance.masking import oracle_importance
from pruning.importance.products import measured_layers
from pruning.importance.taylor import taylor_importance
from utils.config.cli import run_script
from utils.datasets.classes.loader import Normalisation, PictureLoader
from utils.datasets.classes.pictures import PictureSet, read_picture_file

_IMAGE_CHW = (1, 28, 28)


@dataclass(frozen=True, kw_only=True)
class OracleConfig:
    """Compare Taylor importance with the oracle."""

    data: str  # npz with x_train (N, 28, 28) uint8 and y_train (N,)
    seeds: int = 5
    updates: int = 1000  # training of each network before the comparison
    lr: float = 0.05
    batches: int = 16  # of 64 pictures, for Taylor and oracle alike


def measure(config: OracleConfig) -> None:
    """Train, compare, write the report."""
    pictures = read_picture_file(config.data).train
    results = [_correlations(pictures, config=config, seed=seed) for seed in range(config.seeds)]
    rows = [[name, *_summary([result[name] for result in results])] for name in results[0]]
    path = write_report(
        "taylor_oracle",
        title="Importance by Taylor expansion against the oracle",
        body=table(["Spearman correlation with the oracle", "mean", "least", "largest"], rows),
        facts={
            "network": f"LeNet5, {config.updates} updates of 64 MNIST pictures at rate {config.lr:g}",
            "seeds": config.seeds,
            "measured on": f"{config.batches} batches of 64 training pictures",
            "published": ".73 with each layer normalised, .14 without (a larger network, arXiv 1611.06440)",
        },
    )
    sys.stdout.write(f"{path.read_text()}written to {path}\n")


def classification_task(pictures: PictureSet, *, batch_size: int = 64, seed: int = 0) -> TrainingTask:
    """Cross entropy on images in memory, scaled to [0, 1]."""
    channels = pictures.image_chw[0]
    unit = Normalisation.of((0.0,) * channels, (1.0,) * channels, device=pictures.images.device)
    loader = PictureLoader(pictures, batch_size=batch_size, normalisation=unit, is_training=True, seed=seed)
    return TrainingTask(loader=loader, loss=ClassificationLoss(), device=pictures.images.device)


def spearman(first: FloatArray, second: FloatArray) -> float:
    """Rank correlation of two lists (n,), in [-1, 1]; equal values share their mean rank."""
    return float(np.corrcoef(_ranks(first), _ranks(second))[0, 1])


def _ranks(values: FloatArray) -> FloatArray:
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    mean_ranks = np.cumsum(counts) - (counts - 1) / 2
    ranks: FloatArray = mean_ranks[places]
    return ranks


def _correlations(pictures: PictureSet, *, config: OracleConfig, seed: int) -> dict[str, float]:
    """Of one network: over all channels, for comparison by other criteria, and within each layer."""
    torch.manual_seed(seed)
    model = LeNet5()
    task = classification_task(pictures, seed=seed)
    task.train_(model, updates=config.updates, lr=config.lr)
    graph = ChannelGraph.of(model, image_chw=_IMAGE_CHW)
    ids = graph.prunable_ids
    # Another order than that of the training.
    batches = list(islice(task.batches(1), config.batches))
    oracle = oracle_importance(model, graph, batches, loss_fn=task.loss_of, ids=ids)
    taylor = taylor_importance(model, graph, batches, loss_fn=task.loss_of)
    plain = taylor_importance(model, graph, batches, loss_fn=task.loss_of, is_normalised=False)
    found = {
        "Taylor, each layer normalised": spearman(taylor[ids], oracle[ids]),
        "Taylor, not normalised": spearman(plain[ids], oracle[ids]),
        "kernel_l1": spearman(kernel_l1(model, graph)[ids], oracle[ids]),
    }
    for name in measured_layers(graph):
        inside = graph.layers[name].output_ids
        found[f"Taylor within {name} ({len(inside)} channels)"] = spearman(taylor[inside], oracle[inside])
    return found


def _summary(values: list[float]) -> list[str]:
    return [f"{value:.3f}" for value in (sum(values) / len(values), min(values), max(values))]


if __name__ == "__main__":
    run_script(measure, OracleConfig)
