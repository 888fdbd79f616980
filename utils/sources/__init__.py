"""Sources of images to detect on: files, folders, globs, lists, videos, cameras and streams."""

from utils.sources.files import FileSource
from utils.sources.frame import Frame, MediaKind, Source
from utils.sources.live import LiveSource
from utils.sources.opening import open_source

__all__ = ["FileSource", "Frame", "LiveSource", "MediaKind", "Source", "open_source"]
