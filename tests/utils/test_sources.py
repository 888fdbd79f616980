"""Sources: files in order, bad ones counted, videos frame by frame, streams that break and come back."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import cv2
import numpy as np
import pytest

from utils.errors import DataError
from utils.sources import LiveSource, open_source
from utils.sources.video import without_password


def write_image(path: Path, grey: int = 50) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.full((24, 32, 3), grey, np.uint8))
    return path


def write_video(path: Path, *, num_frames: int = 5) -> Path:
    """Frames of 64 x 48 whose grey is 40 times their position."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), 10.0, (64, 48))
    for i in range(num_frames):
        writer.write(np.full((48, 64, 3), 40 * i, np.uint8))
    writer.release()
    return path


def names_of(source) -> list[str]:
    return [Path(frame.name).name for frame in source]


def test_folder_gives_images_and_videos_in_order_and_nothing_else(tmp_path: Path) -> None:
    write_image(tmp_path / "b.png")
    write_image(tmp_path / "a.JPG")
    write_image(tmp_path / "deeper" / "c.png")
    (tmp_path / "notes.md").write_text("no picture")
    assert names_of(open_source(str(tmp_path))) == ["a.JPG", "b.png"]


def test_glob_reaches_deeper_folders(tmp_path: Path) -> None:
    write_image(tmp_path / "x" / "b.png")
    write_image(tmp_path / "a.png")
    assert sorted(names_of(open_source(f"{tmp_path}/**/*.png"))) == ["a.png", "b.png"]


def test_every_file_comes_with_the_folder_it_was_listed_below(tmp_path: Path) -> None:
    for name in ("cam1/a.png", "cam2/a.png", "cam2/x[1]/b.png"):
        write_image(tmp_path / name)
    (tmp_path / "list.txt").write_text("cam2/a.png\ncam2/x[1]/b.png\n")

    def folders_of(text: str) -> set[Path]:
        return {folder for _, folder in open_source(text).inputs}

    assert folders_of(f"{tmp_path}/cam1") == {tmp_path / "cam1"}
    assert folders_of(f"{tmp_path}/cam1/a.png") == {tmp_path / "cam1"}
    assert folders_of(f"{tmp_path}/cam*/*.png") == {tmp_path}
    assert folders_of(f"{tmp_path}/cam2/**/*.png") == {tmp_path / "cam2"}
    assert folders_of(f"{tmp_path}/cam2/x[[]1]/*.png") == {tmp_path / "cam2"}
    assert folders_of(f"{tmp_path}/list.txt") == {tmp_path / "cam2"}
    assert open_source("rtsp://cam").inputs == ()


def test_glob_in_the_working_directory_starts_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_image(tmp_path / "cam1/a.png")
    monkeypatch.chdir(tmp_path)
    assert open_source("*/*.png").inputs == ((Path("cam1/a.png"), Path()),)


def test_brackets_in_the_name_of_a_folder_are_no_wildcard(tmp_path: Path) -> None:
    write_image(tmp_path / "cam [1]" / "a.png")
    write_image(tmp_path / "cam [1]" / "b [2]" / "c.png")
    write_image(tmp_path / "cam 1" / "d.png")
    assert names_of(open_source(f"{tmp_path}/cam [1]/**/*.png")) == ["a.png", "c.png"]
    assert names_of(open_source(f"{tmp_path}/cam [1-2]/*.png")) == ["d.png"]


def test_glob_follows_a_link_that_leads_back_only_once(tmp_path: Path) -> None:
    write_image(tmp_path / "x" / "a.png")
    write_image(tmp_path / "store" / "b.png")
    (tmp_path / "x" / "back").symlink_to(tmp_path / "x")
    (tmp_path / "x" / "link").symlink_to(tmp_path / "store")
    assert names_of(open_source(f"{tmp_path}/x/**/*.png")) == ["a.png", "b.png"]


def test_video_whose_name_is_not_utf8_is_an_error(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4").rename(tmp_path / os.fsdecode(b"caf\xe9.mp4"))
    with pytest.raises(DataError, match="its name is not UTF-8; rename it"):
        names_of(open_source(str(path)))


def test_file_with_brackets_in_its_name_is_no_glob(tmp_path: Path) -> None:
    path = write_image(tmp_path / "photo[1].png")
    assert names_of(open_source(str(path))) == ["photo[1].png"]


def test_list_names_files_relative_to_itself(tmp_path: Path) -> None:
    write_image(tmp_path / "pictures" / "a.png")
    absolute = write_image(tmp_path / "elsewhere" / "b.png")
    listing = tmp_path / "list.txt"
    listing.write_text(f"pictures/a.png\n\n{absolute}\n")
    assert names_of(open_source(str(listing))) == ["a.png", "b.png"]


def test_image_is_rgb_and_knows_its_place(tmp_path: Path) -> None:
    bgr = np.zeros((4, 4, 3), np.uint8)
    bgr[..., 0] = 255  # blue for OpenCV
    cv2.imwrite(str(tmp_path / "blue.png"), bgr)
    (frame,) = open_source(str(tmp_path / "blue.png"))
    assert frame.image[0, 0].tolist() == [0, 0, 255]
    assert (frame.kind, frame.index, frame.count) == ("image", 0, 1)


def test_corrupt_picture_among_good_ones_is_skipped_and_counted(tmp_path: Path, caplog) -> None:
    write_image(tmp_path / "a.png")
    (tmp_path / "b.jpg").write_bytes(b"\xff\xd8 cut off")
    write_image(tmp_path / "c.png")
    source = open_source(str(tmp_path))
    assert names_of(source) == ["a.png", "c.png"]
    assert source.skipped == 1
    assert "b.jpg" in caplog.text


def test_single_corrupt_picture_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "b.jpg").write_bytes(b"\xff\xd8 cut off")
    with pytest.raises(DataError, match=r"b\.jpg"):
        list(open_source(str(tmp_path / "b.jpg")))


