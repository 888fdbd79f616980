"""Loading of networks from files, for use or as a start for training."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path

from models.detector import Detector, build_model
from models.spec import ModelSpec, has_explicit_anchors
from models.transfer import TransferReport, transfer_weights_
from models.weights import WeightsFile, read_weights
from utils.errors import CheckpointError, ConfigError
from utils.storage.checkpoint import Checkpoint

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """A network ready for use.

    Attributes:
        model: Network in evaluation mode, float32, on the CPU.
        names: Class names, in order of class ids.
        checkpoint: Whole checkpoint, if this project wrote the file.
    """

    model: Detector
    names: tuple[str, ...]
    checkpoint: Checkpoint | None = None


def load_model(path: str | Path) -> LoadedModel:
    """Load any supported weights file; the network is rebuilt from its spec and filled completely.

    Raises:
        CheckpointError: The file is not supported, or its tensors do not fill the network that it describes.
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
    """Build a network to train: from a model YAML, from weights, or from the YAML filled with the weights.

    Args:
        cfg: Model YAML or shipped name; None builds the network that the weights describe.
        weights: Weights file; tensors that fit are loaded, and the others reported.
        num_classes: Number of classes in the data set.

    Returns:
        The network, and a report of the loaded tensors if weights were given.

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
        log.warning("%s: no tensor fits this network; training starts from scratch", weights)
    return model, report


def _with_anchors_of(spec: ModelSpec, source: WeightsFile) -> ModelSpec:
    """Give `spec` the anchors of the weights if both have the same heads."""
    has_same_heads = source.spec.strides == spec.strides and source.spec.num_anchors == spec.num_anchors
    return replace(spec, anchors=source.spec.anchors) if has_same_heads else spec
