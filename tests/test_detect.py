"""detect.py: what a run writes, for every kind of source, and how it refuses bad ones."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from cell_runtime import load_cells, picture

from deploy import RUNTIMES
from detect import DetectConfig, detect
from utils.cli import run_script
from utils.datasets.images import read_image
from utils.errors import ConfigError, DataError
from utils.sources import FileSource, Frame, LiveSource


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str]:
    monkeypatch.setitem(RUNTIMES, ".cells", load_cells)
    path = tmp_path / "best.cells"
    path.touch()
    return (str(path),)


@pytest.fixture
def config(weights: tuple[str], tmp_path: Path) -> DetectConfig:
    folder = tmp_path / "images"
    folder.mkdir()
    write_rgb(folder / "one.png", picture((128, 128), red=(32, 64)))
    write_rgb(folder / "two.png", picture((128, 128), red=(0, 0), blue=(64, 64)))
    return DetectConfig(weights=weights, source=str(folder), img_size=128, project=str(tmp_path / "runs"))


def write_rgb(path: Path, image: np.ndarray) -> None:
    cv2.imwrite(str(path), image[..., ::-1])


def test_run_writes_pictures_result_and_settings(config: DetectConfig) -> None:
    result = detect(config)
    assert sorted(path.name for path in result.folder.iterdir()) == ["one.jpg", "opt.yaml", "result.json", "two.jpg"]
    assert read_image(result.folder / "one.jpg").shape == (128, 128, 3)
    stored = json.loads((result.folder / "result.json").read_text())
    assert (stored["images"], stored["skipped"], stored["detections"]) == (2, 0, {"red": 2, "blue": 1})
    assert set(stored["seconds"]) == {"read", "preprocess", "inference", "nms", "write"}
    assert stored["ms_per_image"] == result.ms_per_image > 0


def test_labels_crops_and_json_hold_the_boxes(config: DetectConfig) -> None:
    options = {"save_txt": True, "save_conf": True, "save_json": True, "save_crop": True, "nosave": True}
    folder = detect(replace(config, **options)).folder
    assert not list(folder.glob("*.jpg"))
    line = (folder / "labels" / "one.txt").read_text().split()
    # (32, 64, 64, 96) of 128: centre (48, 80), size 32.
    assert line[:5] == ["0", "0.375", "0.625", "0.25", "0.25"]
    assert float(line[5]) == pytest.approx(1, abs=1e-3)
    crops = sorted(str(path.relative_to(folder / "crops")) for path in folder.rglob("crops/*/*.jpg"))
    assert crops == ["blue/two_1.jpg", "red/one_0.jpg", "red/two_0.jpg"]
    records = json.loads((folder / "detections.json").read_text())
    assert [Path(record["path"]).name for record in records] == ["one.png", "two.png"]
    assert records[0]["detections"][0]["box"] == {"x1": 32, "y1": 64, "x2": 64, "y2": 96}


def test_picture_without_objects_gets_an_empty_label_file(config: DetectConfig, tmp_path: Path) -> None:
    write_rgb(tmp_path / "none.png", picture((64, 64)))
    folder = detect(replace(config, source=str(tmp_path / "none.png"), save_txt=True)).folder
    assert (folder / "labels" / "none.txt").read_text() == ""


def test_sources_of_one_name_do_not_overwrite_each_other(config: DetectConfig, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / "deep" / name).mkdir(parents=True)
        write_rgb(tmp_path / "deep" / name / "same.png", picture((64, 64)))
    folder = detect(replace(config, source=f"{tmp_path}/deep/*/same.png")).folder
    assert sorted(path.name for path in folder.glob("*.jpg")) == ["same.jpg", "same_2.jpg"]


def test_corrupt_picture_among_good_ones_is_counted(config: DetectConfig) -> None:
    (Path(config.source) / "bad.jpg").write_bytes(b"\xff\xd8\xff cut off")
    result = detect(config)
    assert (result.images, result.skipped) == (2, 1)


def test_video_becomes_a_video_with_numbered_labels(config: DetectConfig, tmp_path: Path) -> None:
    writer = cv2.VideoWriter(str(tmp_path / "clip.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 10.0, (128, 128))
    for left in (0, 32, 64):
        writer.write(np.ascontiguousarray(picture((128, 128), red=(left, 32))[..., ::-1]))
    writer.release()
    result = detect(replace(config, source=str(tmp_path / "clip.avi"), save_txt=True))
    assert (result.images, result.detections) == (3, {"red": 3})
    drawn = cv2.VideoCapture(str(result.folder / "clip.mp4"))
    assert (drawn.get(cv2.CAP_PROP_FRAME_COUNT), drawn.get(cv2.CAP_PROP_FPS)) == (3, 10)
    labels = sorted(path.name for path in (result.folder / "labels").iterdir())
    assert labels == ["clip_000000.txt", "clip_000001.txt", "clip_000002.txt"]


def test_second_run_gets_its_own_folder(config: DetectConfig) -> None:
    assert [detect(config).folder.name, detect(config).folder.name] == ["exp", "exp2"]


def test_classes_and_threshold_choose_what_is_written(config: DetectConfig) -> None:
    assert detect(replace(config, classes=("blue",))).detections == {"blue": 1}
    assert detect(replace(config, conf_thres=1.0)).detections == {}


@pytest.mark.parametrize("source", ["missing.jpg", "missing/*.png"])
def test_missing_source_leaves_no_run_folder(source: str, config: DetectConfig) -> None:
    with pytest.raises(DataError):
        detect(replace(config, source=source))
    assert not Path(config.project).exists()


def test_view_img_with_the_headless_package_names_the_other_one(config: DetectConfig) -> None:
    with pytest.raises(ConfigError, match=r"pip install opencv-python|no display"):
        detect(replace(config, view_img=True))


def interrupted(kind: type) -> Any:
    """A source of `kind` whose user presses Ctrl-C after one frame."""

    class Interrupted(kind):
        def __init__(self) -> None:
            self.skipped = 0

        def __iter__(self) -> Iterator[Frame]:
            yield Frame(image=picture((128, 128), red=(0, 0)), name="camera 0", kind="stream")
            raise KeyboardInterrupt

    return Interrupted()


def test_interrupting_a_camera_ends_the_run_with_its_results(config: DetectConfig, monkeypatch) -> None:
    monkeypatch.setattr("detect.open_source", lambda text: interrupted(LiveSource))
    result = detect(config)
    assert (result.images, result.detections) == (1, {"red": 1})
    assert (result.folder / "result.json").exists()
    assert cv2.VideoCapture(str(result.folder / "camera_0.mp4")).get(cv2.CAP_PROP_FRAME_COUNT) == 1


def test_interrupting_a_folder_is_an_interruption(config: DetectConfig, monkeypatch) -> None:
    monkeypatch.setattr("detect.open_source", lambda text: interrupted(FileSource))
    with pytest.raises(KeyboardInterrupt):
        detect(config)


def test_command_line_ends_with_2_and_one_line(config: DetectConfig, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--weights", config.weights[0], "--source", "missing.jpg"]
    with pytest.raises(SystemExit) as caught:
        run_script(detect, DetectConfig, argv=arguments)
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: source 'missing.jpg' does not exist")
    assert error.count("\n") == 1


def test_command_line_runs_with_the_spellings_of_v5(config: DetectConfig, tmp_path: Path) -> None:
    arguments = ["--weights", *config.weights, "--source", config.source, "--img", "128", "--conf-thres", "0.5"]
    arguments += ["--project", str(tmp_path / "cli"), "--name", "blood", "--classes", "0", "--save-txt", "--nosave"]
    run_script(detect, DetectConfig, argv=arguments)
    stored = json.loads((tmp_path / "cli" / "blood" / "result.json").read_text())
    assert stored["detections"] == {"red": 2}
