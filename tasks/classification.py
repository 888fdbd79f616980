"""Classification: networks of `ClassifierSpec`, one label per image, accuracy as the metric."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from deploy.calibration import calibration_pictures, normalised
from deploy.formats import load_classifier as load_exported
from deploy.outputs.classifier import ClassifierSource
from deploy.outputs.logits import LogitsRuntime
from deploy.settings import RuntimeOptions
from engine.evaluation.classification import ClassificationSet
from engine.evaluation.evaluator import EvaluationSet, OnBatch
from engine.losses.classification import ClassificationLoss
from engine.training.distributed import Process
from engine.training.hooks import Hook
from engine.training.validation import ValidationHook
from models.classifiers import (
    ClassifierSpec,
    build_classifier,
    empty_classifier,
    load_classifier,
    start_weights_,
)
from models.classifiers.load import classifier_of, is_classifier
from models.fingerprint import network_fingerprint
from pruning.distillation import DistillationHook, LogitsDistillation
from pruning.features import Followed, Teaching
from tasks.classifier_data import check_data, in_order_of, new_spec, of_metadata, spec_of
from tasks.settings import TaskSettings, ValSettings
from tasks.task import Columns, Data, Network, Recipe
from utils.config.hyp import Hyp
from utils.config.values import check_least
from utils.datasets.classes.known import load_pictures
from utils.datasets.classes.loader import Normalisation, PictureLoader
from utils.datasets.classes.pictures import PictureData, PictureSet
from utils.errors import CheckpointError, ConfigError, PruningError
from utils.storage.checkpoint import Checkpoint

LOGGER = logging.getLogger(__name__)

# Side in pixels to which images of class folders are cropped where no size is given.
_FOLDER_SIZE = 224
# Data sets of classifiers have two splits.
_SPLITS = {"train": "train", "val": "test", "test": "test"}
# Pixels in a batch that is only evaluated: 64 images of 224 x 224.
_EVAL_PIXELS = 64 * 224**2


@dataclass(frozen=True, kw_only=True)
class Classification:
    """The task of networks that return logits, see `tasks.task.Task`.

    Attributes:
        own: Network of your own to train or to fill from files, instead of one that `--cfg` names; from Python.
        pictures: Images in memory, instead of those that `--data` names; from Python.
    """

    own: nn.Module | None = None
    pictures: PictureData | None = None

    name = "classification"
    metric = "accuracy"
    recipe = Recipe(
        hyp="data/hyp/classes.yaml",
        adaptive_rate=0.02,
        momenta={"ranger": 0.95},
        least_warmup=1,
        nominal_batch=128,
        short_runs=None,  # its rate ends at a hundredth, and it has no mosaics
        has_mean_loss=True,
        has_mixed_validation=False,  # methods are compared by the last epoch
        is_averaged=False,
        is_half=False,
        searched=("lr0", "lrf", "momentum", "weight_decay", "warmup_epochs", "warmup_momentum"),
    )
    columns = Columns(
        table={"accuracy": "accuracy", "loss": "loss"},
        line={"accuracy": "accuracy", "loss": "loss"},
        digits=4,
        headline=("accuracy",),
    )
    ignored = (
        *("rect", "quad", "multi_scale", "close_mosaic", "image_weights", "single_cls", "noautoanchor", "freeze"),
        *("cache_images", "workers", "ema_steps"),
    )
    ignored_later = (
        *("img_size", "study_sizes", "conf_thres", "iou_thres", "max_det", "single_cls", "augment", "rect"),
        *("save_txt", "save_hybrid", "save_conf", "engine", "workers", "dynamic", "nms"),
    )

    def load(self, path: str | Path) -> Network:
        """Read the checkpoint of a classifier, dense or pruned."""
        loaded = load_classifier(path, skeleton=copy.deepcopy(self.own))
        return Network(model=loaded.model, spec=loaded.spec, names=loaded.names, checkpoint=loaded.checkpoint)

    def restored(self, checkpoint: Checkpoint, settings: TaskSettings, *, where: str) -> Network:
        """Rebuild the network of a run to resume."""
        loaded = classifier_of(checkpoint, checkpoint.weights, where=f"weights {where}", skeleton=self.own)
        return Network(model=loaded.model, spec=loaded.spec, names=loaded.names, checkpoint=checkpoint)

    def make_network(self, settings: TaskSettings, data: Data, *, hyp: Hyp) -> Network:
        """Build the network of `cfg`, or read that of `weights`; a plain state dict fills what fits.

        So does a checkpoint for another number of classes, if `cfg` is given as well.

        Raises:
            ConfigError: There is no such network, or two are given, or that of the file takes other images or knows
                other classes.
        """
        check_least(settings, batch_size=2)  # batch norms of one value per channel learn nothing
        _, *found_hw = data.train.image_chw
        if any(size != side for size in settings.img_size for side in found_hw):
            given, found = " ".join(map(str, settings.img_size)), " x ".join(map(str, found_hw))
            LOGGER.warning("--img-size %s has no effect: the images have %s pixels", given, found)
        if self.own is not None and settings.cfg:
            raise ConfigError(f"--cfg {settings.cfg}: a network of your own is given as well; leave one of them out")
        weights = settings.weights
        if weights and is_classifier(weights):
            network = self.load(weights)
            if settings.cfg:
                self.check_agrees(network, settings.cfg, weights=weights)
            if not settings.cfg or spec_of(network).num_classes == len(data.names):
                check_data(network, data.train, weights=f"--weights {weights}", data=f"--data {settings.data}")
                return replace(network, names=data.names)
        model, name = self.own, ""
        if model is None:
            name = settings.cfg or "resnet20"
            model = build_classifier(name, num_classes=len(data.names), in_channels=data.train.image_chw[0])
        if weights:
            LOGGER.info("%s", start_weights_(model, weights).line())
        return Network(model=model, spec=new_spec(model, data, name=name), names=data.names)

    def check_agrees(self, network: Network, cfg: str, *, weights: str) -> None:
        """Refuse a network of another name.

        Raises:
            PruningError: Names both networks.
        """
        assert isinstance(network.spec, ClassifierSpec)
        if network.spec.name != cfg:
            raise PruningError(
                f"--cfg {cfg} and --weights {weights} disagree: the weights are of {network.spec.name or 'another'}; "
                "give the name of these weights or leave --cfg out"
            )

    def is_pruned(self, network: Network) -> bool:
        """Return whether a layer is narrower than the network's name says; unknown ones count as pruned."""
        spec = spec_of(network)
        if not spec.name:
            return True
        dense = empty_classifier(spec.name, num_classes=spec.num_classes, in_channels=spec.image_chw[0])
        return network_fingerprint(dense) != network_fingerprint(network.model)

    def check_rebuilt(self, network: Network) -> None:
        """Refuse a pruned network whose code was changed, for only its weights are stored.

        Raises:
            PruningError: The network rebuilt from its name and weights is another one.
        """
        if not spec_of(network).name:
            return
        images = torch.rand(2, *spec_of(network).image_chw, generator=torch.Generator().manual_seed(0))
        remedy = "--protect the layers whose channels the network's code takes by index"
        own = replace(network, model=copy.deepcopy(network.model).cpu().eval())
        try:
            rebuilt = self.restored(own.to_checkpoint({}), TaskSettings(), where="of the pruned network").model
            with torch.no_grad():
                is_same = torch.equal(rebuilt(images), own.model(images))
        except (CheckpointError, RuntimeError) as error:
            raise PruningError(f"the pruned network could not be loaded again ({error}); {remedy}") from error
        if not is_same:
            raise PruningError(f"the pruned network would be another one when loaded again; {remedy}")

    def describe(self, network: Network, folder: Path) -> None:
        """Write nothing: the widths of a classifier follow from its weights."""

    def read_data(self, settings: TaskSettings, *, network: Network | None = None) -> Data:
        """Read both splits; classes that the network also has get its order, and images its size."""
        network = network or self._start(settings)
        data = self._pictures(settings, network)
        names = network.names if network else ()
        train, val = (in_order_of(split, names) for split in (data.train, data.test))
        return Data(train=train, val=val)

    def _start(self, settings: TaskSettings) -> Network | None:
        """Return the network that a run starts from, if it is a checkpoint."""
        weights = settings.weights
        is_known = bool(weights) and Path(weights).is_file() and is_classifier(weights)
        return self.load(weights) if is_known else None

    def _pictures(self, settings: TaskSettings, network: Network | None, *, measured: str = "val") -> PictureData:
        """Return all images; those of folders in the size of the network, of the settings, or of 224 pixels."""
        if self.pictures is not None:
            return self.pictures
        size = settings.train_size if settings.img_size else _FOLDER_SIZE
        if network is not None:
            size = spec_of(network).image_chw[1]
        return load_pictures(settings.data, settings.cache_dir or None, img_size=size, measured=measured)

    def class_names(self, settings: TaskSettings) -> tuple[str, ...]:
        """Return the classes of the images."""
        return self._pictures(settings, None).names

    def read_split(self, settings: TaskSettings, split: str, *, network: Network) -> PictureSet:
        """Read one split, with its classes in the order of the network's, if these are the same."""
        data = self._pictures(settings, network, measured=split if split == "test" else "val")
        return in_order_of(data.train if _SPLITS[split] == "train" else data.test, network.names)

    def plot_data(self, data: Data, folder: Path) -> None:
        """Plot nothing."""

    def train_loader(
        self,
        settings: TaskSettings,
        network: Network,
        data: Data,
        *,
        hyp: Hyp,
        device: torch.device,
        process: Process,
    ) -> PictureLoader:
        """Return the augmented batches of this process, on its device."""
        spec = spec_of(network)
        return PictureLoader(
            data.train.to(device),
            batch_size=settings.batch_size,
            normalisation=Normalisation.of(spec.mean, spec.std, device=device),
            augment=settings.augment,
            is_training=True,
            seed=settings.seed,
            rank=process.rank,
            world_size=process.world_size,
        )

    def scales(self, settings: TaskSettings, network: Network) -> range:
        """Return none: a classifier has one size."""
        return range(0)

    def loss(self, settings: TaskSettings, network: Network, *, hyp: Hyp, process: Process) -> ClassificationLoss:
        """Return the cross entropy."""
        return ClassificationLoss(label_smoothing=hyp.label_smoothing)

    def evaluation_set(
        self, settings: TaskSettings, split: PictureSet, *, network: Network | None = None
    ) -> ClassificationSet:
        """Return the images of a split, normalised as the network wants them.

        Raises:
            ConfigError: The network takes other images, or knows another number of classes.
        """
        assert network is not None, "images are normalised as the network wants them"
        check_data(network, split, weights=settings.weights or "the network", data=settings.data)
        spec = spec_of(network)
        height, width = split.image_chw[1:]
        batch_size = min(max(_EVAL_PIXELS // (height * width), 16), 500)
        return ClassificationSet(pictures=split, mean=spec.mean, std=spec.std, batch_size=batch_size)

    def load_runtime(self, path: str, *, device: torch.device, options: RuntimeOptions) -> LogitsRuntime:
        """Load a classifier, or refuse a detector."""
        return load_exported(path, device=device, options=options)

    def validation(self, settings: ValSettings, runtimes: Sequence[LogitsRuntime]) -> ClassificationSet:
        """Return what val.py measures a classifier on.

        Raises:
            ConfigError: There are several, the task is for detectors, or the data are of another network.
        """
        if len(runtimes) > 1:
            raise ConfigError(
                f"--weights: got {len(runtimes)} with --data {settings.data}, expected one; classifiers are measured "
                "one at a time, and detectors on the YAML of a data set"
            )
        if settings.task not in _SPLITS:
            raise ConfigError(f"--task {settings.task}: it is for detectors; expected {', '.join(_SPLITS)}")
        network = of_metadata(runtimes[0].metadata, where=settings.weights[0])
        common = TaskSettings(weights=settings.weights[0], data=settings.data, cache_dir=settings.cache_dir)
        split = self.read_split(common, settings.split, network=network)
        return replace(self.evaluation_set(common, split, network=network), batch_size=settings.batch_size)

    def batch_files(self, settings: ValSettings, images: EvaluationSet, folder: Path) -> OnBatch | None:
        """Return none."""
        return None

    def hooks(self, settings: TaskSettings, data: Data, *, validation: ValidationHook) -> Sequence[Hook]:
        """Return none."""
        return ()

    def sample_images(self, folder: Path, names: Sequence[str]) -> OnBatch | None:
        """Return none."""
        return None

    def image_chw(self, network: Network, img_size: int) -> tuple[int, int, int]:
        """Return the one size that the network takes."""
        channels, height, width = spec_of(network).image_chw
        return channels, height, width

    def input_chw(self, network: Network, image_hw: tuple[int, int]) -> tuple[int, int, int]:
        """Return the one size that the network takes."""
        return self.image_chw(network, 0)

    def quantised(self, quantised: Callable[[Tensor], Any], network: Network) -> Any:
        """Return the network as it is."""
        return quantised

    def source(self, network: Network, *, path: str | Path) -> ClassifierSource:
        """Return the classifier as the source of artefacts."""
        spec = spec_of(network)
        return ClassifierSource(
            model=network.model,
            image_chw=self.image_chw(network, 0),
            names=network.names,
            mean=spec.mean,
            std=spec.std,
        )

    def calibration(
        self, settings: TaskSettings, network: Network, *, count: int, image_chw: tuple[int, int, int]
    ) -> list[Tensor]:
        """Return normalised training images, (B, C, H, W) each."""
        train = self.read_split(settings, "train", network=network)
        return calibration_pictures(train, spec_of(network), count=count, name=settings.data)

    def examples(
        self, settings: TaskSettings, network: Network, *, count: int, image_chw: tuple[int, int, int]
    ) -> Tensor:
        """Return normalised test images, or noise where no data is given."""
        if not (settings.data or self.pictures):
            return self.source(network, path="").noise(count, image_chw)
        test = self.read_split(settings, "val", network=network)
        return torch.cat(normalised(test.spread(count), spec_of(network)))

    def distillation(self, teacher: str, network: Network, teaching: Teaching) -> Hook:
        """Return the hook with which a classifier learns from the logits of a teacher, and from what layers read."""
        loaded, spec = self.load(teacher), spec_of(network)
        own = spec_of(loaded)
        is_alike = own.image_chw == spec.image_chw and loaded.names == network.names
        if not is_alike or not np.allclose((own.mean, own.std), (spec.mean, spec.std), rtol=1e-3):
            raise ConfigError(
                f"--teacher {teacher}: its classes, image size or normalisation differ from the student's; give the "
                "dense checkpoint that the student was pruned from"
            )
        model = loaded.model.eval().requires_grad_(False)
        followed = teaching.followed(model, network.model, image_chw=network.trace_chw)
        return self.teaching_hook(model, strength=teaching.answers, followed=followed)

    def teaching_hook(self, teacher: nn.Module, *, strength: float, followed: Followed | None) -> Hook:
        """Return the hook with which a classifier learns from logits and from what layers read."""
        return DistillationHook(teacher, strength=strength, make_loss=LogitsDistillation.of, followed=followed)
