"""Compares an exported artefact with its network: raw heads, boxes, mAP, size and speed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from deploy.artefact.runtime import RuntimeModel
from deploy.choices import Precision
from deploy.verification.agreement import BoxAgreement, HeadError
from deploy.verification.artefact import ArtefactReport, beyond, megabytes_of
from deploy.verification.latency import measure_latencies
from deploy.verification.ties import Choice, TieRule
from utils.boxes.decode import decode_heads
from utils.boxes.nms import non_max_suppression

# Thresholds of confidence and IoU for the boxes that are compared.
_CONF, _IOU = 0.25, 0.45

# Function from a runtime and its only height and width (None: any) to mAP50-95.
MeasureAP = Callable[[RuntimeModel, tuple[int, int] | None], float]


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
class VerifyReport(ArtefactReport):
    """Comparison of one artefact of a detector with its network.

    Attributes:
        heads: Errors of each raw head.
        boxes: Agreement of boxes at confidence 0.25.
        ap: mAP50-95 of the network and of the artefact; None without data.
    """

    heads: tuple[HeadError, ...]
    boxes: BoxAgreement
    ap: tuple[float, float] | None


@dataclass(frozen=True, kw_only=True)
class Reference:
    """The network that artefacts are compared with.

    Attributes:
        path: Path of the weights file.
        runtime: Fused float32 network on the CPU.
        images: Letterboxed real images (B, 3, H, W) in [0, 1].
        threads: Number of threads, reported with the times.
        measure_ap: Function that measures mAP50-95; None without data.
    """

    path: Path
    runtime: RuntimeModel
    images: Tensor
    threads: int
    measure_ap: MeasureAP | None = None


def verify(artefact: RuntimeModel, reference: Reference, *, path: Path, batch_size: int = 1) -> VerifyReport:
    """Compare an artefact with its network.

    Args:
        artefact: Artefact loaded from `path`.
        reference: Network and the images to compare on.
        path: Path of the artefact, for its size.
        batch_size: Images per timed call.
    """
    found, expected = _run(artefact, reference.images), _run(reference.runtime, reference.images)
    heads = tuple(HeadError.of(own, other) for own, other in zip(found, expected, strict=True))
    tolerance = TOLERANCES[artefact.precision]
    boxes = box_agreement(_decoded(artefact, found), _decoded(reference.runtime, expected), tie=tolerance.score)
    measure = reference.measure_ap
    frame = artefact.input_hw
    ap = (measure(reference.runtime, frame), measure(artefact, frame)) if measure else None
    batch = reference.images[:1].expand(batch_size, -1, -1, -1)
    network, own = measure_latencies((reference.runtime, artefact), batch, threads=reference.threads)
    return VerifyReport(
        path=path,
        format=artefact.format,
        precision=artefact.precision,
        heads=heads,
        boxes=boxes,
        ap=ap,
        megabytes=(megabytes_of(reference.path), megabytes_of(path)),
        latency=(network, own),
        failures=_failures(tolerance, heads=heads, boxes=boxes, ap=ap),
    )


def _run(runtime: RuntimeModel, images: Tensor) -> list[Tensor]:
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
    kept = [non_max_suppression(decoded, conf=rule.conf, iou=rule.iou) for decoded in (found, expected)]
    choices = [Choice(found=own, expected=other, rule=rule) for own, other in zip(found, expected, strict=True)]
    return BoxAgreement.of(*kept, choices=choices)


def _decoded(runtime: RuntimeModel, heads: Sequence[Tensor]) -> Tensor:
    return decode_heads(heads, runtime.anchors.cpu(), runtime.strides)


def _failures(
    tolerance: Tolerance, *, heads: Sequence[HeadError], boxes: BoxAgreement, ap: tuple[float, float] | None
) -> tuple[str, ...]:
    """Format one line for each value that exceeds its tolerance."""
    checks = [(f"error of head {i}", head.largest, tolerance.head_error) for i, head in enumerate(heads)]
    checks.append(("share of boxes without a partner", 1 - boxes.share, tolerance.unmatched))
    checks.append(("mean difference of scores", boxes.score_difference, tolerance.score))
    if ap is not None:
        checks.append(("mAP lost", ap[0] - ap[1], tolerance.ap_loss))
    return beyond(checks)
