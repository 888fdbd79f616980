"""Networks to export, and the reference that their artefacts are compared with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cut_oracle import cuttable_ids
from mask_oracle import lively
from tiny import TINY_CFG
from torch import Tensor, nn

from deploy.job import ExportJob
from deploy.ncnn.export import write_ncnn
from deploy.onnx.network import write_onnx
from deploy.onnx.nms import NmsSettings, write_onnx_with_nms
from deploy.openvino import write_openvino
from deploy.outputs.classifier import ClassifierSource
from deploy.outputs.detector import DetectorSource
from deploy.outputs.heads import ExportMetadata
from deploy.settings import ExportSettings, FormatSettings
from deploy.tensorrt.export import write_tensorrt
from deploy.torch_formats import write_torchscript
from models.detector import Detector, build_model
from models.fuse import fuse
from models.spec import ModelSpec
from pruning.channels.graph import ChannelGraph
from pruning.surgery.cut import cut


def network(kind: str) -> Detector:
    """`tiny` or a shipped YAML, such as `pruned yolov5n` without many channels; statistics as after training."""
    torch.manual_seed(0)
    name = kind.removeprefix("pruned ")
    cfg = TINY_CFG if name == "tiny" else name
    model = lively(build_model(ModelSpec.from_yaml(cfg, num_classes=3)))
    return (pruned(model) if kind != name else model).float()


def pruned(model: Detector) -> Detector:
    """Without about four of ten channels."""
    graph = ChannelGraph.of(model)
    smaller = cut(model, graph, cuttable_ids(graph, seed=1))
    assert isinstance(smaller, Detector)
    return smaller


def detector_job(
    model: Detector,
    *,
    names: Sequence[str],
    source_sha256: str,
    settings: ExportSettings,
    calibration: Sequence[Tensor] = (),
    **special: Any,
) -> ExportJob:
    """The job of a detector, as `export_arguments` describes it."""
    source = DetectorSource(model=model, names=names, sha256=source_sha256)
    return ExportJob(source=source, settings=settings, calibration=calibration, special=FormatSettings(**special))


def metadata_of(model: Detector, *, format: str, versions: dict[str, str], **settings: Any) -> ExportMetadata:
    """The metadata of a detector, as `export_arguments` describes it."""
    job = detector_job(model, **export_arguments(model, **settings))
    metadata = job.source.metadata(format=format, settings=job.settings, versions=versions)
    assert isinstance(metadata, ExportMetadata)
    return metadata


def classifier_job(
    model: nn.Module,
    *,
    calibration: Sequence[Tensor] = (),
    image_chw: tuple[int, int, int] = (1, 28, 28),
    **more: Any,
) -> ExportJob:
    """The job of a classifier; `more` are names, mean and std, or settings of the export."""
    own = {name: more.pop(name) for name in ("names", "mean", "std") if name in more}
    source = ClassifierSource(model=model, image_chw=image_chw, **own)
    return ExportJob(source=source, settings=ExportSettings(**more), calibration=calibration)


def _export(write: Callable[..., Any], model: Detector, path: Path, **arguments: Any) -> Any:
    return write(detector_job(model, **arguments), path)


export_ncnn = partial(_export, write_ncnn)
export_onnx = partial(_export, write_onnx)
export_openvino = partial(_export, write_openvino)
export_tensorrt = partial(_export, write_tensorrt)
export_torchscript = partial(_export, write_torchscript)


def export_onnx_with_nms(model: Detector, path: Path, *, nms: NmsSettings, **arguments: Any) -> Any:
    """A detector whose graph gives boxes."""
    return write_onnx_with_nms(detector_job(model, **arguments), path, nms=nms)


def export_arguments(model: Detector, **settings: Any) -> dict[str, Any]:
    """Keyword arguments of every export function."""
    names = [f"class {index}" for index in range(model.spec.num_classes)]
    hw = (model.max_stride * 2, model.max_stride * 3)
    return {
        "names": names,
        "source_sha256": "0" * 64,
        "settings": ExportSettings(**{"image_hw": hw, **settings}),
    }


def images_of(hw: tuple[int, int], *, count: int = 1) -> Tensor:
    """(count, 3, H, W) in [0, 1]."""
    return torch.from_numpy(np.random.default_rng(3).random((count, 3, *hw), dtype=np.float32))


@torch.inference_mode()
def head_error(heads: Sequence[Tensor], model: Detector, images: Tensor) -> float:
    """Largest difference from the fused float32 model, relative to the largest number of the head."""
    expected = fuse(model)(images)
    assert [head.shape for head in heads] == [head.shape for head in expected]
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(heads, expected, strict=True))


def cut_off(path: Path) -> None:
    """Leave the first two thirds of a file."""
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 2 // 3])
