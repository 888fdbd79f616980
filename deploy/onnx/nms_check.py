"""Are the boxes of an ONNX file with suppression inside those of the network and our own suppression?"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from deploy.onnx.nms import NmsSettings
from deploy.packages import optional_package
from deploy.verification.agreement import BoxAgreement
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
        return f"{self.path.name}  boxes from the graph: {self.boxes.share:.1%} of {self.boxes.expected}  {verdict}"


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
    found, expected = [], []
    for image in reference.images:
        boxes, scores, classes, images = session.run(None, {"images": image.expand(batch_size, -1, -1, -1).numpy()})
        rows = [torch.from_numpy(values).float() for values in (boxes, scores[:, None], classes[:, None])]
        found.append(torch.cat(rows, 1)[torch.from_numpy(images) == 0])
        expected.append(_own_boxes(image, reference, nms))
    agreement, tolerance = BoxAgreement.of(found, expected), TOLERANCES["fp32"]
    passed = 1 - agreement.share <= tolerance.unmatched and agreement.score_difference <= tolerance.score
    return NmsReport(path=path, boxes=agreement, passed=passed)


def _own_boxes(image: Tensor, reference: Reference, nms: NmsSettings) -> Tensor:
    runtime = reference.runtime
    decoded = decode_heads(runtime(image[None]), runtime.anchors, runtime.strides)
    return non_max_suppression(decoded, conf=nms.conf, iou=nms.iou, max_det=nms.max_det)[0]
