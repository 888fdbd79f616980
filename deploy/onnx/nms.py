"""ONNX export with decoding and NMS in the graph, for users who want boxes directly."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from deploy.artefact.metadata import METADATA_NAME
from deploy.artefact.packages import optional_package
from deploy.artefact.runtime import DetectorRuntime
from deploy.job import ExportJob
from deploy.onnx.graph import GraphSettings, onnx_package, save_onnx, trace_onnx
from deploy.onnx.network import NMS_PROPERTY, onnx_graph
from deploy.outputs.heads import ExportMetadata
from deploy.outputs.metadata import Metadata
from deploy.outputs.outputs import INPUT_NAME
from deploy.verification.agreement import BoxAgreement
from deploy.verification.heads import TOLERANCES
from deploy.verification.ties import Choice, TieRule
from deploy.verification.verify import Reference
from engine.evaluation.predict import predictor
from utils.boxes.boxes import cxcywh_to_xyxy
from utils.boxes.decode import decode_heads
from utils.boxes.nms import check_thresholds, non_max_suppression

# Outputs of the graph: n boxes over all images of the batch, image after image, best first.
OUTPUTS = ("boxes", "scores", "class_ids", "image_ids")


@dataclass(frozen=True, kw_only=True)
class NmsSettings:
    """Thresholds that become constants of the graph.

    Attributes:
        conf: Minimum score of a box, in [0, 1].
        iou: IoU above which the weaker of two boxes of a class is dropped, in [0, 1].
        max_det: Maximum number of boxes per image.
    """

    conf: float = 0.25
    iou: float = 0.45
    max_det: int = 300

    def __post_init__(self) -> None:
        check_thresholds(conf=self.conf, iou=self.iou, max_det=self.max_det)


def write_onnx_with_nms(job: ExportJob, path: Path, *, nms: NmsSettings) -> Metadata:
    """Write a detector as ONNX whose graph returns boxes.

    Input `images` (B, 3, H, W) float32 RGB in [0, 1], letterboxed. Outputs over all images, image after image and
    best first: `boxes` (n, 4) float32 xyxy in pixels of the input, `scores` (n,) float32, `class_ids` (n,) int64,
    `image_ids` (n,) int64. The boxes equal those of `utils.boxes.nms.non_max_suppression` with one class per
    candidate.

    The file contains the usual metadata, and the thresholds as property `nms.json`; `val.py` and `detect.py` refuse
    it, since they decode heads themselves. Decoding is in float32 in every precision.

    Args:
        job: Detector and settings, as for `deploy.onnx.network.write_onnx`.
        path: Path of the file.
        nms: Thresholds.

    Raises:
        ConfigError: The same cases as in `write_onnx`.
    """
    metadata = job.metadata("onnx", path)
    assert isinstance(metadata, ExportMetadata), "the settings give NMS to detectors alone"
    network = onnx_graph(job, metadata, precision=metadata.precision)
    boxes = _boxes_graph(network, metadata, nms=nms, opset=job.settings.opset)
    heads = [(name, name) for name in metadata.output_names]
    joined = onnx_package().compose.merge_models(network, boxes, io_map=heads)
    properties = {METADATA_NAME: metadata.to_json(), NMS_PROPERTY: json.dumps(asdict(nms))}
    save_onnx(joined, path, properties=properties)
    return metadata


def _boxes_graph(network: Any, metadata: ExportMetadata, *, nms: NmsSettings, opset: int) -> Any:
    """Build the graph from head maps to boxes, with inner names that differ from the network's."""
    examples = [torch.zeros(metadata.batch_size, *shape[1:]) for shape in metadata.output_shapes]
    heads = metadata.output_names
    free = {name: {0: "detections"} for name in OUTPUTS}
    free |= {name: axes for name, axes in metadata.free_axes.items() if name in heads}
    settings = GraphSettings(inputs=heads, outputs=OUTPUTS, opset=opset, dynamic=free)
    graph = trace_onnx(Boxes(metadata, nms), examples, settings)
    # Graphs can be merged only if they have the same format version.
    graph.ir_version = network.ir_version
    compose = onnx_package().compose
    return compose.add_prefix(graph, "nms/", rename_inputs=False, rename_outputs=False)


