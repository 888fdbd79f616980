"""Are the boxes of an ONNX file with suppression inside those of the network and our own suppression?"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from deploy.onnx.nms import NmsSettings
from deploy.packages import optional_package
from deploy.verification.agreement import BoxAgreement
from deploy.verification.ties import Choice, TieRule
from deploy.verification.verify import TOLERANCES, Reference
from utils.decode import decode_heads
from utils.nms import non_max_suppression


@dataclass(frozen=True, kw_only=True)
class NmsReport:
    """What was compared.

    Attributes:
        path: The file.
        boxes: Agreement over the pictures of the reference.
        passed: Whether it is within the tolerance of float32.
    """

    path: Path
    boxes: BoxAgreement
    passed: bool

    def as_text(self) -> str:
        """One line for people."""
        verdict = "passed" if self.passed else "FAILED"
        ties = f", {self.boxes.tied} ties left out" if self.boxes.tied else ""
        share = f"{self.boxes.share:.1%} of {self.boxes.expected}{ties}"
        return f"{self.path.name}  boxes from the graph: {share}  {verdict}"


def check_nms(path: Path, reference: Reference, *, nms: NmsSettings, batch_size: int) -> NmsReport:
    """Run the file on the pictures of the reference.

    Args:
        path: The ONNX file; gives boxes, scores, class ids and image ids.
        reference: The network and the pictures.
        nms: Thresholds of the file.
        batch_size: Images per call of the file.
    """
    onnxruntime = optional_package("onnxruntime", purpose=str(path))
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    tolerance = TOLERANCES["fp32"]
    rule = TieRule(conf=nms.conf, iou=nms.iou, max_det=nms.max_det, score=tolerance.score)
    found, expected, choices = [], [], []
    for image in reference.images:
        boxes, scores, classes, images = session.run(None, {"images": image.expand(batch_size, -1, -1, -1).numpy()})
        rows = [torch.from_numpy(values).float() for values in (boxes, scores[:, None], classes[:, None])]
        found.append(torch.cat(rows, 1)[torch.from_numpy(images) == 0])
        decoded = _decoded(image, reference)
        expected += non_max_suppression(decoded, conf=nms.conf, iou=nms.iou, max_det=nms.max_det)
        # The graph shows only what it keeps; in float32 it chose from the same.
        choices.append(Choice(found=decoded[0], expected=decoded[0], rule=rule))
    agreement = BoxAgreement.of(found, expected, choices=choices)
    passed = 1 - agreement.share <= tolerance.unmatched and agreement.score_difference <= tolerance.score
    return NmsReport(path=path, boxes=agreement, passed=passed)


def _decoded(image: Tensor, reference: Reference) -> Tensor:
    """(1, N, 5 + nc) of the network."""
    runtime = reference.runtime
    return decode_heads(runtime(image[None]), runtime.anchors, runtime.strides)
