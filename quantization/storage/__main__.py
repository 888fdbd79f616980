"""Run a quantised classifier without torch: python -m quantization.storage network.npz images.npz"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantization.program.program import IntegerProgram
from quantization.program.shapes import result_shapes
from quantization.storage.binary import load_program
from quantization.storage.reader import run
from quantization.storage.text import load_yaml
from utils.errors import DataError, UserError
from utils.storage.files import NPZ_ERRORS

_USAGE_EXIT = 2


def main() -> None:
    """Write the predictions of a classifier, {"classes": [...], "outputs": [...]}, to standard output."""
    parser = argparse.ArgumentParser(prog="python -m quantization.storage", description=__doc__)
    parser.add_argument("network", help="quantised network, .npz or .yaml")
    parser.add_argument("images", help="npz with (B, C, H, W), less the mean and divided by the std of metadata.json")
    parser.add_argument("--key", default="images", help="name of the array in the npz (default: %(default)s)")
    arguments = parser.parse_args()
    try:
        is_yaml = Path(arguments.network).suffix in (".yaml", ".yml")
        program = load_yaml(arguments.network) if is_yaml else load_program(arguments.network)
        _check_classifier(program, arguments.network)
        (scores,) = run(program, _images(arguments.images, arguments.key))
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(_USAGE_EXIT)
    sys.stdout.write(json.dumps({"classes": scores.argmax(1).tolist(), "outputs": scores.tolist()}) + "\n")


def _check_classifier(program: IntegerProgram, path: str) -> None:
    shapes = result_shapes(program, program.image_shape)
    found = [shapes[name] for name in program.outputs]
    if len(found) != 1 or len(found[0]) != 2:
        raise DataError(
            f"{path} returns {', '.join(map(str, found))} for one image, as detectors do, expected one row of "
            "scores; for a detector, give its folder to val.py or detect.py"
        )


def _images(path: str, key: str) -> NDArray[Any]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            images: NDArray[Any] = archive[key]
    except FileNotFoundError:
        raise DataError(f"images {path} do not exist; check the path") from None
    except NPZ_ERRORS as error:
        raise DataError(f"{path}: no array {key!r} can be read ({error}); give an npz that has it") from None
    if not np.issubdtype(images.dtype, np.floating):
        raise DataError(f"{path}: {key} is {images.dtype}, expected float; scale images as in training")
    return images


if __name__ == "__main__":
    main()
