"""LeNet5 on MNIST in five steps: train, prune single weights, fine-tune, quantise to integers, store sparsely.

    python -m examples.lenet_mnist

The files it leaves run without torch: `python -m quantization.storage network_8bit_csr.npz pictures.npz`.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from commands.finetune import run_finetuning
from commands.finetune_config import FinetuneConfig
from commands.prune_config import PruneConfig
from commands.train import run_training, train_stage
from commands.train_config import TrainConfig
from engine.evaluation.evaluator import Evaluator
from examples.stages import Stage, experiment_folder, prune_stage
from pruning.zeros.masks import UnstructuredSettings
from quantization.network import QuantizedNetwork, quantize
from quantization.ranges.config import QuantConfig
from quantization.storage import reader
from quantization.storage.binary import load_program, save_program
from quantization.storage.sizes import float_bytes
from quantization.storage.text import save_yaml
from tasks.choose import CLASSIFICATION
from tasks.measuring import open_evaluator
from tasks.settings import TaskSettings
from tasks.task import Network
from utils.config.cli import run_script
from utils.config.values import check_least
from utils.errors import ConfigError

LOGGER = logging.getLogger(__name__)

_SPARSE_LAYOUTS = ("coo", "csr", "csc")


@dataclass(frozen=True, kw_only=True)
class LenetConfig:
    """Train, prune, fine-tune, quantise and store a LeNet5."""

    data: str = "mnist"  # mnist, fetched once, or an .npz of x_train, y_train, x_test and y_test
    cache_dir: str = ""  # where fetched data are kept; empty is the user's cache folder
    epochs: int = 20  # of the dense network
    finetune_epochs: int = 20  # of the pruned one, its zeros frozen
    sparsity: float = 0.9  # share of single weights that become zero
    bits: tuple[int, ...] = (8, 4)  # of weights and activations, one network each
    calib_images: int = 2000  # images that ranges are learnt from
    seed: int = 0  # of weights and order
    project: str = "runs/lenet"  # where run folders are made
    name: str = "exp"  # name of the run folder
    exist_ok: bool = False  # go on in this folder: complete trainings are kept, one that was begun continues

    def __post_init__(self) -> None:
        check_least(self, epochs=1, finetune_epochs=1, calib_images=1)
        UnstructuredSettings(sparsity=self.sparsity)
        for bits in self.bits:
            _quantisation(bits)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One stage of the table: its accuracy from 0 to 1, and the bytes of its smallest form."""

    stage: str
    accuracy: float
    num_bytes: int


def run(config: LenetConfig) -> None:
    """Every step, then one table and result.json."""
    folder = experiment_folder(config)
    shared: dict[str, Any] = {
        "data": config.data,
        "cache_dir": config.cache_dir,
        "seed": config.seed,
        "project": str(folder.path),
    }
    trained: dict[str, Any] = {**shared, "augment": "crop", "batch_size": 128, "patience": 0, "exist_ok": True}
    dense = Stage.of(
        train_stage(TrainConfig(cfg="lenet5", epochs=config.epochs, name="dense", **trained), run_training)
    )
    pruned = prune_stage(
        PruneConfig(weights=str(dense.weights), unstructured=config.sparsity, name="pruned", exist_ok=True, **shared)
    )
    tuning = FinetuneConfig(
        weights=str(pruned), epochs=config.finetune_epochs, lr0=0.02, freeze_zeros=True, name="sparse", **trained
    )
    sparse = Stage.of(train_stage(tuning, run_finetuning))
    network = CLASSIFICATION.load(sparse.weights)
    whole = sum(4 * parameter.numel() for parameter in network.model.parameters())
    rows = [
        Row(stage="dense float32", accuracy=dense.accuracy, num_bytes=whole),
        Row(stage=f"{config.sparsity:.0%} zeros, float32", accuracy=sparse.accuracy, num_bytes=whole),
    ]
    settings = TaskSettings(data=config.data, cache_dir=config.cache_dir)
    evaluator = open_evaluator(CLASSIFICATION, settings, network, device=torch.device("cpu"))
    for bits in config.bits:
        rows += _quantised(network, evaluator, settings, bits=bits, config=config, folder=folder.path)
    for row in rows:
        LOGGER.info(
            "%-24s accuracy %.4f  %7d bytes  %5.1f times smaller",
            row.stage,
            row.accuracy,
            row.num_bytes,
            whole / row.num_bytes,
        )
    folder.write_result({"rows": [vars(row) for row in rows]})
    LOGGER.info("results in %s", folder.path)


def _quantisation(bits: int) -> QuantConfig:
    """So many bits for weights and activations."""
    return QuantConfig(weight_bits=bits, activation_bits=bits, weight_range="mse" if bits < 8 else "minmax")


def _quantised(
    network: Network,
    evaluator: Evaluator,
    settings: TaskSettings,
    *,
    bits: int,
    config: LenetConfig,
    folder: Path,
) -> list[Row]:
    """Return the accuracy with integers of so many bits, and the bytes of each form they are stored in."""
    image_chw = CLASSIFICATION.image_chw(network, 0)
    calibration = CLASSIFICATION.calibration(settings, network, count=config.calib_images, image_chw=image_chw)
    quantised = quantize(network.model, calibration, config=_quantisation(bits), image_shape=image_chw)
    quantised.mode = "integer"
    accuracy = evaluator.evaluate(quantised).score
    program = quantised.to_program()
    rows = []
    for layout in ("dense", *_SPARSE_LAYOUTS):
        path = folder / f"network_{bits}bit_{layout}.npz"
        save_program(program, path, layout=layout)
        _check_file(path, quantised, evaluator)
        rows.append(Row(stage=f"{bits} bit integer, {layout}", accuracy=accuracy, num_bytes=path.stat().st_size))
    save_yaml(program, folder / f"network_{bits}bit.yaml", layout="csr")
    LOGGER.info("%d bit: weights and biases alone would be %d bytes in float32", bits, float_bytes(program))
    return rows


def _check_file(path: Path, network: QuantizedNetwork, evaluator: Evaluator) -> None:
    """Check that the numpy reader predicts from the file what torch predicts from the network."""
    images = next(iter(evaluator.data.batches(network, evaluator.device))).normalised()
    with torch.no_grad():
        expected = network(images)
    assert isinstance(expected, torch.Tensor), "a classifier has one output"
    (found,) = reader.run(load_program(path, fingerprint=network.fingerprint), images.numpy())
    if not np.array_equal(found.argmax(1), expected.numpy().argmax(1)):
        raise ConfigError(f"{path}: the numpy reader predicts other classes than torch; report this with the file")


if __name__ == "__main__":
    run_script(run, LenetConfig)
