"""ONNX with decoding and suppression inside, for those who want boxes from the graph and nothing else."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from deploy.metadata import METADATA_NAME, ExportMetadata, ExportSettings
from deploy.onnx.detector import NMS_PROPERTY, detector_graph, free_axes, head_names, onnx_metadata
from deploy.onnx.graph import GraphSettings, onnx_package, save_onnx, trace_onnx
from models.detector import Detector
from utils.boxes import cxcywh_to_xyxy
from utils.decode import decode_heads
from utils.errors import ConfigError

# What the graph gives, n boxes over all images of the batch: image after image, best first.
OUTPUTS = ("boxes", "scores", "class_ids", "image_ids")


@dataclass(frozen=True, kw_only=True)
class NmsSettings:
    """Thresholds that become constants of the graph.

    Attributes:
        conf: Least score of a box, in [0, 1].
        iou: Overlap above which the weaker of two boxes of one class goes, in [0, 1].
        max_det: Most boxes per image.
    """

    conf: float = 0.25
    iou: float = 0.45
    max_det: int = 300

    def __post_init__(self) -> None:
        for name in ("conf", "iou"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"nms {name}: got {getattr(self, name)}, expected 0 to 1")
        if self.max_det < 1:
            raise ConfigError(f"nms max_det: got {self.max_det}, expected at least 1")


def export_onnx_with_nms(
    model: Detector,
    path: str | Path,
    *,
    names: Sequence[str],
    source_sha256: str,
    settings: ExportSettings,
    nms: NmsSettings,
    calibration: Sequence[Tensor] = (),
) -> ExportMetadata:
    """Write a network as ONNX that gives boxes.

    Input `images` (B, 3, H, W) float32 RGB in [0, 1], letterboxed. Outputs over all images, image after image and
    best first: `boxes` (n, 4) float32 xyxy in pixels of the input, `scores` (n,) float32, `class_ids` (n,) int64,
    `image_ids` (n,) int64. The same boxes as `utils.nms.non_max_suppression` gives with one class per place.

    The file carries the usual metadata and the thresholds as a property `nms.json`; `val.py` and `detect.py` refuse
    it, for they do their own decoding.

    Args:
        model: Dense or pruned; not touched.
        path: The file.
        names: Class names by id.
        source_sha256: Of the weights file.
        settings: As for `export_onnx`.
        nms: Thresholds.
        calibration: Images for int8; decoding stays in float32.

    Raises:
        ConfigError: As `export_onnx`.
    """
    metadata = onnx_metadata(model, names=names, source_sha256=source_sha256, settings=settings)
    network = detector_graph(model, metadata, opset=settings.opset, calibration=calibration)
    heads = head_names(metadata)
    boxes = _boxes_graph(network, metadata, nms=nms, opset=settings.opset)
    joined = onnx_package().compose.merge_models(network, boxes, io_map=[(name, name) for name in heads])
    properties = {METADATA_NAME: metadata.to_json(), NMS_PROPERTY: json.dumps(asdict(nms))}
    save_onnx(joined, path, properties=properties)
    return metadata


def _boxes_graph(network: Any, metadata: ExportMetadata, *, nms: NmsSettings, opset: int) -> Any:
    """From head maps to boxes, its inner names unlike those of the network."""
    num_maps = len(metadata.anchors[0]) // 2 * (5 + metadata.num_classes)
    height, width = metadata.image_hw
    examples = [
        torch.zeros(metadata.batch_size, num_maps, height // stride, width // stride) for stride in metadata.strides
    ]
    heads = head_names(metadata)
    free = {name: {0: "detections"} for name in OUTPUTS} | free_axes(heads, metadata)
    settings = GraphSettings(inputs=heads, outputs=OUTPUTS, opset=opset, dynamic=free)
    graph = trace_onnx(Boxes(metadata, nms), examples, settings)
    # Graphs that are joined must be of one format version.
    graph.ir_version = network.ir_version
    compose = onnx_package().compose
    return compose.add_prefix(graph, "nms/", rename_inputs=False, rename_outputs=False)


class Boxes(nn.Module):
    """Decoding, suppression and the cut to `max_det`.

    Only for tracing: outside ONNX the suppression is a stand-in.

    Args:
        metadata: Anchors, strides and classes.
        nms: Thresholds.
    """

    def __init__(self, metadata: ExportMetadata, nms: NmsSettings) -> None:
        super().__init__()
        self.metadata = metadata
        self.nms = nms

    def forward(self, *maps: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Head maps (B, A * (5 + nc), H, W) to boxes, scores, class ids and image ids, (n, ...) each."""
        heads = self.metadata.raw_heads(maps, where="the network")
        decoded = decode_heads(heads, self.metadata.anchor_tensor, self.metadata.strides)  # (B, N, 5 + nc)
        boxes = cxcywh_to_xyxy(decoded[..., :4])
        scores = decoded[..., 4:5] * decoded[..., 5:]
        # A place gives one box, of its best class: all others go below every threshold.
        best, label = scores.max(-1)  # (B, N)
        classes = torch.arange(self.metadata.num_classes)
        scores = torch.where(classes == label[..., None], scores, torch.zeros_like(scores) - 1)
        arguments = (boxes, scores.transpose(1, 2), self.nms.max_det, self.nms.iou, self.nms.conf)
        selected = _NonMaxSuppression.apply(*arguments)  # type: ignore[no-untyped-call]  # (n, 3) image, class, place
        image, place = selected[:, 0], selected[:, 2]
        order = self._best_of_each_image(best[image, place], image, torch.arange(boxes.shape[0]))
        image, place = image[order], place[order]
        return boxes[image, place], best[image, place], label[image, place], image

    def _best_of_each_image(self, scores: Tensor, image: Tensor, images: Tensor) -> Tensor:
        """Indices of at most `max_det` boxes per image, image after image, best first."""
        by_score = torch.argsort(scores, descending=True)
        places = torch.arange(scores.shape[0])
        # By image, and within one as they stood: no two of these whole numbers are equal.
        order = by_score[torch.argsort(image[by_score] * scores.shape[0] + places)]
        first = (image[None] < images[:, None]).sum(1)  # (B,): where each image begins
        return order[places - first[image[order]] < self.nms.max_det]


class _NonMaxSuppression(torch.autograd.Function):
    """ONNX's operator of that name."""

    @staticmethod
    def forward(ctx: Any, boxes: Tensor, scores: Tensor, max_det: int, iou: float, conf: float) -> Tensor:
        """The shape only: one selected box (1, 3) int64, for tracing."""
        return torch.zeros(1, 3, dtype=torch.int64)

    @staticmethod
    def symbolic(g: Any, boxes: Any, scores: Any, max_det: int, iou: float, conf: float) -> Any:
        """(B, N, 4) corners and (B, classes, N) scores to (n, 3) image, class, place."""
        limits = [torch.tensor([max_det]), torch.tensor([iou]), torch.tensor([conf])]
        constants = [g.op("Constant", value_t=limit) for limit in limits]
        return g.op("NonMaxSuppression", boxes, scores, *constants)
