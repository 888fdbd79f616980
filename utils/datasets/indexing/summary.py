"""The one-screen summary of a split: its content and its faults."""

from __future__ import annotations

from dataclasses import dataclass

# Share of dropped boxes above which a mistake in the data is likely.
_FEW = 0.2


@dataclass(frozen=True, kw_only=True)
class IndexSummary:
    """The content of a split and its faults, as counts of images, boxes and label lines.

    Attributes:
        images: Usable images.
        boxes: Usable boxes.
        missing_images: Images that are listed but not on disk; skipped.
        corrupt_images: Files that are damaged, of an unreadable kind, or no image; skipped.
        missing_labels: Images without a label file, taken as background.
        empty_labels: Images whose labels list nothing, taken as background.
        repeated_images: Images with the same content as an earlier one.
        size_differs: Images whose size differs from the COCO JSON; their boxes were scaled.
        exchanged: Images whose height and width are exchanged in the COCO JSON.
        turned: Images with an EXIF rotation whose boxes referred to the stored pixels; the boxes were rotated.
        out_of_range: Boxes of unknown class; dropped.
        outside: Boxes that leave the image; clipped.
        duplicate: Boxes that repeat an earlier one; dropped.
        zero_area: Boxes without area; dropped.
        crowd: Crowd regions; not trained on.
        outlines: Label lines with a polygon or keypoints, of which only the box is used.
        confidences: Label lines with a confidence, which is ignored.
        least_class, largest_class: Smallest and largest class id in the labels, dropped ones included; -1 if none.
        num_classes: Number of classes in the data set.
        notes: Lines that report what was skipped or read differently from how it is written.
        examples: First few files with a fault, and their faults.
    """

    images: int = 0
    boxes: int = 0
    missing_images: int = 0
    corrupt_images: int = 0
    missing_labels: int = 0
    empty_labels: int = 0
    repeated_images: int = 0
    size_differs: int = 0
    exchanged: int = 0
    turned: int = 0
    out_of_range: int = 0
    outside: int = 0
    duplicate: int = 0
    zero_area: int = 0
    crowd: int = 0
    outlines: int = 0
    confidences: int = 0
    least_class: int = -1
    largest_class: int = -1
    num_classes: int = 0
    notes: tuple[str, ...] = ()
    examples: tuple[str, ...] = ()

    @property
    def dropped(self) -> int:
        """Number of boxes that are not used, crowd regions included."""
        return self.out_of_range + self.duplicate + self.zero_area + self.crowd

    @property
    def is_suspect(self) -> bool:
        """True if so many boxes are missing or dropped that a mistake in the data is likely."""
        share = self.dropped / max(self.boxes + self.dropped, 1)
        return bool(self.images) and (
            not self.boxes or share > _FEW or self.outside > self.boxes / 2 or self._counts_from_one
        )

    @property
    def _counts_from_one(self) -> bool:
        return self.least_class == 1 and self.largest_class == self.num_classes

    def guess(self) -> str:
        """Return the likely cause of missing or dropped boxes."""
        if self._counts_from_one:
            return f"class ids run from 1 to {self.num_classes}, but must start at 0; lower each by one"
        if self.outside > max(self.boxes / 2, self.dropped):
            return "most boxes extend beyond their image and were clipped; are they left, top, right, bottom?"
        if self.out_of_range > self.dropped / 2:
            seen = f"{self.least_class} to {self.largest_class}"
            return f"class ids run from {seen} but there are {self.num_classes} classes; correct ids, or add names"
        if self.crowd > self.dropped / 2:
            return "iscrowd is 1 for most objects, as some tools write for masks; set it to 0"
        if self.duplicate > self.dropped / 2:
            return "most boxes occur twice, as in merged exports; the second ones were dropped"
        if self.zero_area > self.dropped / 2:
            return "most boxes have no width or height; are they left, top, right, bottom or in another unit?"
        if self.missing_labels == self.images:
            return (
                "no image has a label file; labels are expected in the folder `labels` beside the folder `images`, "
                "or beside each image"
            )
        return "all labels are empty"

    def as_text(self) -> str:
        """Return a line of totals, a line per kind of fault that occurred, and a few examples."""
        faults = [
            (self.missing_images, "images missing, skipped"),
            (self.corrupt_images, "images corrupt or of an unreadable kind, skipped"),
            (self.missing_labels, "images without labels, used as background"),
            (self.empty_labels, "images with empty labels, used as background"),
            (self.repeated_images, "images with the same content as another one of the split"),
            (self.size_differs, "images whose size differs from the JSON; boxes scaled"),
            (self.exchanged, "images with height and width exchanged in the JSON; boxes read as pixels of the file"),
            (self.turned, "images rotated by EXIF whose boxes were not; boxes rotated"),
            (self.out_of_range, "boxes with a class id out of range, dropped"),
            (self.outside, "boxes outside the image, clipped"),
            (self.duplicate, "duplicate boxes, dropped"),
            (self.zero_area, "boxes with zero area, dropped"),
            (self.crowd, "crowd regions, not trained on"),
            (self.outlines, "lines with a polygon or keypoints; only their boxes are used"),
            (self.confidences, "lines with a confidence, which is ignored"),
        ]
        lines = [f"{self.images} images, {self.boxes} boxes"]
        lines += [f"  {count} {what}" for count, what in faults if count]
        lines += [f"  {note}" for note in self.notes]
        lines += [f"  e.g. {example}" for example in self.examples]
        return "\n".join(lines)
