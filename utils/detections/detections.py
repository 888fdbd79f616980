"""The detections of one image, and their conversion to the forms that users need."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from utils.boxes.boxes import xyxy_to_cxcywh
from utils.errors import ConfigError, DataError
from utils.plots.draw import draw_boxes
from utils.plots.save import save_image

Array: TypeAlias = np.ndarray[Any, Any]
_WRITABLE = (".jpg", ".jpeg", ".png")


@dataclass(frozen=True, kw_only=True, eq=False)
class Detections:
    """The detected boxes of one image, best score first.

    Attributes:
        xyxy: Corners (N, 4) float32 in pixels of the original image.
        scores: Scores (N,) float32 in [0, 1].
        class_ids: Class ids (N,) int64 in [0, len(names)).
        names: Class names by id.
        image_hw: Height and width of the original image in pixels.
        path: File or address of the image, None for an array.
        image: Pixels (H, W, 3) uint8 RGB, None if they were not kept.
    """

    xyxy: Array
    scores: Array
    class_ids: Array
    names: tuple[str, ...]
    image_hw: tuple[int, int]
    path: str | None = None
    image: Array | None = None

    def __post_init__(self) -> None:
        count = len(self.xyxy)
        if self.xyxy.shape != (count, 4):
            raise ValueError(f"xyxy: got {self.xyxy.shape}, expected (N, 4)")
        for name in ("scores", "class_ids"):
            if (shape := getattr(self, name).shape) != (count,):
                raise ValueError(f"{name}: got {shape}, expected ({count},)")
        if count and not 0 <= self.class_ids.min() <= self.class_ids.max() < len(self.names):
            raise ValueError(f"class_ids: got {np.unique(self.class_ids)}, expected 0 to {len(self.names) - 1}")

    @classmethod
    def from_rows(cls, rows: Array, *, names: tuple[str, ...], image: Array, path: str | None = None) -> Detections:
        """Build detections from rows (N, 6) x1, y1, x2, y2, score, class in pixels of `image`."""
        return cls(
            xyxy=rows[:, :4].astype(np.float32),
            scores=rows[:, 4].astype(np.float32),
            class_ids=rows[:, 5].astype(np.int64),
            names=names,
            image_hw=(int(image.shape[0]), int(image.shape[1])),
            path=path,
            image=image,
        )

    def __len__(self) -> int:
        return len(self.xyxy)

    def __getitem__(self, index: int | slice | Array | list[int]) -> Detections:
        """Return the boxes that an index, a slice, a mask or a list of indices selects."""
        chosen = np.atleast_1d(np.arange(len(self))[index])
        return replace(self, xyxy=self.xyxy[chosen], scores=self.scores[chosen], class_ids=self.class_ids[chosen])

    def __str__(self) -> str:
        """Return the counts per class in order of id, such as "3 RBC, 1 WBC"."""
        counts = self.counts()
        return ", ".join(f"{count} {name}" for name, count in counts.items()) or "no detections"

    def counts(self) -> dict[str, int]:
        """Return the number of boxes per class name, in order of class id, without absent classes."""
        counter = Counter(self.class_ids.tolist())
        return {self.names[class_id]: counter[class_id] for class_id in sorted(counter)}

    def filter(self, *, conf: float = 0.0, classes: Collection[int | str] | None = None) -> Detections:
        """Return the boxes with a score of at least `conf` and one of the given class ids or names.

        Raises:
            ConfigError: The model does not know one of the classes.
        """
        keep = self.scores >= conf
        if classes is not None:
            keep &= np.isin(self.class_ids, class_ids_of(classes, names=self.names))
        return self[keep]

    def to_dict(self) -> list[dict[str, Any]]:
        """Return one plain dictionary per box: name, class_id, score, box {x1, y1, x2, y2} in pixels."""
        return [
            {
                "name": self.names[class_id],
                "class_id": class_id,
                "score": round(score, 5),
                "box": dict(zip(("x1", "y1", "x2", "y2"), (round(value, 2) for value in box), strict=True)),
            }
            for box, score, class_id in zip(
                self.xyxy.tolist(), self.scores.tolist(), self.class_ids.tolist(), strict=True
            )
        ]

    def to_json(self) -> str:
        """Return `to_dict` as indented JSON text."""
        return json.dumps(self.to_dict(), indent=2)

    def to_pandas(self) -> Any:
        """Return a data frame with the columns xmin, ymin, xmax, ymax, confidence, class, name.

        Raises:
            ConfigError: pandas is not installed.
        """
        try:
            import pandas
        except ModuleNotFoundError:
            raise ConfigError("to_pandas() needs pandas, which is not installed; pip install pandas") from None
        frame = pandas.DataFrame(self.xyxy, columns=["xmin", "ymin", "xmax", "ymax"])
        frame["confidence"] = self.scores
        frame["class"] = self.class_ids
        frame["name"] = [self.names[class_id] for class_id in self.class_ids]
        return frame

    def to_yolo_lines(self, *, with_conf: bool = False) -> list[str]:
        """Return the lines `class cx cy w h [score]` of a YOLO label file, normalised to the image size."""
        height, width = self.image_hw
        boxes = xyxy_to_cxcywh(self.xyxy) / np.array([width, height, width, height], np.float32)
        lines = []
        for class_id, box, score in zip(self.class_ids, boxes, self.scores, strict=True):
            values = [*box, score] if with_conf else box
            lines.append(" ".join([str(class_id), *(f"{value:.6g}" for value in values)]))
        return lines

    def draw(self, *, hide_labels: bool = False, hide_conf: bool = False, line_thickness: int | None = None) -> Array:
        """Draw boxes, class names and scores on a copy of the image, (H, W, 3) uint8 RGB.

        Args:
            hide_labels: Whether to draw boxes only.
            hide_conf: Whether to draw class names without scores.
            line_thickness: Line thickness in pixels; None chooses it by image size.
        """
        image = self._kept_image()
        labels = [
            "" if hide_labels else self.names[class_id] if hide_conf else f"{self.names[class_id]} {score:.2f}"
            for class_id, score in zip(self.class_ids, self.scores, strict=True)
        ]
        return draw_boxes(image, self.xyxy, labels=labels, class_ids=self.class_ids, line_width=line_thickness)

    def save(self, path: str | Path) -> None:
        """Write the drawn image as .jpg or .png.

        Raises:
            ConfigError: The suffix is another one, or the folder cannot be written to.
        """
        suffix = Path(path).suffix.lower()
        if suffix not in _WRITABLE:
            raise ConfigError(f"cannot save {path}: got {suffix or 'no suffix'}, expected {' or '.join(_WRITABLE)}")
        save_image(self.draw(), path)

    def crops(self, *, padding: int = 10) -> list[Array]:
        """Return the image inside each box, (h, w, 3) uint8 RGB, with up to `padding` pixels around it."""
        image = self._kept_image()
        height, width = self.image_hw
        low = np.floor(self.xyxy[:, :2]).astype(int) - padding
        high = np.ceil(self.xyxy[:, 2:]).astype(int) + padding
        low = low.clip(0, [width - 1, height - 1])
        high = np.maximum(high.clip(0, [width, height]), low + 1)
        return [image[y1:y2, x1:x2].copy() for (x1, y1), (x2, y2) in zip(low, high, strict=True)]

    def _kept_image(self) -> Array:
        if self.image is None:
            raise DataError(f"detections of {self.path or 'an array'} have no image; keep it to draw or crop")
        return self.image


def class_ids_of(classes: Collection[int | str], *, names: tuple[str, ...]) -> list[int]:
    """Return the ids of classes that are given by id, by name, or by an id in digits.

    Raises:
        ConfigError: The model does not know one of the classes.
    """
    ids = []
    for item in classes:
        if isinstance(item, str) and item in names:
            item = names.index(item)
        if not str(item).isdecimal() or int(item) >= len(names):
            raise ConfigError(f"class {item!r} is unknown; known: {', '.join(names)}, or 0 to {len(names) - 1}")
        ids.append(int(item))
    return ids
