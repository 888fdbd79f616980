"""Run an `IntegerProgram` in torch: every tensor between input and output contains integers."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from quantization.execution.ops import MAKERS
from quantization.execution.stored import restored, stored
from quantization.program.program import IntegerProgram
from quantization.program.shapes import check_image_shape
from quantization.ranges.affine import dequantise, quantise
from utils.errors import DataError


class Executor:
    """Runs one program on the CPU; its constants are prepared once.

    Args:
        program: Program from `QuantizedNetwork.to_program`, or one that was read and checked.
    """

    def __init__(self, program: IntegerProgram) -> None:
        self._program = program
        self._affines = {operation.name: operation.output for operation in program.operations}
        self._steps = {
            operation.name: MAKERS[operation.kind](operation, [self._affines[name] for name in operation.inputs])
            for operation in program.operations[1:]
        }
        last_reader = {source: operation.name for operation in program.operations for source in operation.inputs}
        # Results that no operation reads after this one; dropping them bounds memory.
        self._done_after = {
            operation.name: tuple(source for source, reader in last_reader.items() if reader == operation.name)
            for operation in program.operations
        }
        self._checked: set[tuple[int, ...]] = set()

    def __call__(self, images: Tensor) -> list[Tensor]:
        """Compute the int32 integers of each output from integers (B, C, H, W) of the input's scale.

        Raises:
            DataError: There are no images, or the program does not accept their shape.
        """
        wanted = set(self._program.outputs)
        held = {name: value for name, value in self._run(images) if name in wanted}
        return [self._given(name, held[name]) for name in self._program.outputs]

    def values(self, images: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Yield the name and int32 integers of each operation, in order, to find where two runtimes differ."""
        return ((name, self._given(name, value)) for name, value in self._run(images))

    @torch.no_grad()
    def _run(self, images: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Yield the name and result of each operation, in the executor's storage format."""
        self._check(images)
        first, *others = self._program.operations
        held = {first.name: stored(images, first.output).transpose(0, 1).contiguous()}
        yield first.name, held[first.name]
        for operation in others:
            result = self._steps[operation.name]([held[source] for source in operation.inputs])
            held[operation.name] = result
            yield operation.name, result
            for source in self._done_after[operation.name]:
                del held[source]

    def _given(self, name: str, value: Tensor) -> Tensor:
        return restored(value, self._affines[name]).transpose(0, 1)

    def _check(self, images: Tensor) -> None:
        shape = tuple(images.shape)
        if shape not in self._checked:
            check_image_shape(self._program, shape)
            self._checked.add(shape)


def run_program(program: IntegerProgram, executor: Executor, images: Tensor) -> list[Tensor]:
    """Quantise images, run a program on the integers, and dequantise its outputs.

    Args:
        program: Program to run.
        executor: Executor of this program.
        images: Images (B, C, H, W), floating point.

    Returns:
        Each output, float32, on the device of the images.

    Raises:
        DataError: The images do not fit the network, or are not finite.
    """
    if not images.isfinite().all():
        raise DataError("images contain NaN or infinity; fix them, or the code that reads them")
    integers = executor(quantise(images.cpu(), program.operations[0].output))
    affines = {operation.name: operation.output for operation in program.operations}
    pairs = zip(integers, program.outputs, strict=True)
    return [dequantise(result, affines[name]).to(images.device) for result, name in pairs]
