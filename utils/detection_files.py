"""Detections on disk: drawn pictures and videos, label files, crops, JSON."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import cv2
import numpy as np

from utils.detections import Detections
from utils.errors import ConfigError
from utils.files import write_json, write_text
from utils.plots.save import save_image
from utils.sources import Frame

# For streams that do not tell their rate.
_DEFAULT_FPS = 30.0


@dataclass(frozen=True, kw_only=True)
class WriteOptions:
    """What to write of each frame.

    Attributes:
        pictures: Drawn pictures and videos.
        txt: YOLO label files.
        conf: The score as a sixth column of the label files.
        crops: The picture inside each box.
        json: One detections.json for all frames.
    """

    pictures: bool = True
    txt: bool = False
    conf: bool = False
    crops: bool = False
    json: bool = False


class DetectionWriter:
    """Writes what was found in each frame below one folder; a context manager that finishes videos and JSON.

    pictures as <stem>.jpg, videos as <stem>.mp4, labels/<stem>.txt, crops/<class>/<stem>_<number>.jpg; frames of
    a video or stream carry their position after the stem. Sources of the same stem get a number.
    """

    def __init__(self, folder: Path, options: WriteOptions) -> None:
        self._folder = folder
        self._options = options
        self._stems: dict[str, str] = {}
        self._records: list[dict[str, Any]] = []
        self._video: Any = None
        self._video_name = ""
        self._video_hw = (0, 0)

    def __enter__(self) -> DetectionWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._finish_video()
        if self._options.json:
            write_json(self._folder / "detections.json", self._records)

    def write(self, frame: Frame, detections: Detections, drawn: np.ndarray[Any, Any] | None) -> None:
        """Write one frame.

        Args:
            frame: Where the picture came from.
            detections: What was found in it.
            drawn: (H, W, 3) uint8 RGB with the boxes, needed for `pictures`.
        """
        options = self._options
        stem = self._stem_of(frame.name)
        numbered = stem if frame.kind == "image" else f"{stem}_{frame.index:06d}"
        if options.pictures and drawn is not None:
            if frame.kind == "image":
                save_image(drawn, self._folder / f"{stem}.jpg")
            else:
                self._write_video_frame(frame, drawn, stem)
        if options.txt:
            lines = detections.to_yolo_lines(with_conf=options.conf)
            write_text(self._folder / "labels" / f"{numbered}.txt", "".join(f"{line}\n" for line in lines))
        if options.crops:
            self._write_crops(detections, numbered)
        if options.json:
            self._records.append(_record(frame, detections))

    def _stem_of(self, name: str) -> str:
        """A file name for a source, its own even where two sources share theirs."""
        if name not in self._stems:
            is_file = "://" not in name
            stem = re.sub(r"[^\w.-]+", "_", Path(name).stem if is_file else name) or "source"
            taken = set(self._stems.values())
            number, unique = 2, stem
            while unique in taken:
                unique, number = f"{stem}_{number}", number + 1
            self._stems[name] = unique
        return self._stems[name]

    def _write_crops(self, detections: Detections, stem: str) -> None:
        for number, (crop, class_id) in enumerate(zip(detections.crops(), detections.class_ids, strict=True)):
            folder = self._folder / "crops" / re.sub(r"[^\w.-]+", "_", detections.names[class_id])
            save_image(crop, folder / f"{stem}_{number}.jpg")

    def _write_video_frame(self, frame: Frame, drawn: np.ndarray[Any, Any], stem: str) -> None:
        if frame.name != self._video_name:
            self._finish_video()
            path = self._folder / f"{stem}.mp4"
            self._video_hw = (drawn.shape[0], drawn.shape[1])
            codec = cv2.VideoWriter.fourcc(*"mp4v")
            size_wh = self._video_hw[::-1]
            self._video = cv2.VideoWriter(str(path), codec, frame.fps or _DEFAULT_FPS, size_wh)
            if not self._video.isOpened():
                raise ConfigError(f"cannot write {path}; free space, choose another --project, or add --nosave")
            self._video_name = frame.name
        if drawn.shape[:2] != self._video_hw:
            # A camera that reconnects may come back in another size; a file has one.
            drawn = cv2.resize(drawn, self._video_hw[::-1])
        self._video.write(cv2.cvtColor(drawn, cv2.COLOR_RGB2BGR))

    def _finish_video(self) -> None:
        if self._video is not None:
            self._video.release()
        self._video, self._video_name = None, ""


def _record(frame: Frame, detections: Detections) -> dict[str, Any]:
    height, width = detections.image_hw
    place = {} if frame.kind == "image" else {"frame": frame.index}
    return {
        "path": frame.name,
        **place,
        "height": height,
        "width": width,
        "detections": detections.to_dict(),
    }
