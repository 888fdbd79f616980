"""Folders of images by split and class: what is read, what is skipped with a count, and what is refused."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from class_folder_factory import write_folder, write_image
from PIL import Image

from utils.datasets.classes import checks
from utils.datasets.classes.decoding import FileImages
from utils.datasets.classes.known import are_pictures, load_pictures
from utils.datasets.classes.pictures import PictureData, channel_statistics
from utils.errors import DataError


def load(root: Path, *, img_size: int = 4) -> PictureData:
    return load_pictures(str(root), root.parent / "cache", img_size=img_size)


def test_folder_of_splits_and_classes_is_a_data_set(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "pets")
    data = load(root)
    assert are_pictures(str(root))
    assert (data.names, data.image_chw, len(data.train), len(data.test)) == (("cat", "dog"), (3, 4, 4), 6, 4)
    assert data.train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert data.train.images[:][:, 0, 0, 0].tolist() == [10, 11, 12, 110, 111, 112]
    assert data.test.images[:][:, 2, 3, 3].tolist() == [60, 61, 160, 161]


def test_folder_whose_name_is_no_utf8_is_a_class_with_a_printable_name(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "pets")
    for split in ("train", "val"):
        os.rename(os.fsencode(root / split / "cat"), os.fsencode(root / split) + b"/caf\xe9")
    data = load(root)
    assert data.names == (r"caf\xe9", "dog")
    assert data.train.images[[0]][0, 0, 0, 0] == 10


def test_folder_with_the_name_of_a_known_set_is_named_in_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    write_folder(tmp_path / "mnist")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("utils.datasets.classes.known.load_known", lambda *_: None)
    load_pictures("mnist")
    assert "for the folder here give ./mnist" in caplog.text
    assert load_pictures("./mnist", tmp_path / "cache", img_size=4).names == ("cat", "dog")


def test_folder_to_measure_on_is_the_one_asked_for_or_named_in_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = write_folder(tmp_path / "pets")
    write_image(root / "test/cat/0.png", value=200)
    sizes = [len(load_pictures(str(root), tmp_path, img_size=4, measured=name).test) for name in ("val", "test")]
    assert sizes == [4, 1]
    assert "measured on" not in caplog.text
    shutil.rmtree(root / "test")
    assert len(load_pictures(str(root), tmp_path, img_size=4, measured="test").test) == 4
    assert f"{root} has no folder test; measured on val" in caplog.text


@pytest.mark.parametrize("second", ["test", "valid", "validation"])
def test_second_split_has_other_names_as_well(second: str, tmp_path: Path) -> None:
    root = write_folder(tmp_path / "pets", second=second)
    assert len(load(root).test) == 4
    # A folder called val comes first.
    shutil.copytree(root / "train", root / "val")
    assert len(load(root).test) == 6


def test_classes_of_the_second_split_are_matched_by_name(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = write_folder(tmp_path / "pets")
    write_image(root / "train/ant/1.png")
    shutil.rmtree(root / "val/cat")
    data = load(root)
    assert data.names == ("ant", "cat", "dog")
    assert data.test.labels.tolist() == [2, 2]
    assert "val has no images of 2 classes: ant, cat" in caplog.text


def test_class_that_is_only_in_the_second_split_is_refused(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "pets")
    write_image(root / "val/cow/1.png")
    with pytest.raises(DataError, match="cow in val is no class in train, which has cat, dog; rename or remove"):
        load(root)


def test_images_lie_below_their_class_and_links_to_folders_are_followed(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "pets")
    write_image(root / "train/cat/more/deep/x.png", value=99)
    write_image(tmp_path / "elsewhere/y.png", value=77)
    (root / "train/ant").symlink_to(tmp_path / "elsewhere")
    data = load(root)
    assert data.names == ("ant", "cat", "dog")
    assert data.train.images[:][:, 0, 0, 0].tolist() == [77, 10, 11, 12, 99, 110, 111, 112]


def test_other_files_are_counted_and_hidden_ones_skipped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = write_folder(tmp_path / "pets")
    for name in ("train/cat/a.mp4", "train/dog/b.mp4", "train/cat/notes.txt", "train/list.csv"):
        (root / name).write_bytes(b"x")
    for name in ("train/.DS_Store", "train/cat/._0.png", "train/cat/Thumbs.db", "val/desktop.ini"):
        (root / name).write_bytes(b"x")
    (root / "train/.cache").mkdir()
    (root / "train/__MACOSX").mkdir()
    assert len(load(root).train) == 6
    lines = [record.getMessage() for record in caplog.records]
    assert lines == [
        f"{root / 'train'}: 1 files outside the class folders, not read: list.csv",
        f"{root / 'train'}: 2 files that are not images, not read: 2 .mp4",
    ]


def test_link_back_to_a_folder_above_is_no_class(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = write_folder(tmp_path / "pets")
    (root / "train/again").symlink_to(root / "train")
    (root / "train/cat/up").symlink_to(root / "train/cat")
    data = load(root)
    assert (data.names, len(data.train)) == (("cat", "dog"), 6)
    assert "1 files outside the class folders, not read: again" in caplog.text
    assert "1 links to a folder above them, not followed" in caplog.text


def test_unreadable_images_are_skipped_with_one_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = write_folder(tmp_path / "pets")
    (root / "train/cat/bad.jpg").write_bytes(b"no image")
    (root / "train/dog/cut.png").write_bytes((root / "train/dog/0.png").read_bytes()[:40])
    (root / "train/dog/gone.png").symlink_to(root / "nowhere.png")
    assert len(load(root).train) == 6
    lines = [record.getMessage() for record in caplog.records]
    assert lines == [
        f"{root / 'train'}: 3 images cannot be read, skipped: cat/bad.jpg, dog/cut.png, dog/gone.png",
    ]


def test_class_without_a_usable_image_is_refused(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "pets")
    (root / "train/empty").mkdir()
    with pytest.raises(DataError, match="train has no usable image in empty; add images or remove the folder"):
        load(root)
    (root / "train/empty/bad.jpg").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"no usable image in empty \(1 files there cannot be read\)"):
        load(root)


def in_images_and_labels(root: Path) -> None:
    write_image(root / "images/1.png")
    (root / "labels").mkdir()
    (root / "data.yaml").write_text("names: [a]")


def without_a_second_split(root: Path) -> None:
    write_folder(root)
    shutil.rmtree(root / "val")


def with_loose_images(root: Path) -> None:
    write_image(root / "train/1.png")
    write_image(root / "val/1.png")


def with_one_class(root: Path) -> None:
    write_folder(root)
    shutil.rmtree(root / "train/cat")


def with_an_empty_second_split(root: Path) -> None:
    write_folder(root, val=0)
    (root / "val/cat").mkdir(parents=True)


@pytest.mark.parametrize(
    ("make", "finding"),
    [
        (in_images_and_labels, "found data.yaml, images/, labels/; a detector's data is a YAML file"),
        (without_a_second_split, "expected train/CLASS/ and val/CLASS/ with images, found train/;"),
        (Path.mkdir, "found an empty folder;"),
        (with_loose_images, "expected train/CLASS/ and val/CLASS/ with images, found 1.png in train"),
        (with_one_class, "train has 1 class folders, expected at least 2"),
        (with_an_empty_second_split, "val has no usable image; add some to its class folders"),
    ],
)
def test_folder_of_another_layout_is_refused_with_what_was_found(
    make: Callable[[Path], None], finding: str, tmp_path: Path
) -> None:
    root = tmp_path / "data"
    make(root)
    assert are_pictures(str(root))
    with pytest.raises(DataError, match=f"--data .*{finding}") as caught:
        load(root)
    assert "\n" not in str(caught.value)


def test_names_of_detectors_data_are_no_folders_of_classes(tmp_path: Path) -> None:
    (tmp_path / "data.yaml").mkdir()
    assert not are_pictures(str(tmp_path / "data.yaml"))
    assert not are_pictures("")
    assert not are_pictures(str(tmp_path / "absent"))


def test_closed_folder_is_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write_folder(tmp_path / "pets")
    closed = root / "train/cat/closed"
    closed.mkdir()
    scan = os.scandir

    def refuse(folder: os.PathLike[str]) -> object:  # root may open every folder, so no mode closes it
        if Path(folder) == closed:
            raise PermissionError(13, "Permission denied")
        return scan(folder)

    monkeypatch.setattr(os, "scandir", refuse)
    assert len(load(root).train) == 6
    assert "1 folders that may not be opened" in caplog.text


def test_image_in_both_splits_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = write_folder(tmp_path / "pets")
    shutil.copy(root / "train/cat/0.png", root / "val/cat/9.png")
    load(root)
    assert "1 of 5 images are also training images" in caplog.text


def test_grey_transparent_and_rotated_files_are_upright_rgb(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "pets")
    folder = root / "train/ant"
    folder.mkdir()
    Image.new("L", (8, 8), 40).save(folder / "1.PNG")
    Image.new("RGBA", (8, 8), (255, 0, 0, 0)).save(folder / "2.png")
    half = Image.fromarray(np.repeat(np.array([[[0] * 3] * 8, [[255] * 3] * 8], np.uint8), 4, 0))
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    half.save(folder / "3.png", exif=exif)
    half.save(folder / "4.webp", lossless=True)
    grey, clear, turned, upright = load(root, img_size=14).train.images[:4]
    assert grey.unique().tolist() == [40]
    assert clear.unique().tolist() == [114]
    assert (turned[0, 0].tolist(), turned[0, 13].tolist()) == ([255] * 14, [0] * 14)
    assert torch.equal(upright, turned.flip(1))


def test_images_are_checked_once_and_again_when_they_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    root, seen = write_folder(tmp_path / "pets"), []
    check_image = checks.check_image

    def counted(path: Path) -> object:
        seen.append(path.name)
        return check_image(path)

    monkeypatch.setattr(checks, "check_image", counted)
    first = load(root)
    assert len(seen) == 10
    again = load(root)
    assert len(seen) == 10
    assert isinstance(first.train.images, FileImages)
    assert isinstance(again.train.images, FileImages)
    assert again.train.images.digests == first.train.images.digests
    assert (again.train.images.sizes_hw == first.train.images.sizes_hw).all()
    write_image(root / "train/cat/0.png", hw=(9, 30))
    (root / "train/cat/1.png").write_bytes(b"no image")
    changed = load(root)
    assert len(seen) == 12
    assert len(changed.train) == 5
    (memory,) = (tmp_path / "cache/folders").iterdir()
    memory.write_bytes(memory.read_bytes()[:100])
    load(root)
    assert len(seen) == 22
    assert not [record for record in caplog.records if "checked again" in record.getMessage()]


def test_cache_that_cannot_be_written_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = write_folder(tmp_path / "pets")
    (tmp_path / "cache").write_text("a file in its place")
    assert len(load(root).train) == 6
    assert "the images will be checked again in the next run: cannot write" in caplog.text


def test_statistics_of_files_are_those_of_their_crops(tmp_path: Path) -> None:
    data = load(write_folder(tmp_path / "pets"))
    mean, std = channel_statistics(data.train)
    values = np.array([10, 11, 12, 110, 111, 112]) / 255
    assert mean == pytest.approx([values.mean()] * 3)
    assert std == pytest.approx([values.std()] * 3)


def test_part_of_a_folder_is_taken_without_decoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = load(write_folder(tmp_path / "pets"))
    monkeypatch.setattr(FileImages, "_decode", None)
    few = data.train.first(4).to(torch.device("cpu"))
    assert (len(few), len(few.images), few.labels.tolist()) == (4, 4, [0, 0, 0, 1])


def test_size_that_cannot_be_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="--img-size 0: expected at least 1 pixel"):
        load(write_folder(tmp_path / "pets"), img_size=0)


def test_image_that_is_gone_when_it_is_used_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = load(write_folder(tmp_path / "pets"))
    (tmp_path / "pets/train/dog/1.png").unlink()
    with caplog.at_level(logging.ERROR), pytest.raises(DataError, match=r"image .*train/dog/1.png cannot be read"):
        data.train.images[:]
    assert cv2.imread(str(tmp_path / "pets/train/dog/0.png")) is not None
