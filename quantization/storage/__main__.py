"""Predictions of a quantised network, without torch: python -m quantization.storage network.npz images.npz"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantization.storage.binary import load_program
from quantization.storage.reader import run
from quantization.storage.text import load_yaml
from utils.errors import DataError, UserError
from utils.files import NPZ_ERRORS

_USAGE_EXIT = 2


def main() -> None:
    """Write {"classes": [...], "outputs": [...]} of a classifier to standard output."""
    parser = argparse.ArgumentParser(prog="python -m quantization.storage", description=__doc__)
    parser.add_argument("network", help="quantised network, .npz or .yaml")
    parser.add_argument("images", help="npz with (B, C, H, W), in the range the network was trained with")
    parser.add_argument("--key", default="images", help="name of the array in the npz (default: %(default)s)")
    arguments = parser.parse_args()
    try:
        is_yaml = Path(arguments.network).suffix in (".yaml", ".yml")
        program = load_yaml(arguments.network) if is_yaml else load_program(arguments.network)
        scores, *_ = run(program, _images(arguments.images, arguments.key))
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(_USAGE_EXIT)
    flat = scores.reshape(len(scores), -1)
    sys.stdout.write(json.dumps({"classes": flat.argmax(1).tolist(), "outputs": flat.tolist()}) + "\n")


def _images(path: str, key: str) -> NDArray[Any]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            images: NDArray[Any] = archive[key]
    except NPZ_ERRORS as error:
        raise DataError(f"{path}: no array {key!r} can be read ({error}); give an npz that has it") from None
    if not np.issubdtype(images.dtype, np.floating):
        raise DataError(f"{path}: {key} is {images.dtype}, expected float; scale images as in training")
    return images


if __name__ == "__main__":
    main()
