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

from commands.detect import detect
from commands.detect_config import DetectConfig
from deploy import FORMATS, Format
from utils.config.cli import run_script
from utils.datasets.indexing.config import load_data_config
from utils.datasets.indexing.index import build_label_index
from utils.datasets.reading.images import read_image
from utils.errors import ConfigError, DataError
from utils.sources import FileSource, Frame, LiveSource


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str]:
    monkeypatch.setitem(FORMATS, "cells", Format(suffix=".cells", load=load_cells))
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


def everything(config: DetectConfig, source: str) -> DetectConfig:
    """Every kind of output for `source`."""
    return replace(config, source=source, save_txt=True, save_crop=True, save_json=True)


def files_of(folder: Path, pattern: str) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob(pattern))


@pytest.fixture
def cams(tmp_path: Path) -> Path:
    """Two cameras that number their images alike, and an image called as a numbered one would be."""
    folder = tmp_path / "cams"
    for name, colours in (("cam1/0001", {"red": (0, 0)}), ("cam2/0001", {"blue": (32, 0)}), ("cam3/0001_2", {})):
        (folder / name).parent.mkdir(parents=True)
        write_rgb(folder / f"{name}.png", picture((128, 128), **colours))
    return folder


def assert_cams_keep_apart(folder: Path) -> None:
    names = ("cam1/0001", "cam2/0001", "cam3/0001_2")
    assert files_of(folder / "labels", "*.txt") == [f"{name}.txt" for name in names]
    assert [path for path in files_of(folder, "cam*/*.jpg") if "crops" not in path] == [
        f"{name}.jpg" for name in names
    ]
    assert files_of(folder / "crops", "*.jpg") == ["blue/cam2/0001_0.jpg", "red/cam1/0001_0.jpg"]
    classes = [(folder / "labels" / f"{name}.txt").read_text()[:1] for name in names]
    assert classes == ["0", "1", ""]


def test_glob_keeps_the_subfolders_below_its_fixed_part(config: DetectConfig, cams: Path) -> None:
    assert_cams_keep_apart(detect(everything(config, f"{cams}/**/*.png")).folder)


def test_list_keeps_the_subfolders_below_the_common_parent(config: DetectConfig, cams: Path) -> None:
    (cams / "list.txt").write_text("cam2/0001.png\n./cam1/0001.png\n" + str(cams / "cam3/0001_2.png") + "\n")
    assert_cams_keep_apart(detect(everything(config, str(cams / "list.txt"))).folder)


def test_names_with_spaces_and_brackets_are_kept(config: DetectConfig, tmp_path: Path) -> None:
    names = ["a b", "a_b", "my photo (1)", "数据[2]"]
    for i, name in enumerate(names):
        (tmp_path / "pics").mkdir(exist_ok=True)
        # OpenCV cannot write every name itself.
        cv2.imencode(".png", picture((128, 128), red=(0, 0) if i % 2 else (32, 32))[..., ::-1])[1].tofile(
            tmp_path / "pics" / f"{name}.png"
        )
    folder = detect(everything(config, str(tmp_path / "pics"))).folder
    assert files_of(folder / "labels", "*") == sorted(f"{name}.txt" for name in names)
    assert [line_of(folder, name)[1] for name in names] == ["0.375", "0.125", "0.375", "0.125"]


def line_of(folder: Path, name: str) -> list[str]:
    return (folder / "labels" / f"{name}.txt").read_text().split()


def test_labels_that_were_written_are_labels_of_a_data_set(config: DetectConfig, cams: Path, tmp_path: Path) -> None:
    folder = detect(everything(config, f"{cams}/**/*.png")).folder
    cams.rename(tmp_path / "images_of_set")
    (tmp_path / "set").mkdir()
    (tmp_path / "images_of_set").rename(tmp_path / "set" / "images")
    (folder / "labels").rename(tmp_path / "set" / "labels")
    yaml = tmp_path / "set" / "data.yaml"
    yaml.write_text("train: images\nval: images\nnc: 2\nnames: [red, blue]\n")
    index = build_label_index(load_data_config(str(yaml)), "val", cache_dir=str(tmp_path / "cache"), workers=0)
    found = {
        Path(path).parent.name: labels[:, 0].tolist() for path, labels in zip(index.paths, index.labels, strict=True)
    }
    assert found == {"cam1": [0.0], "cam2": [1.0], "cam3": []}


