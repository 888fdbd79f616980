"""Draw the picture of README.md: what a dense and a pruned network find in one photograph, and what they cost.

python -m docs.make_picture --dense runs/train/exp --pruned runs/finetune/exp

Each run folder must contain `weights/best.pt`, `result.json`, and `weights/best_ncnn_model` as export.py writes it.
The picture is drawn from what the ncnn files detect; their milliseconds are measured here, in turns.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw

from deploy import load, load_detector
from deploy.settings import RuntimeOptions
from deploy.verification.latency import measure_latencies
from models.load import load_model
from pruning.surgery.report import NetworkSize
from utils.plots.draw import caption_font
from utils.storage.files import atomic_write

Array = np.ndarray[Any, Any]

PHOTOGRAPH = "data/bccd/images/test/BloodImage_00062.jpg"
MARGIN, STRIP = 12, 58
MAX_BYTES = 200_000


@dataclass(frozen=True, kw_only=True)
class Shown:
    """One half of the picture.

    Attributes:
        title: First line of the caption.
        numbers: Second line of the caption.
        image: Photograph with boxes (H, W, 3) uint8 RGB.
    """

    title: str
    numbers: str
    image: Array


def ncnn_folder(run: Path) -> Path:
    """Return the exported network of a run folder."""
    return run / "weights/best_ncnn_model"


def measured(runs: Sequence[Path], *, img_size: int, calls: int) -> list[float]:
    """Time the ncnn networks of the runs: fastest call of each in milliseconds, one thread, in turns."""
    options = RuntimeOptions(threads=1)
    runtimes = [load_detector(ncnn_folder(run), device=torch.device("cpu"), options=options) for run in runs]
    image = torch.rand(1, 3, img_size, img_size)
    return [latency.fastest for latency in measure_latencies(runtimes, image, threads=1, runs=calls)]


def shown(run: Path, *, title: str, photograph: Path, img_size: int, milliseconds: float) -> Shown:
    """Detect with the exported network of a run, and collect the numbers of its caption."""
    size = NetworkSize.of(load_model(run / "weights/best.pt").model, (3, img_size, img_size))
    metrics = json.loads((run / "result.json").read_text(encoding="utf-8"))["metrics"]
    found = load(ncnn_folder(run))(photograph, size=img_size)
    return Shown(
        title=f"{title}: {found}",
        numbers=f"{size.megabytes:.1f} MB   {milliseconds:.1f} ms   mAP50 {metrics['AP50']:.3f}",
        image=found.draw(hide_labels=True, line_thickness=2),
    )


def side_by_side(halves: Sequence[Shown]) -> Image.Image:
    """Put images beside each other, captions above."""
    height, width = halves[0].image.shape[:2]
    sheet = Image.new("RGB", (len(halves) * (width + MARGIN) + MARGIN, height + STRIP + MARGIN), "white")
    pen = ImageDraw.Draw(sheet)
    for place, half in enumerate(halves):
        left = MARGIN + place * (width + MARGIN)
        pen.text((left, 8), half.title, fill="black", font=caption_font(18))
        pen.text((left, 32), half.numbers, fill=(90, 90, 90), font=caption_font(18))
        sheet.paste(Image.fromarray(half.image), (left, STRIP))
    return sheet


def save_small(sheet: Image.Image, path: Path) -> int:
    """Write a JPEG of the best quality that fits `MAX_BYTES`; return that quality."""
    for quality in range(92, 30, -4):
        buffer = BytesIO()
        sheet.save(buffer, "JPEG", quality=quality, optimize=True)
        if buffer.tell() <= MAX_BYTES:
            with atomic_write(path) as temporary:
                temporary.write_bytes(buffer.getvalue())
            return quality
    raise ValueError(f"{path}: larger than {MAX_BYTES} bytes at every quality; choose a smaller photograph")


def main() -> None:
    """Read the command line and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dense", type=Path, required=True, help="run folder of the dense network")
    parser.add_argument("--pruned", type=Path, required=True, help="run folder of the fine-tuned pruned network")
    parser.add_argument("--photograph", type=Path, default=Path(PHOTOGRAPH), help="what both detect in")
    parser.add_argument("--img-size", type=int, default=320, help="size that both were exported for")
    parser.add_argument("--calls", type=int, default=1500, help="timed calls of each network")
    parser.add_argument("--output", type=Path, default=Path("docs/dense_and_pruned.jpg"), help="the JPEG")
    args = parser.parse_args()
    times = measured([args.dense, args.pruned], img_size=args.img_size, calls=args.calls)
    halves = [
        shown(run, title=title, photograph=args.photograph, img_size=args.img_size, milliseconds=milliseconds)
        for run, title, milliseconds in zip((args.dense, args.pruned), ("dense", "pruned"), times, strict=True)
    ]
    save_small(side_by_side(halves), args.output)


if __name__ == "__main__":
    main()
