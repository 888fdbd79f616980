"""LeNet5 on MNIST in five steps: train, prune single weights, fine-tune, quantise to integers, store sparsely.

    python -m examples.lenet_mnist

The files it leaves run without torch: `python -m quantization.storage network_8bit_csr.npz pictures.npz`.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from commands.classify import classifier_spec, make_classifier, read_pictures
from commands.classify_config import ClassifierConfig
from engine.evaluation.classification_scores import picture_batches, score_classifier
from examples.stages import Stage, experiment_folder, train_stage
from models.classifiers import ClassifierSpec, load_classifier
from pruning.zeros.hooks import FrozenZerosHook
from pruning.zeros.masks import UnstructuredSettings, apply_masks_, l1_masks
from quantization.network import QuantizedNetwork, quantize
from quantization.ranges.config import QuantConfig
from quantization.storage import reader
from quantization.storage.binary import load_program, save_program
from quantization.storage.sizes import float_bytes
from quantization.storage.text import save_yaml
from utils.config.cli import run_script
from utils.config.values import check_least
from utils.datasets.classes.pictures import PictureData
from utils.errors import ConfigError

LOGGER = logging.getLogger(__name__)

_SPARSE_LAYOUTS = ("coo", "csr", "csc")
# Test pictures that the numpy reader is asked about.
_READ = 1000


@dataclass(frozen=True, kw_only=True)
class LenetConfig:
    """Train, prune, fine-tune, quantise and store a LeNet5."""

    data: str = "mnist"  # mnist, fetched once, or an .npz of x_train, y_train, x_test and y_test
    cache_dir: str = ""  # where fetched data are kept; empty is the user's cache folder
    epochs: int = 20  # of the dense network
    finetune_epochs: int = 20  # of the pruned one, its zeros frozen
    sparsity: float = 0.9  # share of single weights that become zero
    bits: tuple[int, ...] = (8, 4)  # of weights and activations, one network each
    calib_batches: int = 4  # batches of 500 pictures that ranges are learnt from
    seed: int = 0  # of weights and order
    project: str = "runs/lenet"  # where run folders are made
    name: str = "exp"  # name of the run folder
    exist_ok: bool = False  # go on in this folder: complete trainings are kept, one that was begun continues

    def __post_init__(self) -> None:
        check_least(self, epochs=1, finetune_epochs=1, calib_batches=1)
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
    training = _training(config, folder.path, "dense", epochs=config.epochs)
    data = read_pictures(training)
    dense = train_stage(training, data)
    sparse = _train_sparse(config, folder.path, data, weights=dense.weights)
    model = load_classifier(sparse.weights).model
    spec = classifier_spec(model, data, name="lenet5")
    whole = sum(4 * parameter.numel() for parameter in model.parameters())
    rows = [
        Row(stage="dense float32", accuracy=dense.accuracy, num_bytes=whole),
        Row(stage=f"{config.sparsity:.0%} zeros, float32", accuracy=sparse.accuracy, num_bytes=whole),
    ]
    for bits in config.bits:
        rows += _quantised(model, spec, data, bits=bits, config=config, folder=folder.path)
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


def _training(config: LenetConfig, folder: Path, name: str, **values: Any) -> ClassifierConfig:
    return ClassifierConfig(
        model="lenet5",
        data=config.data,
        cache_dir=config.cache_dir,
        seed=config.seed,
        augment="crop",
        project=str(folder),
        name=name,
        **values,
    )


def _train_sparse(config: LenetConfig, folder: Path, data: PictureData, *, weights: Path) -> Stage:
    """Set the smallest weights to zero, and train the others."""
    training = _training(config, folder, "sparse", weights=str(weights), epochs=config.finetune_epochs, lr0=0.02)
    masks = l1_masks(make_classifier(training, data), UnstructuredSettings(sparsity=config.sparsity))

    def make_model() -> nn.Module:
        model = make_classifier(training, data)
        apply_masks_(model, masks)
        return model

    return train_stage(training, data, make_model=make_model, hooks=lambda _: [FrozenZerosHook(masks)])


def _quantisation(bits: int) -> QuantConfig:
    """So many bits for weights and activations."""
    return QuantConfig(weight_bits=bits, activation_bits=bits, weight_range="mse" if bits < 8 else "minmax")


def _quantised(
    model: nn.Module, spec: ClassifierSpec, data: PictureData, *, bits: int, config: LenetConfig, folder: Path
) -> list[Row]:
    """Integers of so many bits: accuracy, and the forms they are stored in."""
    calibration = [batch.normalised() for batch in islice(picture_batches(data.train, spec), config.calib_batches)]
    network = quantize(model, calibration, config=_quantisation(bits), image_shape=data.image_chw)
    network.mode = "integer"
    accuracy = score_classifier(network, data.test, spec=spec).accuracy
    program = network.to_program()
    rows = []
    for layout in ("dense", *_SPARSE_LAYOUTS):
        path = folder / f"network_{bits}bit_{layout}.npz"
        save_program(program, path, layout=layout)
        _check_file(path, network, spec, data)
        rows.append(Row(stage=f"{bits} bit integer, {layout}", accuracy=accuracy, num_bytes=path.stat().st_size))
    save_yaml(program, folder / f"network_{bits}bit.yaml", layout="csr")
    LOGGER.info("%d bit: weights and biases alone would be %d bytes in float32", bits, float_bytes(program))
    return rows


def _check_file(path: Path, network: QuantizedNetwork, spec: ClassifierSpec, data: PictureData) -> None:
    """Check that the numpy reader predicts from the file what torch predicts from the network."""
    images = next(iter(picture_batches(data.test, spec, batch_size=_READ))).normalised()
    with torch.no_grad():
        expected = network(images)
    assert isinstance(expected, torch.Tensor), "a classifier has one output"
    (found,) = reader.run(load_program(path, fingerprint=network.fingerprint), images.numpy())
    if not np.array_equal(found.argmax(1), expected.numpy().argmax(1)):
        raise ConfigError(f"{path}: the numpy reader predicts other classes than torch; report this with the file")


if __name__ == "__main__":
    run_script(run, LenetConfig)
