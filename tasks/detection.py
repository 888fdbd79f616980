"""Detection: networks of `ModelSpec`, boxes as labels, COCO mAP as the metric."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from deploy.artefact.runtime import DetectorRuntime
from deploy.calibration import as_input, calibration_images, check_image_size
from deploy.formats import load_detector
from deploy.outputs.detector import DetectorSource
from deploy.settings import RuntimeOptions
from engine.evaluation.detection import DetectionSet, LabelFiles, SamplePictures
from engine.evaluation.detection_scores import EvalSettings
from engine.evaluation.evaluator import EvaluationSet, OnBatch
from engine.losses.autoanchor import check_anchors
from engine.losses.detection import DetectionLoss, LossGains
from engine.training.distributed import Process, mean_over_ranks
from engine.training.hooks import Hook
from engine.training.recipe import ShortRuns
from engine.training.resuming import load_weights_
from engine.training.validation import ImageWeightsHook, ValidationHook
from models.detector import Detector, build_model, freeze_
from models.fuse import fuse
from models.load import create_model, load_model
from models.spec import ModelSpec
from pruning.distillation import DetectorDistillation, DistillationHook, load_teacher
from pruning.features import Followed, Teaching
from tasks.detector_data import frame_of, in_common_order, index_of, training_splits, warn_without_boxes
from tasks.settings import DEFAULT_IMG_SIZE, TaskSettings, ValSettings
from tasks.task import Columns, Data, Network, Recipe
from utils.config.hyp import Hyp
from utils.config.values import round_up
from utils.datasets.indexing.config import load_data_config
from utils.datasets.indexing.index import LabelIndex, build_label_index
from utils.datasets.loading.dataset import DetectionDataset
from utils.datasets.loading.loader import Loader, build_loader
from utils.datasets.spread import spread
from utils.detections.output_names import OutputNames
from utils.errors import PruningError
from utils.plots.labels import plot_labels
from utils.storage.checkpoint import Checkpoint
from utils.storage.files import sha256_of

LOGGER = logging.getLogger(__name__)

# Images that --quad joins to one.
_QUAD = 4
# Real images to compare detectors on where no data set is given.
_BUNDLED = "data/bccd.yaml"


class Detection:
    """The task of `Detector` networks, see `tasks.task.Task`."""

    name = "detection"
    metric = "mAP50-95"
    recipe = Recipe(
        hyp="data/hyp/scratch.yaml",
        # Adam's steps do not shrink with the gradient: the rate that suits SGD destroys trained weights.
        adaptive_rate=0.1,
        momenta={},
        least_warmup=1000,
        nominal_batch=64,
        short_runs=ShortRuns(),
        has_mean_loss=False,
        has_mixed_validation=True,
        is_averaged=True,
        is_half=True,
        searched=tuple(item.name for item in fields(Hyp) if item.name not in ("iou_t", "mosaic9", "label_smoothing")),
    )
    columns = Columns(
        table={"precision": "precision", "recall": "recall", "mAP_0.5": "AP50", "mAP_0.5:0.95": "AP"},
        line={"P": "precision", "R": "recall", "mAP50": "AP50", "mAP": "AP"},
        digits=3,
        headline=("AP50", "AP"),
    )
    ignored = ("augment",)
    ignored_later = ()

    def load(self, path: str | Path) -> Network:
        """Read any supported weights file of a detector."""
        loaded = load_model(path)
        return Network(model=loaded.model, spec=loaded.model.spec, names=loaded.names, checkpoint=loaded.checkpoint)

    def restored(self, checkpoint: Checkpoint, settings: TaskSettings, *, where: str) -> Network:
        """Rebuild the network of a run to resume."""
        model = build_model(ModelSpec.from_dict(checkpoint.spec))
        load_weights_(model, checkpoint, where=where)
        freeze_(model, settings.freeze)
        return Network(model=model, spec=model.spec, names=checkpoint.names, checkpoint=checkpoint)

    def make_network(self, settings: TaskSettings, data: Data, *, hyp: Hyp) -> Network:
        """Build the network of `cfg` or `weights` with the data's classes, the weights that fit, and good anchors."""
        cfg = settings.cfg or (None if settings.weights else "yolov5s.yaml")
        model, report = create_model(cfg, settings.weights or None, num_classes=len(data.names))
        if report is not None:
            LOGGER.info("%s", report.as_text())
        if not settings.noautoanchor:
            anchors = check_anchors(
                data.train,
                model.anchors.numpy(),
                img_size=round_up(settings.train_size, model.max_stride),
                anchor_t=hyp.anchor_t,
                seed=settings.seed,
            )
            if anchors is not None:
                model.set_anchors_(torch.from_numpy(anchors).float())
        freeze_(model, settings.freeze)
        return Network(model=model, spec=model.spec, names=data.names)

    def check_agrees(self, network: Network, cfg: str, *, weights: str) -> None:
        """Refuse weights whose layers are not those of a model YAML.

        Raises:
            PruningError: Names the first layer that differs.
        """
        with torch.device("meta"):
            wanted = build_model(ModelSpec.from_yaml(cfg, num_classes=network.spec.num_classes)).state_dict()
        found = network.model.state_dict()
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

    def is_pruned(self, network: Network) -> bool:
        """Return whether the description has widths of its own."""
        return bool(_detector(network).spec.widths)

    def check_rebuilt(self, network: Network) -> None:
        """Do nothing: surgery builds a pruned detector from its description."""

    def describe(self, network: Network, folder: Path) -> None:
        """Write pruned.yaml, which --cfg takes."""
        assert isinstance(network.spec, ModelSpec)
        network.spec.to_yaml(folder / "pruned.yaml")

    def read_data(self, settings: TaskSettings, *, network: Network | None = None) -> Data:
        """Index the splits `train` and `val`, report their content, and refuse what nothing can be learnt from.

        Raises:
            DataError: The training split has no box.
        """
        train, val = training_splits(settings, network.names if network else None)
        return Data(train=train, val=val)

    def class_names(self, settings: TaskSettings) -> tuple[str, ...]:
        """Return the classes of the YAML; one for all with `single_cls`."""
        names = load_data_config(settings.data).names
        return ("item",) if settings.single_cls and len(names) > 1 else tuple(names)

    def read_split(self, settings: TaskSettings, split: str, *, network: Network) -> LabelIndex:
        """Index one split, with its classes in the order of the network's.

        Raises:
            ConfigError: The networks have other classes than the data.
        """
        config = load_data_config(settings.data)
        if not settings.single_cls:
            config = config.in_order_of(network.names, weights=settings.weights or "the network")
        return index_of(config, split, settings)

    def plot_data(self, data: Data, folder: Path) -> None:
        """Plot labels.jpg: classes, positions and sizes of the training boxes."""
        plot_labels(data.train, folder / "labels.jpg")

    def train_loader(
        self,
        settings: TaskSettings,
        network: Network,
        data: Data,
        *,
        hyp: Hyp,
        device: torch.device,
        process: Process,
    ) -> Loader:
        """Return the augmented batches of this process.

        Raises:
            ConfigError: The batch cannot be shared among the processes.
        """
        stride = _detector(network).max_stride
        dataset = DetectionDataset(
            data.train,
            img_size=round_up(settings.train_size, stride),
            hyp=hyp,
            augment=True,
            rect=settings.rect,
            stride=stride,
            cache_images=settings.cache_images,
            seed=settings.seed,
            no_mosaic_from=settings.epochs - (settings.close_mosaic or 0),
        )
        cores = os.cpu_count() or 1  # where the network computes on the CPU, it needs half of them
        loader = build_loader(
            dataset,
            batch_size=settings.batch_size,
            workers=min(settings.workers, cores if device.type == "cuda" else max(1, cores // 2)),
            rank=process.rank,
            world_size=process.world_size,
            shuffle=True,
            quad=settings.quad,
            pin_memory=device.type == "cuda",
        )
        loader.start_workers()  # early, before this process grows
        return loader

    def scales(self, settings: TaskSettings, network: Network) -> range:
        """Return the sizes of multi-scale training, from half of the size to one and a half."""
        stride = _detector(network).max_stride
        if not settings.multi_scale:
            return range(0, 0, stride)
        size = round_up(settings.train_size, stride)
        return range(max(size // 2 // stride, 1) * stride, size * 3 // 2 + 1, stride)

    def loss(self, settings: TaskSettings, network: Network, *, hyp: Hyp, process: Process) -> DetectionLoss:
        """Return the detection loss, its gains scaled to the data and the training size."""
        model = _detector(network)
        gains = LossGains.from_hyp(
            hyp,
            num_classes=model.spec.num_classes,
            num_levels=len(model.strides),
            img_size=round_up(settings.train_size, model.max_stride),
        )
        return DetectionLoss(
            gains=gains,
            anchors=model.anchors,
            strides=model.strides,
            batch_factor=process.world_size * (_QUAD if settings.quad else 1),
            mean_over_ranks=mean_over_ranks,
        )

    def evaluation_set(
        self, settings: TaskSettings, split: LabelIndex, *, network: Network | None = None
    ) -> DetectionSet:
        """Return the images of a split, scored at v5.0's thresholds."""
        return DetectionSet(
            index=split,
            img_size=settings.test_size,
            settings=EvalSettings(single_cls=settings.single_cls),
            batch_size=settings.batch_size,
            workers=settings.workers,
            is_cached=settings.cache_images,
        )

    def load_runtime(self, path: str, *, device: torch.device, options: RuntimeOptions) -> DetectorRuntime:
        """Load a detector, or refuse a classifier."""
        return load_detector(path, device=device, options=options)

    def validation(self, settings: ValSettings, runtimes: Sequence[DetectorRuntime]) -> DetectionSet:
        """Return what val.py measures detectors on.

        Raises:
            ConfigError: They know other classes than the data, list them in different orders, or take images of
                different sizes, or not those that were asked for.
        """
        data = load_data_config(settings.data)
        if not settings.single_cls:
            data = in_common_order(data, runtimes, settings)
        frame_hw = frame_of(runtimes, settings)
        index = index_of(data, settings.split, settings)
        where = f"{data.path}: {settings.split}"
        warn_without_boxes(index, where=where, then="predictions.json and the drawn images are written all the same")
        is_speed = settings.task == "speed"
        scoring = EvalSettings(
            conf=0.25 if is_speed else settings.conf_thres,
            iou=0.45 if is_speed else settings.iou_thres,
            max_det=settings.max_det,
            single_cls=settings.single_cls,
            engine=settings.engine,
            hybrid_labels=settings.save_hybrid,
            augment=settings.augment,
            rect=settings.rect,
        )
        return DetectionSet(
            index=index,
            img_size=max(frame_hw) if frame_hw else settings.img_size or DEFAULT_IMG_SIZE,
            settings=scoring,
            batch_size=settings.batch_size,
            workers=settings.workers,
        )

    def batch_files(self, settings: ValSettings, images: EvaluationSet, folder: Path) -> OnBatch:
        """Return what draws sample images, and writes txt files if asked."""
        assert isinstance(images, DetectionSet)
        draw = self.sample_images(folder, images.index.names)
        if not (settings.save_txt or settings.save_hybrid):
            return draw
        files = LabelFiles(folder=folder, names=OutputNames(images.index.inputs), with_score=settings.save_conf)

        def save(step: int, batch: Any, boxes: Any) -> None:
            draw(step, batch, boxes)
            files(step, batch, boxes)

        return save

    def hooks(self, settings: TaskSettings, data: Data, *, validation: ValidationHook) -> Sequence[Hook]:
        """Return the hook of `--image-weights`."""
        return [ImageWeightsHook(validation=validation, index=data.train)] if settings.image_weights else []

    def sample_images(self, folder: Path, names: Sequence[str]) -> OnBatch:
        """Return what draws labels and predictions of the first batches."""
        return SamplePictures(folder=folder, names=names)

    def image_chw(self, network: Network, img_size: int) -> tuple[int, int, int]:
        """Return a square image whose sides are rounded up to a multiple of the stride."""
        side = round_up(img_size, _detector(network).max_stride)
        return 3, side, side

    def input_chw(self, network: Network, image_hw: tuple[int, int]) -> tuple[int, int, int]:
        """Return (3, H, W) of the letterbox.

        Raises:
            ConfigError: A side is not a multiple of the stride.
        """
        check_image_size(image_hw, stride=_detector(network).max_stride)
        return 3, *image_hw

    def quantised(self, quantised: Callable[[Tensor], Any], network: Network) -> QuantizedHeads:
        """Return the network with raw heads instead of head maps."""
        return QuantizedHeads(quantised, _detector(network))

    def source(self, network: Network, *, path: str | Path) -> DetectorSource:
        """Return the detector as the source of artefacts."""
        return DetectorSource(model=_detector(network), names=network.names, sha256=sha256_of(path) if path else "")

    def calibration(
        self, settings: TaskSettings, network: Network, *, count: int, image_chw: tuple[int, int, int]
    ) -> list[Tensor]:
        """Return letterboxed training images (1, 3, H, W) in [0, 1]."""
        image_hw = (image_chw[1], image_chw[2])
        return calibration_images(settings.data, count=count, image_hw=image_hw, cache_dir=settings.cache_dir)

    def examples(
        self, settings: TaskSettings, network: Network, *, count: int, image_chw: tuple[int, int, int]
    ) -> Tensor:
        """Return letterboxed images of the val split, or of the bundled data set."""
        data = load_data_config(settings.data or _BUNDLED)
        index = build_label_index(data, "val", workers=settings.workers, cache_dir=settings.cache_dir or None)
        paths = spread(index.paths, count)
        return torch.cat([as_input(path, (image_chw[1], image_chw[2])) for path in paths])

    def distillation(self, teacher: str, network: Network, teaching: Teaching) -> Hook:
        """Return the hook with which a detector learns from the raw heads of a teacher, and from what layers read."""
        assert isinstance(network.spec, ModelSpec)
        model = load_teacher(teacher, spec=network.spec, names=network.names)
        followed = teaching.followed(model, network.model)
        return self.teaching_hook(fuse(model), strength=teaching.answers, followed=followed)

    def teaching_hook(self, teacher: nn.Module, *, strength: float, followed: Followed | None) -> Hook:
        """Return the hook with which a detector learns from raw heads and from what layers read."""
        return DistillationHook(teacher, strength=strength, make_loss=DetectorDistillation.of, followed=followed)


class QuantizedHeads(nn.Module):
    """The head maps of a quantised network, in the shape of a `Detector`'s.

    Args:
        maps: Images (B, 3, H, W) in [0, 1] to head maps (B, A * (5 + nc), H / stride, W / stride), such as a
            `QuantizedNetwork` made from `detector`.
        detector: Network it was made from, for anchors, strides and the number of classes.
    """

    def __init__(self, maps: Callable[[Tensor], Sequence[Tensor]], detector: Detector) -> None:
        super().__init__()
        self.maps = maps
        self._num_outputs = 5 + detector.spec.num_classes
        self.anchors = detector.anchors
        self.strides = detector.strides

    def forward(self, images: Tensor) -> list[Tensor]:
        """Compute raw heads (B, A, H / stride, W / stride, 5 + nc) of images (B, 3, H, W)."""
        heads = []
        for maps in self.maps(images):
            batch, channels, height, width = maps.shape
            split = maps.view(batch, channels // self._num_outputs, self._num_outputs, height, width)
            heads.append(split.permute(0, 1, 3, 4, 2))  # (B, A, H, W, 5 + nc)
        return heads


def _detector(network: Network) -> Detector:
    assert isinstance(network.model, Detector)
    return network.model
