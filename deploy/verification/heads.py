"""Agreement of an exported detector with its network: raw heads, boxes and mAP."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from deploy.choices import Precision
from deploy.verification.agreement import BoxAgreement, HeadError
from deploy.verification.ties import Choice, TieRule
from utils.boxes.decode import decode_heads
from utils.boxes.nms import non_max_suppression
from utils.storage.run_folder import plain

# Thresholds of confidence and IoU for the boxes that are compared.
_CONF, _IOU = 0.25, 0.45


@dataclass(frozen=True, kw_only=True)
class Tolerance:
    """Largest allowed differences between an artefact and the fused float32 network.

    Attributes:
        head_error: Largest error of a head, relative to its largest magnitude.
        unmatched: Share of boxes at confidence 0.25 without a partner, ties left out.
        score: Mean difference of scores, and the difference up to which two scores are a tie.
        ap_loss: Loss of mAP50-95.
    """

    head_error: float
    unmatched: float
    score: float
    ap_loss: float


# By the artefact's precision. Eight bits change single values of a head a lot, but boxes and mAP hardly: yolov5s
# with COCO weights has a head error of 0.54 at 640 px on ncnn and loses 0.009 mAP.
TOLERANCES: Mapping[Precision, Tolerance] = {
    "fp32": Tolerance(head_error=1e-4, unmatched=0.005, score=1e-4, ap_loss=0.0005),
    "fp16": Tolerance(head_error=2e-2, unmatched=0.02, score=5e-3, ap_loss=0.002),
    "bf16": Tolerance(head_error=1e-1, unmatched=0.1, score=2e-2, ap_loss=0.005),
    "int8": Tolerance(head_error=7.5e-1, unmatched=0.2, score=5e-2, ap_loss=0.01),
}


@dataclass(frozen=True, kw_only=True)
class HeadsAgreement:
    """Agreement of heads, boxes and mAP, with the methods of `deploy.outputs.outputs.Agreement`.

    Attributes:
        heads: Errors of each raw head.
        boxes: Agreement of boxes at confidence 0.25.
        ap: mAP50-95 of the network and of the artefact; None without data.
    """

    heads: tuple[HeadError, ...]
    boxes: BoxAgreement
    ap: tuple[float, float] | None
    columns: ClassVar[tuple[str, ...]] = ("head error", "same boxes", "mAP", "was")
    caption: ClassVar[str] = "mAP: 50-95"

    @classmethod
    def of(cls, found: Any, expected: Any, images: Tensor, *, ap: tuple[float, float] | None) -> HeadsAgreement:
        """Compare two runtimes.

        Args:
            found: Runtime of the artefact.
            expected: Runtime of the network.
            images: Letterboxed images (B, 3, H, W) in [0, 1].
            ap: mAP50-95 of the network and of the artefact.
        """
        own, other = _run(found, images), _run(expected, images)
        decoded = [decode_heads(heads, expected.anchors.cpu(), expected.strides) for heads in (own, other)]
        return cls(
            heads=tuple(HeadError.of(*pair) for pair in zip(own, other, strict=True)),
            boxes=box_agreement(*decoded, tie=TOLERANCES[found.precision].score),
            ap=ap,
        )

    @property
    def cells(self) -> tuple[str, ...]:
        """Values as text, one per column."""
        was, now = ("-", "-") if self.ap is None else (f"{value:.4f}" for value in self.ap)
        error = max(head.largest for head in self.heads)
        return f"{error:.1e}", f"{self.boxes.share:.1%} of {self.boxes.expected}", now, was

    def checks(self, precision: Precision) -> list[tuple[str, float, float]]:
        """Return what is limited, its value, and the maximum at this precision."""
        tolerance = TOLERANCES[precision]
        checks = [(f"error of head {i}", head.largest, tolerance.head_error) for i, head in enumerate(self.heads)]
        checks.append(("share of boxes without a partner", 1 - self.boxes.share, tolerance.unmatched))
        checks.append(("mean difference of scores", self.boxes.score_difference, tolerance.score))
        if self.ap is not None:
            checks.append(("mAP lost", self.ap[0] - self.ap[1], tolerance.ap_loss))
        return checks

    def notes(self, precision: Precision) -> list[str]:
        """Return lines on boxes that were not compared."""
        notes = []
        if not self.boxes.expected:
            notes.append(
                "no boxes to compare: on these images the network finds none above 0.25; give --data with images "
                "like those it was trained on"
            )
        if self.boxes.tied:
            notes.append(
                f"{self.boxes.tied} boxes not compared: a choice between scores less than "
                f"{TOLERANCES[precision].score:g} apart fell the other way"
            )
        return notes

    def data(self, precision: Precision) -> dict[str, Any]:
        """Return plain data for result.json, including the tolerance."""
        return {**plain(self), "same_boxes": self.boxes.share, "tolerance": plain(TOLERANCES[precision])}


def _run(runtime: Any, images: Tensor) -> list[Tensor]:
    """Compute raw heads, on the CPU; images run one at a time, which takes the least memory."""
    per_image = [[head.cpu() for head in runtime(image[None])] for image in images]
    return [torch.cat(level) for level in zip(*per_image, strict=True)]


def box_agreement(found: Tensor, expected: Tensor, *, tie: float) -> BoxAgreement:
    """Compare the boxes of two runtimes at confidence 0.25.

    Args:
        found: Decoded boxes (B, N, 5 + nc), as `decode_heads` returns them.
        expected: Decoded boxes of the reference, of the same shape.
        tie: Difference up to which scores count as nearly equal.
    """
    rule = TieRule(conf=_CONF, iou=_IOU, score=tie)
    kept: Sequence[list[Tensor]] = [
        non_max_suppression(decoded, conf=rule.conf, iou=rule.iou) for decoded in (found, expected)
    ]
    choices = [Choice(found=own, expected=other, rule=rule) for own, other in zip(found, expected, strict=True)]
    return BoxAgreement.of(*kept, choices=choices)
