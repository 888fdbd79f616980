"""Data, hyper-parameters and network of a training, made from its settings."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from commands.train_config import TrainConfig
from engine.evaluation.session import round_up
from engine.losses.autoanchor import check_anchors
from engine.training.distributed import Process
from models.detector import Detector
from models.load import create_model
from models.weights import read_weights
from utils.config.hyp import Hyp, load_hyp
from utils.datasets.class_names import class_order
from utils.datasets.indexing.config import load_data_config
from utils.datasets.indexing.index import LabelIndex, build_label_index
from utils.datasets.indexing.usable import check_trainable, warn_of_shared_images, warn_without_boxes
from utils.datasets.loading.dataset import DetectionDataset
from utils.datasets.loading.loader import Loader, build_loader
from utils.errors import ConfigError

LOGGER = logging.getLogger(__name__)

# Adam's steps do not shrink with the gradient: the rate that suits SGD destroys trained weights.
_ADAPTIVE_RATE = 0.1


@dataclass(frozen=True, kw_only=True)
class Data:
    """The two splits of a run."""

    train: LabelIndex
    val: LabelIndex


def starting_names(config: TrainConfig) -> tuple[str, ...]:
    """Return the classes of the network that a run starts from; none where it starts from scratch."""
    return read_weights(config.weights).names if config.weights and Path(config.weights).is_file() else ()


def read_data(config: TrainConfig, *, names: Sequence[str] | None = None) -> Data:
    """Index the splits `train` and `val`, say what is in them, and refuse what nothing can be learnt from.

    Args:
        config: Settings of the run.
        names: Classes of the network, by default of the one it starts from. Where the data has the same ones, they
            get the network's order.

    Raises:
        DataError: The training split has no box.
    """
    data = load_data_config(config.data)
    known = starting_names(config) if names is None else names
    if not config.single_cls and class_order(known, data.names) is not None:
        data = data.in_order_of(known, weights=config.weights or "the network")
    splits = {}
    for split in ("train", "val"):
        splits[split] = build_label_index(
            data, split, cache_dir=config.cache_dir or None, workers=config.workers, single_cls=config.single_cls
        )
    found = Data(**splits)
    check_trainable(found.train, where=f"{data.path}: train")
    warn_without_boxes(
        found.val, where=f"{data.path}: val", then="best.pt is the last epoch, and --patience has no effect"
    )
    warn_of_shared_images(found.train, found.val)
    return found


def read_hyp(config: TrainConfig) -> Hyp:
    """Return the YAML's hyper-parameters with the overrides of the command line."""
    hyp = load_hyp(config.hyp)
    if config.lr0 is not None:
        hyp = replace(hyp, lr0=config.lr0)
    elif config.optimizer_name != "sgd":
        hyp = replace(hyp, lr0=hyp.lr0 * _ADAPTIVE_RATE, warmup_bias_lr=hyp.warmup_bias_lr * _ADAPTIVE_RATE)
        LOGGER.info("learning rate %g for %s (a tenth of the YAML's; --lr0 sets it)", hyp.lr0, config.optimizer_name)
    if config.label_smoothing is not None:
        hyp = replace(hyp, label_smoothing=config.label_smoothing)
    return hyp


def make_model(config: TrainConfig, data: Data, *, hyp: Hyp) -> Detector:
    """Build the network of `--cfg` or `--weights` with the data's classes, the weights that fit, and good anchors."""
    cfg = config.cfg or (None if config.weights else "yolov5s.yaml")
    model, report = create_model(cfg, config.weights or None, num_classes=len(data.train.names))
    if report is not None:
        LOGGER.info("%s", report.as_text())
    if not config.noautoanchor:
        size = train_size(config, model)
        anchors = check_anchors(
            data.train, model.anchors.numpy(), img_size=size, anchor_t=hyp.anchor_t, seed=config.seed
        )
        if anchors is not None:
            model.set_anchors_(torch.from_numpy(anchors).float())
    freeze_(model, config.freeze)
    return model


def freeze_(model: Detector, freeze: tuple[int, ...]) -> None:
    """Keep the weights of the first `freeze[0]` layers, or of the listed layers, as they are.

    Raises:
        ConfigError: There is no such layer.
    """
    count = len(model.model)
    frozen: Iterable[int] = range(freeze[0]) if len(freeze) == 1 else freeze
    if any(number < 0 for number in freeze) or any(number >= count for number in frozen):
        given = " ".join(map(str, freeze))
        raise ConfigError(f"--freeze {given}: the network has layers 0 to {count - 1}; give fewer or smaller numbers")
    for number in frozen:
        model.model[number].requires_grad_(False)


def train_size(config: TrainConfig, model: Detector) -> int:
    """Training image size, rounded up to a multiple of the stride."""
    return round_up(config.img_size[0], model.max_stride)


def num_workers(config: TrainConfig, device: torch.device) -> int:
    """Return the number of loading processes: one per core; half of that where the network computes on the CPU."""
    cores = os.cpu_count() or 1
    return min(config.workers, cores if device.type == "cuda" else max(1, cores // 2))


def make_train_loader(
    config: TrainConfig, model: Detector, data: Data, *, hyp: Hyp, device: torch.device, process: Process
) -> Loader:
    """Augmented batches of this process.

    Raises:
        ConfigError: The batch cannot be shared among the processes.
    """
    dataset = DetectionDataset(
        data.train,
        img_size=train_size(config, model),
        hyp=hyp,
        augment=True,
        rect=config.rect,
        stride=model.max_stride,
        cache_images=config.cache_images,
        seed=config.seed,
        no_mosaic_from=config.epochs - config.close_mosaic,
    )
    return build_loader(
        dataset,
        batch_size=config.batch_size,
        workers=num_workers(config, device),
        rank=process.rank,
        world_size=process.world_size,
        shuffle=True,
        quad=config.quad,
        pin_memory=device.type == "cuda",
    )


def make_val_loader(config: TrainConfig, model: Detector, data: Data, *, device: torch.device) -> Loader:
    """Load validation images, each padded to its own least multiple of the stride."""
    dataset = DetectionDataset(
        data.val,
        img_size=round_up(config.img_size[-1], model.max_stride),
        hyp=Hyp(),  # nothing is augmented
        augment=False,
        rect=True,
        stride=model.max_stride,
        cache_images=config.cache_images,
    )
    return build_loader(
        dataset,
        batch_size=config.batch_size,
        workers=num_workers(config, device),
        shuffle=False,
        pin_memory=device.type == "cuda",
    )
