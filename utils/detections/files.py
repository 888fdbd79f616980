"""Writer of detections to disk: drawn images and videos, label files, crops, JSON."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import cv2
import numpy as np

from utils.detections.detections import Detections
from utils.detections.output_names import OutputNames, class_folders
from utils.errors import ConfigError
from utils.plots.save import save_image
from utils.sources import Frame
from utils.storage.files import is_unicode, write_json, write_text

# For streams that do not report their frame rate.
_DEFAULT_FPS = 30.0


@dataclass(frozen=True, kw_only=True)
class WriteOptions:
    """The choice of outputs for each frame.

    Attributes:
        pictures: True to write drawn images and videos.
        txt: True to write YOLO label files.
        conf: True to write the score as a sixth column of the label files.
        crops: True to write the image inside each box.
        json: True to write one detections.json for all frames.
    """

    pictures: bool = True
    txt: bool = False
    conf: bool = False
    crops: bool = False
    json: bool = False


class DetectionWriter:
    """A writer of the detections of each frame below one folder; as a context manager, it finishes videos and JSON.

    `names` decides the paths, see `utils.detections.output_names`. detections.json lists the files of each frame.
    """

    def __init__(self, folder: Path, options: WriteOptions, names: OutputNames) -> None:
        self._folder = folder
        self._options = options
        self._names = names
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
            frame: Frame with its origin.
            detections: Detections in the frame.
            drawn: Image (H, W, 3) uint8 RGB with the boxes, needed for `pictures`.
        """
        options, names = self._options, self._names
        position = None if frame.kind == "image" else frame.index
        files: dict[str, str | list[str]] = {}
        if options.pictures and drawn is not None:
            if frame.kind == "image":
                files["image"] = names.image(frame.name)
                save_image(drawn, self._folder / names.image(frame.name))
            else:
                files["video"] = names.video(frame.name)
                self._write_video_frame(frame, drawn, self._folder / names.video(frame.name))
        if options.txt:
            files["label"] = label = names.label(frame.name, position)
            lines = detections.to_yolo_lines(with_conf=options.conf)
            write_text(self._folder / label, "".join(f"{line}\n" for line in lines))
        if options.crops:
            files["crops"] = self._write_crops(detections, frame.name, position)
        if options.json:
            self._records.append(_record(frame, detections, files))

    def _write_crops(self, detections: Detections, source: str, position: int | None) -> list[str]:
        """Write the image inside each box; return the file names in the order of the boxes."""
        folders = class_folders(detections.names)
        crops = [
            self._names.crop(source, position, class_folder=folders[class_id], number=number)
            for number, class_id in enumerate(detections.class_ids)
        ]
        for name, crop in zip(crops, detections.crops(), strict=True):
            save_image(crop, self._folder / name)
        return crops

    def _write_video_frame(self, frame: Frame, drawn: np.ndarray[Any, Any], path: Path) -> None:
        # A video that is listed twice is written again from its start.
        if frame.name != self._video_name or frame.index == 0:
            self._finish_video()
            if not is_unicode(str(path)):
                raise ConfigError(f"cannot write {path}: the name is not UTF-8; choose another --project")
            path.parent.mkdir(parents=True, exist_ok=True)
            self._video_hw = (drawn.shape[0], drawn.shape[1])
            codec = cv2.VideoWriter.fourcc(*"mp4v")
            size_wh = self._video_hw[::-1]
            self._video = cv2.VideoWriter(str(path), codec, frame.fps or _DEFAULT_FPS, size_wh)
            if not self._video.isOpened():
                raise ConfigError(f"cannot write {path}; free space, choose another --project, or add --nosave")
            self._video_name = frame.name
        if drawn.shape[:2] != self._video_hw:
            # After reconnecting, a camera may send another size, but a file has only one.
            drawn = cv2.resize(drawn, self._video_hw[::-1])
        self._video.write(cv2.cvtColor(drawn, cv2.COLOR_RGB2BGR))

    def _finish_video(self) -> None:
        if self._video is not None:
            self._video.release()
        self._video, self._video_name = None, ""


def _record(frame: Frame, detections: Detections, files: dict[str, str | list[str]]) -> dict[str, Any]:
    height, width = detections.image_hw
    place = {} if frame.kind == "image" else {"frame": frame.index}
    return {
        "path": frame.name,
        **place,
        "height": height,
        "width": width,
        "files": files,
        "detections": detections.to_dict(),
    }