def test_folder_of_corrupt_pictures_only_is_an_error(tmp_path: Path) -> None:
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / name).write_bytes(b"no picture")
    with pytest.raises(DataError, match="none of the 2 files"):
        list(open_source(str(tmp_path)))


@pytest.mark.parametrize(
    ("text", "finding"),
    [
        ("missing.jpg", "does not exist"),
        ("missing/*.jpg", "matches no image"),
        ("empty", "contains no image"),
        ("empty.txt", "is empty"),
    ],
)
def test_missing_source_is_one_line(text: str, finding: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(DataError, match=finding) as caught:
        open_source(text)
    assert "\n" not in str(caught.value)


def test_video_gives_every_frame_with_rate_and_position(tmp_path: Path) -> None:
    frames = list(open_source(str(write_video(tmp_path / "clip.mp4"))))
    assert [frame.index for frame in frames] == [0, 1, 2, 3, 4]
    assert [frame.kind for frame in frames] == ["video"] * 5
    assert (frames[0].fps, frames[0].count) == (10.0, 5)
    # The codec loses a little.
    assert [int(frame.image.mean()) for frame in frames] == pytest.approx([0, 40, 80, 120, 160], abs=6)


def test_file_that_is_no_video_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "clip.mp4").write_bytes(b"no video")
    with pytest.raises(DataError, match=r"clip\.mp4 cannot be decoded"):
        list(open_source(str(tmp_path / "clip.mp4")))


def test_absent_camera_is_one_line() -> None:
    with pytest.raises(DataError, match="camera 97 cannot be opened"):
        list(open_source("97"))


def test_closed_port_is_one_line_without_the_password() -> None:
    with pytest.raises(DataError, match=r"stream http://127\.0\.0\.1:9/live cannot be opened"):
        list(open_source("http://user:secret@127.0.0.1:9/live"))


def test_password_is_taken_out_of_an_address() -> None:
    assert without_password("rtsp://me:p@ss@cam.local/a@b") == "rtsp://cam.local/a@b"
    assert without_password("http://cam.local/x") == "http://cam.local/x"


@contextmanager
def served(respond: Callable[[BaseHTTPRequestHandler], None]) -> Iterator[str]:
    """A loopback server whose answers `respond` writes; gives its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            try:
                respond(self)
            except (BrokenPipeError, ConnectionResetError):
                return

        def log_message(self, *_: object) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/live"
    finally:
        server.shutdown()
        server.server_close()


def send_mjpeg(handler: BaseHTTPRequestHandler, greys: list[int], *, pause: float) -> None:
    handler.send_response(200)
    handler.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
    handler.end_headers()
    for grey in greys:
        _, jpeg = cv2.imencode(".jpg", np.full((48, 64, 3), grey, np.uint8))
        head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(jpeg)}\r\n\r\n"
        handler.wfile.write(head.encode() + jpeg.tobytes() + b"\r\n")
        threading.Event().wait(pause)


def stream_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "stream reader"]


def test_stream_ends_after_vain_attempts_to_reconnect(caplog) -> None:
    connections = []

    def respond(handler: BaseHTTPRequestHandler) -> None:
        connections.append(1)
        if len(connections) <= 2:
            send_mjpeg(handler, [100] * 30, pause=0.01)
        else:
            handler.send_error(404)

    with served(respond) as address:
        frames = list(LiveSource(address, max_retries=2, first_wait=0.01))
    assert {frame.kind for frame in frames} == {"stream"}
    indices = [frame.index for frame in frames]
    assert indices == sorted(set(indices))
    assert indices[-1] >= 30, "frames of the second connection go on counting"
    assert "attempt 2 of 2" in caplog.text
    assert not stream_threads()


def test_slow_consumer_sees_the_newest_frame() -> None:
    with served(lambda handler: send_mjpeg(handler, [60] * 200, pause=0.005)) as address:
        frames = iter(LiveSource(address, max_retries=0))
        first = next(frames)
        threading.Event().wait(0.4)
        second = next(frames)
        frames.close()
    assert second.index - first.index > 5
    assert not stream_threads(), "closing the source ends its thread"


def test_recorded_video_behind_an_address_is_read_frame_by_frame(tmp_path: Path) -> None:
    content = write_video(tmp_path / "clip.mp4").read_bytes()

    def respond(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Type", "video/mp4")
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        handler.wfile.write(content)

    with served(respond) as address:
        frames = list(LiveSource(address))
    assert [frame.index for frame in frames] == [0, 1, 2, 3, 4]
