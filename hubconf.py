"""Models for `torch.hub.load(<this folder>, 'custom', path='best.pt', source='local')`.

Nothing is downloaded: weights are given as a file, else the network starts from random numbers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from deploy.outputs.detector import DetectorSource
from deploy.predictor import Predictor, PredictSettings, load
from models.detector import Detector, build_model
from models.load import load_model
from models.spec import ModelSpec
from utils.device import select_device
from utils.errors import ConfigError

dependencies = ["torch", "numpy", "cv2", "PIL", "yaml", "matplotlib", "tqdm", "faster_coco_eval"]


def custom(path: str | Path, *, autoshape: bool = True, device: str = "", **settings: Any) -> Predictor | Detector:
    """Return a trained detector from a checkpoint of ours, an official YOLOv5 one, or an exported artefact.

    Args:
        path: The file.
        autoshape: Give a `Predictor` that takes pictures of any kind; else the bare network (.pt only).
        device: "" takes a GPU if there is one; else "cpu", "0", ...
        **settings: Fields of `deploy.PredictSettings`, such as `conf=0.4`.
    """
    if autoshape:
        return load(path, device=device, **settings)
    return load_model(path).model.to(select_device(device))


def _named(
    name: str,
    *,
    pretrained: bool = False,
    weights: str | Path | None = None,
    classes: int = 80,
    autoshape: bool = True,
    device: str = "",
    **settings: Any,
) -> Predictor | Detector:
    """Return the network of models/<name>.yaml, or `custom(weights)`.

    Args:
        name: A file in models/ without its suffix.
        pretrained: Only together with `weights`.
        weights: A checkpoint; its own architecture and classes are used.
        classes: Number of classes of a network without weights.
        autoshape: As in `custom`.
        device: As in `custom`.
        **settings: As in `custom`.

    Raises:
        ConfigError: `pretrained` without `weights`.
    """
    if weights is not None:
        return custom(weights, autoshape=autoshape, device=device, **settings)
    if pretrained:
        raise ConfigError(f"{name}(pretrained=True): nothing is downloaded here; give weights='{name}.pt'")
    model = build_model(ModelSpec.from_yaml(f"{name}.yaml", num_classes=classes)).eval()
    if not autoshape:
        return model.to(select_device(device))
    names = tuple(f"class{class_id}" for class_id in range(classes))
    runtime = DetectorSource(model=model, names=names).runtime(select_device(device))
    return Predictor(runtime, settings=PredictSettings(**settings))


def yolov5n(**options: Any) -> Predictor | Detector:
    """YOLOv5n; see `_named` for the options."""
    return _named("yolov5n", **options)


def yolov5s(**options: Any) -> Predictor | Detector:
    """YOLOv5s; see `_named` for the options."""
    return _named("yolov5s", **options)


def yolov5m(**options: Any) -> Predictor | Detector:
    """YOLOv5m; see `_named` for the options."""
    return _named("yolov5m", **options)


def yolov5l(**options: Any) -> Predictor | Detector:
    """YOLOv5l; see `_named` for the options."""
    return _named("yolov5l", **options)


def yolov5x(**options: Any) -> Predictor | Detector:
    """YOLOv5x; see `_named` for the options."""
    return _named("yolov5x", **options)


def yolov5n6(**options: Any) -> Predictor | Detector:
    """YOLOv5n6; see `_named` for the options."""
    return _named("yolov5n6", **options)


def yolov5s6(**options: Any) -> Predictor | Detector:
    """YOLOv5s6; see `_named` for the options."""
    return _named("yolov5s6", **options)


def yolov5m6(**options: Any) -> Predictor | Detector:
    """YOLOv5m6; see `_named` for the options."""
    return _named("yolov5m6", **options)


def yolov5l6(**options: Any) -> Predictor | Detector:
    """YOLOv5l6; see `_named` for the options."""
    return _named("yolov5l6", **options)


def yolov5x6(**options: Any) -> Predictor | Detector:
    """YOLOv5x6; see `_named` for the options."""
    return _named("yolov5x6", **options)
