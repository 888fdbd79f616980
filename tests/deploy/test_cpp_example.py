"""The C++ example finds what the Python side finds, and says in one line what is wrong."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cpp_programs import AARCH64, NATIVE, SOURCES, assert_one_line, built, run
from exporting import cut_off
from PIL import Image

from deploy import load
from deploy.settings import ExportSettings
from models.load import load_model
from utils.detections.detections import Detections

pytestmark = pytest.mark.system

CONF = 0.25
# How far boxes and scores of the two sides may lie apart.
MAX_PIXELS, MAX_SCORE = 0.5, 0.005


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The program for this machine."""
    return built(NATIVE, "detect", tmp_path_factory.mktemp("build"))


@pytest.fixture(scope="module")
def yolov5n(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained weights as an ncnn folder, not to be changed."""
    pytest.importorskip("ncnn", reason="the ncnn package is not installed")
    pytest.importorskip("pnnx", reason="the pnnx package is not installed")
    from exporting import export_ncnn

    loaded = load_model(shared / "weights" / "yolov5n_v6_coco.pt")
    folder = tmp_path_factory.mktemp("network") / "n_ncnn_model"
    settings = ExportSettings(image_hw=(320, 320))
    export_ncnn(loaded.model, folder, names=loaded.names, source_sha256="0" * 64, settings=settings)
    return folder


@pytest.fixture
def copied(yolov5n: Path, tmp_path: Path) -> Path:
    """A copy of the exported folder, to be changed."""
    return Path(shutil.copytree(yolov5n, tmp_path / "n_ncnn_model"))


@pytest.fixture(scope="module")
def pictures(shared: Path) -> list[Path]:
    """Twenty photographs."""
    return sorted((shared / "data" / "coco128_val" / "images").glob("*.jpg"))[:20]


def detected(program: Sequence[str], *arguments: object) -> list[list[dict[str, Any]]]:
    """Per picture what the program prints, in the form of `Detections.to_dict`."""
    done = run(program, *arguments)
    assert (done.returncode, done.stderr) == (0, "")
    return [json.loads(line)["detections"] for line in done.stdout.splitlines()]


def is_same(box: dict[str, Any], other: dict[str, Any]) -> bool:
    sides = [abs(box["box"][side] - other["box"][side]) for side in ("x1", "y1", "x2", "y2")]
    is_near = max(sides) <= MAX_PIXELS and abs(box["score"] - other["score"]) <= MAX_SCORE
    return box["name"] == other["name"] and box["class_id"] == other["class_id"] and is_near


def unmatched(boxes: Sequence[dict[str, Any]], others: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Boxes without a partner of their own; those as near to the threshold as scores may differ need none."""
    left = list(others)
    alone = []
    for box in boxes:
        partner = next((other for other in left if is_same(box, other)), None)
        if partner is not None:
            left.remove(partner)
        elif box["score"] > CONF + MAX_SCORE:
            alone.append(box)
    return alone


def assert_same(found: Sequence[Sequence[dict[str, Any]]], expected: Sequence[Detections]) -> None:
    assert sum(len(boxes) for boxes in found) > 0
    for boxes, reference in zip(found, expected, strict=True):
        assert unmatched(boxes, reference.to_dict()) == [], reference.path
        assert unmatched(reference.to_dict(), boxes) == [], reference.path


@pytest.mark.parametrize("img_size", [320, 640])
def test_boxes_are_those_of_python(program: list[str], yolov5n: Path, pictures: list[Path], img_size: int) -> None:
    expected = load(yolov5n, device="cpu", img_size=img_size, threads=1)(pictures)
    assert sum(len(reference) for reference in expected) > 50
    assert_same(detected(program, yolov5n, *pictures, "--img-size", img_size), expected)


def test_cells_in_blood_are_found_alike_with_other_settings(program: list[str], yolov5n: Path) -> None:
    """Low scores, much overlap, few boxes allowed; the size is that of the export."""
    cells = sorted((SOURCES.parents[1] / "data" / "bccd" / "images" / "val").glob("*.jpg"))[:5]
    model = load(yolov5n, device="cpu", img_size=320, threads=1, iou=0.7, max_det=4)
    assert_same(detected(program, yolov5n, *cells, "--iou", 0.7, "--max-det", 4), model(cells))


def test_a_network_of_one_size_gets_pictures_in_a_square(
    program: list[str], copied: Path, pictures: list[Path]
) -> None:
    path = copied / "metadata.json"
    path.write_text(path.read_text().replace('"dynamic": true', '"dynamic": false'))
    assert_same(detected(program, copied, *pictures[:6]), load(copied, device="cpu", threads=1)(pictures[:6]))


def test_pictures_are_turned_as_their_exif_data_say(
    program: list[str], yolov5n: Path, pictures: list[Path], tmp_path: Path
) -> None:
    turned = []
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        turned.append(tmp_path / f"{orientation}.jpg")
        with Image.open(pictures[0]) as image:
            image.save(turned[-1], exif=exif, quality=95)
    expected = load(yolov5n, device="cpu", img_size=320, threads=1)(turned)
    assert len({reference.image_hw for reference in expected}) == 2
    assert_same(detected(program, yolov5n, *turned), expected)


def test_names_beyond_ascii_come_back(program: list[str], copied: Path, pictures: list[Path]) -> None:
    path = copied / "metadata.json"
    metadata = json.loads(path.read_text())
    metadata["names"] = [f'{name} "é" 😀' for name in metadata["names"]]
    path.write_text(json.dumps(metadata))
    assert_same(detected(program, copied, *pictures[:3]), load(copied, device="cpu", img_size=320)(pictures[:3]))


def test_boxes_are_drawn_on_a_copy_of_the_picture(
    program: list[str], yolov5n: Path, pictures: list[Path], tmp_path: Path
) -> None:
    (found,) = detected(program, yolov5n, pictures[0], "--draw", tmp_path)
    with Image.open(pictures[0]) as before, Image.open(tmp_path / f"boxes_{pictures[0].name}") as after:
        difference = np.abs(np.asarray(before.convert("RGB"), int) - np.asarray(after, int)).max(2)
    box = found[0]["box"]
    edge = difference[round(box["y1"]) + 5 : round(box["y2"]) - 5, round(box["x1"])]
    assert np.median(edge) > 20
    assert np.median(difference) <= 4


def without(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def replaced(name: str, old: str, new: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        text = (folder / name).read_text()
        assert old in text
        (folder / name).write_text(text.replace(old, new))

    return damage


METADATA, PARAM, BIN = "metadata.json", "model.ncnn.param", "model.ncnn.bin"
DAMAGE = {
    "no bin": (without(BIN), "model.ncnn.bin cannot be opened; check the path"),
    "no param": (without(PARAM), "model.ncnn.param cannot be opened; check the path"),
    "no metadata": (without(METADATA), "metadata.json cannot be opened; check the path"),
    "cut metadata": (lambda folder: cut_off(folder / METADATA), "metadata.json: not JSON"),
    "no strides": (replaced(METADATA, '"strides"', '"other"'), "strides: it is missing; export"),
    "number for a switch": (replaced(METADATA, '"dynamic": true', '"dynamic": 1'), "dynamic: expected true or false"),
    "lacking name": (replaced(METADATA, '"person",', ""), "names: got 79, expected num_classes of them"),
    "other format": (replaced(METADATA, '"_ncnn_model"', '".onnx"'), "format: got .onnx, expected _ncnn_model"),
    "other head": (replaced(PARAM, " out1", " other"), "has other inputs and outputs than metadata.json"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_folder_is_one_line(program: list[str], copied: Path, pictures: list[Path], kind: str) -> None:
    damage, finding = DAMAGE[kind]
    damage(copied)
    assert_one_line(run(program, copied, pictures[0]), finding)


def test_metadata_of_a_network_with_fewer_classes_are_refused(
    program: list[str], copied: Path, pictures: list[Path]
) -> None:
    path = copied / "metadata.json"
    metadata = json.loads(path.read_text())
    path.write_text(json.dumps({**metadata, "num_classes": 3, "names": ["a", "b", "c"]}))
    assert_one_line(
        run(program, copied, pictures[0]), "metadata.json expects 24 channels at stride 8: it is of another network"
    )


def test_a_bin_that_is_cut_off_ends_with_our_line(program: list[str], copied: Path, pictures: list[Path]) -> None:
    cut_off(copied / "model.ncnn.bin")
    done = run(program, copied, pictures[0])
    assert done.returncode == 2
    assert "model.ncnn.bin is truncated or damaged; export the network again" in done.stderr.splitlines()[-1]


def test_pictures_that_cannot_be_read_are_one_line(
    program: list[str], yolov5n: Path, pictures: list[Path], tmp_path: Path
) -> None:
    (tmp_path / "text.jpg").write_text("no picture")
    (tmp_path / "empty.jpg").write_bytes(b"")
    shutil.copyfile(pictures[0], tmp_path / "cut.jpg")
    cut_off(tmp_path / "cut.jpg")
    Image.new("RGB", (40, 1)).save(tmp_path / "line.png")
    for name in ("text.jpg", "empty.jpg", "cut.jpg"):
        assert_one_line(
            run(program, yolov5n, tmp_path / name), f"{name} cannot be read: it is not a JPEG, PNG or BMP"
        )
    assert_one_line(run(program, yolov5n, tmp_path / "missing.jpg"), "missing.jpg cannot be opened; check the path")
    assert_one_line(run(program, yolov5n, tmp_path / "line.png"), "picture of 40x1 pixels: expected at least 2x2")
    drawing = run(program, yolov5n, pictures[0], "--draw", tmp_path / "nowhere")
    assert_one_line(drawing, "cannot be written; check the folder")


@pytest.mark.parametrize(
    ("arguments", "finding"),
    [
        (["--conf", "1.5"], "expected 0 to 1 for both"),
        (["--conf", "much"], "--conf: got much, expected a number"),
        (["--threads", "-1"], "threads of at least 0"),
        (["--max-det", "2.5"], "--max-det: got 2.5, expected a number"),
        (["--img-size", "333"], "img-size 333: expected a multiple of the stride 32"),
        (["--sharpen", "1"], "--sharpen: unknown, or without its value; see detect --help"),
        (["--draw"], "--draw: unknown, or without its value"),
    ],
)
def test_arguments_out_of_range_are_one_line(
    program: list[str], yolov5n: Path, pictures: list[Path], arguments: list[str], finding: str
) -> None:
    assert_one_line(run(program, yolov5n, pictures[0], *arguments), finding)


def test_help_names_every_option_and_nothing_to_do_is_an_error(program: list[str], yolov5n: Path) -> None:
    done = run(program, "--help")
    assert done.returncode == 0
    for flag in ("conf", "iou", "max-det", "img-size", "threads", "powersave", "half", "draw"):
        assert f"--{flag}" in done.stdout
    assert_one_line(run(program, yolov5n), "expected a folder and at least one image; see detect --help")


@pytest.mark.slow
def test_boxes_on_aarch64_are_those_of_python(yolov5n: Path, pictures: list[Path], tmp_path: Path) -> None:
    """Under emulation: right, not fast."""
    program = built(AARCH64, "detect", tmp_path / "build")
    expected = load(yolov5n, device="cpu", img_size=320, threads=1)(pictures[:4])
    assert_same(detected(program, yolov5n, *pictures[:4], "--threads", 1), expected)
