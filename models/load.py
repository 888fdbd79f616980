"""From files to networks: for use, and as a start for training."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path

from models.detector import Detector, build_model
from models.spec import ModelSpec, has_explicit_anchors
from models.transfer import TransferReport, transfer_weights_
from models.weights import WeightsFile, read_weights
from utils.checkpoint import Checkpoint
from utils.errors import CheckpointError, ConfigError

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """A network ready for use.

    Attributes:
        model: In evaluation mode, float32, on the CPU.
        names: Class names, in order of class ids.
        checkpoint: The whole checkpoint where the file is one of ours.
    """

    model: Detector
    names: tuple[str, ...]
    checkpoint: Checkpoint | None = None


def load_model(path: str | Path) -> LoadedModel:
    """Load any supported weights file; the network is rebuilt from its spec and filled completely.

    Raises:
        CheckpointError: Not a supported file, or its tensors do not fill the network it describes.
    """
    weights = read_weights(path)
    try:
        model = build_model(weights.spec)
    except ConfigError as error:
        raise CheckpointError(f"weights {path}: {error}") from None
    report = transfer_weights_(model, weights.state)
    if report.skipped or report.partial:
        raise CheckpointError(f"weights {path} do not fill their own network: {report.as_text()}; use another copy")
    return LoadedModel(model=model.eval(), names=weights.names, checkpoint=weights.checkpoint)


def create_model(
    cfg: str | Path | None, weights: str | Path | None, *, num_classes: int
) -> tuple[Detector, TransferReport | None]:
    """A network to train: from a model YAML, from weights, or the first filled with the second.

    Args:
        cfg: Model YAML or shipped name; without it the network is that of the weights.
        weights: What fits of them is loaded, and the rest reported.
        num_classes: Of the data set.

    Returns:
        The network, and what came across where weights were given.

    Raises:
        ConfigError: Neither is given, or the YAML is wrong.
        CheckpointError: The weights cannot be read.
    """
    source = read_weights(weights) if weights else None
    if cfg:
        spec = ModelSpec.from_yaml(cfg, num_classes=num_classes)
        if source is not None and not has_explicit_anchors(cfg):
            spec = _with_anchors_of(spec, source)
    elif source is not None:
        spec = replace(source.spec, num_classes=num_classes)
    else:
        raise ConfigError("no network given; use --cfg with a model YAML, or --weights with a checkpoint")
    model = build_model(spec)
    if source is None:
        return model, None
    report = transfer_weights_(model, source.state)
    if report.loaded == 0:
        log.warning("%s: nothing fits this network; it starts from scratch", weights)
    return model, report


def _with_anchors_of(spec: ModelSpec, source: WeightsFile) -> ModelSpec:
    """The anchors of the weights, where the heads agree."""
    has_same_heads = source.spec.strides == spec.strides and source.spec.num_anchors == spec.num_anchors
    return replace(spec, anchors=source.spec.anchors) if has_same_heads else spec