def test_json_says_which_files_belong_to_each_image(config: DetectConfig, cams: Path) -> None:
    write_rgb(cams / "cam1" / "0001.jpg", picture((128, 128), blue=(0, 0)))  # beside 0001.png
    folder = detect(everything(config, f"{cams}/**/*.*g")).folder
    records = {record["path"]: record for record in json.loads((folder / "detections.json").read_text())}
    listed = [
        name for record in records.values() for name in (*record["files"].pop("crops"), *record["files"].values())
    ]
    assert sorted(listed) == sorted(files_of(folder, "*.jpg") + files_of(folder, "*.txt"))
    for path, class_id in (("cam1/0001.png", 0), ("cam1/0001.jpg", 1), ("cam2/0001.png", 1)):
        record = records[str(cams / path)]
        assert (folder / record["files"]["label"]).read_text().startswith(f"{class_id} ")
        assert record["detections"][0]["class_id"] == class_id


def test_json_alone_lists_no_files(config: DetectConfig) -> None:
    folder = detect(replace(config, save_json=True, nosave=True)).folder
    assert [record["files"] for record in json.loads((folder / "detections.json").read_text())] == [{}, {}]


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


def write_red_video(path: Path) -> None:
    """Two frames with a red square."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 10.0, (128, 128))
    for left in (0, 32):
        writer.write(np.ascontiguousarray(picture((128, 128), red=(left, 32))[..., ::-1]))
    writer.release()


def test_frame_of_a_video_does_not_take_the_label_file_of_an_image(config: DetectConfig) -> None:
    write_red_video(Path(config.source) / "clip.avi")
    write_rgb(Path(config.source) / "clip_000001.png", picture((128, 128), blue=(0, 0)))
    folder = detect(everything(config, config.source)).folder
    labels = files_of(folder / "labels", "clip*")
    assert labels == ["clip.avi_000000.txt", "clip.avi_000001.txt", "clip_000001.txt"]
    assert line_of(folder, "clip_000001")[0] == "1"
    records = json.loads((folder / "detections.json").read_text())
    assert [record["files"]["video"] for record in records if "frame" in record] == ["clip.avi.mp4"] * 2


def test_video_in_a_subfolder_that_is_listed_twice_is_one_whole_video(config: DetectConfig, tmp_path: Path) -> None:
    for name in ("x", "y"):
        (tmp_path / "vids" / name).mkdir(parents=True)
        write_red_video(tmp_path / "vids" / name / "clip.avi")
    (tmp_path / "list.txt").write_text("vids/x/clip.avi\nvids/x/clip.avi\nvids/y/clip.avi\n")
    folder = detect(everything(config, str(tmp_path / "list.txt"))).folder
    assert files_of(folder, "*.mp4") == ["x/clip.mp4", "y/clip.mp4"]
    assert cv2.VideoCapture(str(folder / "x/clip.mp4")).get(cv2.CAP_PROP_FRAME_COUNT) == 2
    assert files_of(folder / "labels", "*")[1:4] == ["x/clip_000000.txt", "x/clip_000001.txt", "y"]


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
    monkeypatch.setattr("commands.detect.open_source", lambda text: interrupted(LiveSource))
    result = detect(config)
    assert (result.images, result.detections) == (1, {"red": 1})
    assert (result.folder / "result.json").exists()
    assert cv2.VideoCapture(str(result.folder / "camera_0.mp4")).get(cv2.CAP_PROP_FRAME_COUNT) == 1


def test_interrupting_a_folder_is_an_interruption(config: DetectConfig, monkeypatch) -> None:
    monkeypatch.setattr("commands.detect.open_source", lambda text: interrupted(FileSource))
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
