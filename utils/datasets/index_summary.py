"""The one-screen account of a split: what it holds and what was wrong with it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class IndexSummary:
    """What a split holds and what was wrong with it; counts of images, then of boxes.

    Attributes:
        images: Usable images.
        boxes: Usable boxes.
        missing_images: Listed, but not on disk; skipped.
        corrupt_images: Truncated or no image; skipped.
        missing_labels: Images without a label file, taken as background.
        empty_labels: Images whose labels list nothing, taken as background.
        size_differs: Images whose size is not what the COCO JSON states.
        out_of_range: Boxes of unknown class; dropped.
        outside: Boxes that leave the image; clipped.
        duplicate: Boxes given twice; dropped.
        zero_area: Boxes without area; dropped.
        crowd: Crowd regions; not trained on.
        examples: The first few files with a fault, and which.
    """

    images: int = 0
    boxes: int = 0
    missing_images: int = 0
    corrupt_images: int = 0
    missing_labels: int = 0
    empty_labels: int = 0
    size_differs: int = 0
    out_of_range: int = 0
    outside: int = 0
    duplicate: int = 0
    zero_area: int = 0
    crowd: int = 0
    examples: tuple[str, ...] = ()

    def as_text(self) -> str:
        """One line of totals, one per kind of fault that occurred, and a few examples."""
        faults = [
            (self.missing_images, "images missing, skipped"),
            (self.corrupt_images, "images corrupt, skipped"),
            (self.missing_labels, "images without labels, used as background"),
            (self.empty_labels, "images with empty labels, used as background"),
            (self.size_differs, "images whose size is not the one in the JSON"),
            (self.out_of_range, "boxes with a class id out of range, dropped"),
            (self.outside, "boxes outside the image, clipped"),
            (self.duplicate, "duplicate boxes, dropped"),
            (self.zero_area, "boxes with zero area, dropped"),
            (self.crowd, "crowd regions, not trained on"),
        ]
        lines = [f"{self.images} images, {self.boxes} boxes"]
        lines += [f"  {count} {what}" for count, what in faults if count]
        lines += [f"  e.g. {example}" for example in self.examples]
        return "\n".join(lines)