class Boxes(nn.Module):
    """Decoding, NMS and the limit to `max_det`, as a module.

    It is only for tracing: outside ONNX the NMS is a placeholder.

    Args:
        metadata: Metadata with anchors, strides and classes.
        nms: Thresholds.
    """

    def __init__(self, metadata: ExportMetadata, nms: NmsSettings) -> None:
        super().__init__()
        self.metadata = metadata
        self.nms = nms

    def forward(self, *maps: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Convert head maps (B, A * (5 + nc), H, W) to boxes, scores, class ids and image ids, (n, ...) each."""
        heads = self.metadata.raw_heads(maps, where="the network")
        decoded = decode_heads(heads, self.metadata.anchor_tensor, self.metadata.strides)  # (B, N, 5 + nc)
        boxes = cxcywh_to_xyxy(decoded[..., :4])
        scores = decoded[..., 4:5] * decoded[..., 5:]
        # A candidate yields one box, of its best class: the scores of all others are set below every threshold.
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
        """Return the indices of at most `max_det` boxes per image, image after image, best first."""
        by_score = torch.argsort(scores, descending=True)
        places = torch.arange(scores.shape[0])
        # Sorts by image and keeps the order within each; the keys are distinct, so the sort need not be stable.
        order = by_score[torch.argsort(image[by_score] * scores.shape[0] + places)]
        first = (image[None] < images[:, None]).sum(1)  # (B,): where each image begins
        return order[places - first[image[order]] < self.nms.max_det]


class _NonMaxSuppression(torch.autograd.Function):
    """ONNX's operator NonMaxSuppression."""

    @staticmethod
    def forward(ctx: Any, boxes: Tensor, scores: Tensor, max_det: int, iou: float, conf: float) -> Tensor:
        """Return a placeholder for tracing: one selected box (1, 3) int64."""
        return torch.zeros(1, 3, dtype=torch.int64)

    @staticmethod
    def symbolic(g: Any, boxes: Any, scores: Any, max_det: int, iou: float, conf: float) -> Any:
        """Emit the operator, from corners (B, N, 4) and scores (B, classes, N) to (n, 3) image, class, place."""
        limits = [torch.tensor([max_det]), torch.tensor([iou]), torch.tensor([conf])]
        constants = [g.op("Constant", value_t=limit) for limit in limits]
        return g.op("NonMaxSuppression", boxes, scores, *constants)


@dataclass(frozen=True, kw_only=True)
class NmsReport:
    """Comparison of the boxes from the graph with those of the network.

    Attributes:
        path: Path of the file.
        boxes: Agreement of boxes on the reference's images.
        passed: True if the agreement is within the tolerance of float32.
    """

    path: Path
    boxes: BoxAgreement
    passed: bool

    def as_text(self) -> str:
        """Format the result as one line."""
        verdict = "passed" if self.passed else "FAILED"
        ties = f", {self.boxes.tied} ties left out" if self.boxes.tied else ""
        share = f"{self.boxes.share:.1%} of {self.boxes.expected}{ties}"
        return f"{self.path.name}  boxes from the graph: {share}  {verdict}"


def check_nms(path: Path, reference: Reference, *, nms: NmsSettings, batch_size: int) -> NmsReport:
    """Run the file on the reference's images, and compare its boxes with those of the network.

    Args:
        path: Path of the ONNX file, which returns boxes, scores, class ids and image ids.
        reference: Network and images.
        nms: Thresholds of the file.
        batch_size: Images per call of the file.
    """
    onnxruntime = optional_package("onnxruntime", purpose=str(path))
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    tolerance = TOLERANCES["fp32"]
    rule = TieRule(conf=nms.conf, iou=nms.iou, max_det=nms.max_det, score=tolerance.score)
    found, expected, choices = [], [], []
    for image in reference.images:
        boxes, scores, classes, images = session.run(None, {INPUT_NAME: image.expand(batch_size, -1, -1, -1).numpy()})
        rows = [torch.from_numpy(values).float() for values in (boxes, scores[:, None], classes[:, None])]
        found.append(torch.cat(rows, 1)[torch.from_numpy(images) == 0])
        decoded = _decoded(image, reference)
        expected += non_max_suppression(decoded, conf=nms.conf, iou=nms.iou, max_det=nms.max_det)
        # The graph returns only the boxes it keeps; in float32 its candidates are the network's.
        choices.append(Choice(found=decoded[0], expected=decoded[0], rule=rule))
    agreement = BoxAgreement.of(found, expected, choices=choices)
    passed = 1 - agreement.share <= tolerance.unmatched and agreement.score_difference <= tolerance.score
    return NmsReport(path=path, boxes=agreement, passed=passed)


def _decoded(image: Tensor, reference: Reference) -> Tensor:
    """Run the network on one image, and decode its heads to (1, N, 5 + nc)."""
    return predictor(cast("DetectorRuntime", reference.runtime))(image[None])
