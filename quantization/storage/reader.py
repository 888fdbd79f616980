"""Reference reader, which runs a quantised network with numpy alone.

from quantization.storage.binary import load_program
from quantization.storage.reader import run
logits, = run(load_program("lenet5.npz"), images)
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantization.program.program import Affine, FloatArray, IntArray, IntegerProgram, Operation
from quantization.program.shapes import check_image_shape
from quantization.storage.arithmetic import run_operation
from utils.errors import DataError

# Images computed at once: the windows of a convolution take 8 bytes per value, many times the size of the image.
_AT_ONCE = 16


def run(program: IntegerProgram, images: NDArray[Any]) -> list[FloatArray]:
    """Quantise images, run a program on the integers, and dequantise its outputs.

    Args:
        program: Valid program, as `load_program` returns it.
        images: Images (B, C, H, W), floating point, scaled as in training.

    Returns:
        Each output, the batch first.

    Raises:
        DataError: The images do not fit the network, or are not finite.
    """
    if images.ndim == 4 and not np.isfinite(images).all():
        raise DataError("images contain NaN or infinity; fix them, or the code that reads them")
    outputs = run_integers(program, quantise(images, program.operations[0].output))
    affines = {operation.name: operation.output for operation in program.operations}
    return [dequantise(output, affines[name]) for name, output in zip(program.outputs, outputs, strict=True)]


def run_integers(program: IntegerProgram, images: IntArray) -> list[IntArray]:
    """Run a program on integers.

    Args:
        program: Valid program.
        images: Integers (B, C, H, W), within the range of the program's input.

    Returns:
        Each output, the batch first.

    Raises:
        DataError: The images do not fit the network.
    """
    _check_images(program, images)
    parts = [_run(program, images[start : start + _AT_ONCE]) for start in range(0, len(images), _AT_ONCE)]
    return [np.concatenate(outputs) for outputs in zip(*parts, strict=True)]


def quantise(real: NDArray[Any], affine: Affine) -> IntArray:
    """Quantise real values to int64 integers, halves rounded up, computed in the precision of the input."""
    rounded = np.floor(real / affine.scale + 0.5) + affine.zero_point
    integers: IntArray = np.clip(rounded, affine.low, affine.high).astype(np.int64)
    return integers


def dequantise(integers: IntArray, affine: Affine) -> FloatArray:
    """Convert integers to the float64 values that they represent."""
    return (integers - affine.zero_point).astype(np.float64) * affine.scale


def _check_images(program: IntegerProgram, images: IntArray) -> None:
    check_image_shape(program, images.shape)
    if not np.issubdtype(images.dtype, np.integer):
        raise DataError(f"images are {images.dtype}, expected integers; use run() for floating point")
    affine = program.operations[0].output
    if images.min() < affine.low or images.max() > affine.high:
        raise DataError(
            f"integers of images are {images.min()} to {images.max()}, expected {affine.low} to {affine.high}"
        )


def _run(program: IntegerProgram, images: IntArray) -> list[IntArray]:
    affines = {operation.name: operation.output for operation in program.operations}
    results = {program.operations[0].name: images.astype(np.int64)}
    for operation, finished in _with_finished(program):
        if operation.kind != "input":
            values = [results[name] for name in operation.inputs]
            results[operation.name] = run_operation(operation, values, [affines[name] for name in operation.inputs])
        for name in finished:
            del results[name]
    return [results[name] for name in program.outputs]


def _with_finished(program: IntegerProgram) -> Iterator[tuple[Operation, list[str]]]:
    """Yield every operation, with the names of the results that no later operation needs."""
    last = {operation.name: operation.name for operation in program.operations}
    for operation in program.operations:
        last.update(dict.fromkeys(operation.inputs, operation.name))
    for operation in program.operations:
        yield operation, [name for name in last if last[name] == operation.name and name not in program.outputs]
