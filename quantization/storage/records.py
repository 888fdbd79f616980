"""Convert a program to plain names, numbers and lists, the same for every kind of file, and back.

    format, version, layout, fingerprint, image_shape, size_step, outputs
    operations: one mapping each, with the fields of `Operation`; weight is {shape, and the parts of its layout}, or
        {as: name of an earlier operation} for integers that are stored there

Version 1 had no `size_step`, and every weight was stored. Each kind of file stores lists of numbers in its own way:
`NumberWriter` and `NumberReader`.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from quantization.choices import Layout
from quantization.program.program import Affine, FloatArray, IntArray, IntegerProgram, Operation, Setting
from quantization.storage.budget import Budget
from quantization.storage.sparse import PARTS, Parts, check_layout, to_matrix, to_parts
from utils.config.values import fitted
from utils.errors import CheckpointError, ConfigError

VERSION = 2
_FIRST_VERSION = 1
# Key of the name of another operation in place of a weight.
_AS = "as"
# Ends of slices from here on are open.
_OPEN_END = 2**31
_MOST_SHOWN = 80
_WORD = 2**63
_REMEDY = "the file is damaged or was edited, write it again"


class NumberWriter(Protocol):
    """Converts numbers to the plain data that a kind of file stores."""

    def integers(self, values: IntArray) -> Any:
        """Convert integers (N,) to plain data."""

    def floats(self, values: FloatArray) -> Any:
        """Convert floats (N,) to plain data, exactly."""

    def parts(self, parts: Parts, *, layout: Layout, shape: tuple[int, int]) -> dict[str, Any]:
        """Convert the parts of an integer matrix to plain data."""


class NumberReader(Protocol):
    """Undoes a `NumberWriter`; raises CheckpointError for data that the writer would not write."""

    budget: Budget

    def integers(self, value: Any) -> IntArray:
        """Read integers (N,)."""

    def floats(self, value: Any) -> FloatArray:
        """Read floats (N,)."""

    def parts(self, values: Mapping[str, Any], *, layout: Layout, shape: tuple[int, int]) -> Parts:
        """Read the parts of an integer matrix."""


def matrix_shape(shape: tuple[int, ...]) -> tuple[int, int]:
    """Return the shape of a weight (O, I, KH, KW) as a matrix (O, I * KH * KW)."""
    return shape[0], math.prod(shape[1:])


def program_record(
    program: IntegerProgram, *, kind_of_file: str, layout: Layout, numbers: NumberWriter
) -> dict[str, Any]:
    """Convert a program to plain data."""
    weights = _Weights()
    operations = [
        _operation_record(item, layout=layout, numbers=numbers, weights=weights) for item in program.operations
    ]
    return {
        "format": kind_of_file,
        "version": VERSION,
        "layout": layout,
        "fingerprint": program.fingerprint,
        "image_shape": list(program.image_shape),
        "size_step": program.size_step,
        "outputs": list(program.outputs),
        "operations": operations,
    }


def program_from_record(record: Any, *, kind_of_file: str, numbers: NumberReader) -> IntegerProgram:
    """Undo `program_record`; kinds, shapes and ranges are left to `check_program`.

    Raises:
        CheckpointError: The record is of another kind or version, or a field is missing or of another type.
    """
    layout, version = check_head(record, kind_of_file=kind_of_file)
    records = plain_field(record, "operations", list, where="the file")
    channels, height, width = _three(plain_field(record, "image_shape", tuple[int, ...], where="the file"))
    operations: dict[str, Operation] = {}
    for item in records:
        operation = _operation(item, layout=layout, numbers=numbers, earlier=operations)
        if operation.name in operations:
            raise CheckpointError(f"operation {operation.name!r} occurs twice; {_REMEDY}")
        operations[operation.name] = operation
    is_old = version == _FIRST_VERSION
    return IntegerProgram(
        operations=tuple(operations.values()),
        outputs=plain_field(record, "outputs", tuple[str, ...], where="the file"),
        fingerprint=plain_field(record, "fingerprint", str, where="the file"),
        image_shape=(channels, height, width),
        size_step=_old_step(operations) if is_old else plain_field(record, "size_step", int, where="the file"),
    )


def _old_step(operations: Mapping[str, Operation]) -> int:
    """Return the step of sizes of a file of version 1, which did not tell: 0 if a size may be in its settings."""
    return int(not any(_may_contain_size(operation) for operation in operations.values()))


def _may_contain_size(operation: Operation) -> bool:
    settings = operation.settings
    is_windows = operation.kind == "mean" and settings.get("kernel") != (0, 0)
    # Ends of slices that are open are written as a number beyond any size.
    stop, axis = settings.get("stop"), settings.get("axis")
    is_part = operation.kind == "slice" and axis in (2, 3) and isinstance(stop, int) and stop < _OPEN_END
    return is_windows or is_part


def check_head(record: Any, *, kind_of_file: str, newest: int = VERSION) -> tuple[Layout, int]:
    """Check the kind and version of a record, and return its layout and version.

    Raises:
        CheckpointError: The record is of another kind, or of an unknown version.
    """
    found = record.get("format") if isinstance(record, dict) else None
    if found != kind_of_file:
        raise CheckpointError(
            f"this is not a {kind_of_file} (its format is {_shown(found)}); give a file of that kind"
        )
    version = plain_field(record, "version", int, where="the file")
    if not _FIRST_VERSION <= version <= newest:
        raise CheckpointError(
            f"format version is {version}, expected {newest} at most; write the file again with this code"
        )
    try:
        return check_layout(plain_field(record, "layout", str, where="the file")), version
    except ConfigError as error:
        raise CheckpointError(str(error)) from None


class _Weights:
    """The weights that are written so far."""

    def __init__(self) -> None:
        self._names: dict[tuple[tuple[int, ...], bytes], str] = {}

    def known(self, operation: Operation) -> str | None:
        """Return the name of an earlier operation with the same weight; None if there is none."""
        weight = operation.arrays["weight"]
        name = self._names.setdefault((weight.shape, hashlib.sha256(weight.tobytes()).digest()), operation.name)
        return name if name != operation.name else None


def _operation_record(
    operation: Operation, *, layout: Layout, numbers: NumberWriter, weights: _Weights
) -> dict[str, Any]:
    settings = {
        name: list(value) if isinstance(value, tuple) else value for name, value in operation.settings.items()
    }
    # The order of the fields matters: numbers are written and read in this order.
    return {
        "name": operation.name,
        "kind": operation.kind,
        "inputs": list(operation.inputs),
        "output": {name: getattr(operation.output, name) for name in ("scale", "zero_point", "low", "high")},
        "settings": settings,
        "weight_bits": operation.weight_bits,
        "weight_scales": numbers.floats(operation.weight_scales),
        "arrays": _array_records(operation, layout=layout, numbers=numbers, weights=weights),
    }


def _array_records(
    operation: Operation, *, layout: Layout, numbers: NumberWriter, weights: _Weights
) -> dict[str, Any]:
    arrays: dict[str, Any] = {
        name: numbers.integers(values) for name, values in operation.arrays.items() if name != "weight"
    }
    if "weight" in operation.arrays:
        name = weights.known(operation)
        arrays["weight"] = (
            {_AS: name} if name is not None else _weight_record(operation, layout=layout, numbers=numbers)
        )
    return arrays


def _weight_record(operation: Operation, *, layout: Layout, numbers: NumberWriter) -> dict[str, Any]:
    weight = operation.arrays["weight"]
    shape = matrix_shape(weight.shape)
    parts = to_parts(weight.reshape(shape), layout=layout, fill=operation.arrays["weight_zero_point"])
    return {"shape": list(weight.shape), **numbers.parts(parts, layout=layout, shape=shape)}


def _operation(record: Any, *, layout: Layout, numbers: NumberReader, earlier: Mapping[str, Operation]) -> Operation:
    named = f"operation {_shown(record.get('name'))}" if isinstance(record, dict) else "an operation"
    try:
        return Operation(
            name=plain_field(record, "name", str, where="it"),
            kind=plain_field(record, "kind", str, where="it"),
            inputs=plain_field(record, "inputs", tuple[str, ...], where="it"),
            output=_affine(plain_field(record, "output", dict, where="it")),
            settings=_settings(plain_field(record, "settings", dict, where="it")),
            weight_bits=plain_field(record, "weight_bits", int, where="it"),
            weight_scales=numbers.floats(_member(record, "weight_scales")),
            arrays=_arrays(
                plain_field(record, "arrays", dict, where="it"), layout=layout, numbers=numbers, earlier=earlier
            ),
        )
    except CheckpointError as error:
        raise CheckpointError(f"{named}: {error}") from None


def _affine(record: dict[str, Any]) -> Affine:
    values = {name: plain_field(record, name, int, where="its output") for name in ("zero_point", "low", "high")}
    return Affine(scale=plain_field(record, "scale", float, where="its output"), **values)


def _settings(record: dict[str, Any]) -> dict[str, Setting]:
    return {name: plain_field(record, name, int | tuple[int, ...], where="its settings") for name in record}


def _arrays(
    record: dict[str, Any], *, layout: Layout, numbers: NumberReader, earlier: Mapping[str, Operation]
) -> dict[str, IntArray]:
    arrays = {name: numbers.integers(value) for name, value in record.items() if name != "weight"}
    if "weight" not in record:
        return arrays
    stored = plain_field(record, "weight", dict, where="its arrays")
    if _AS in stored:
        return {"weight": _weight_of(plain_field(stored, _AS, str, where="its weight"), earlier), **arrays}
    shape = plain_field(stored, "shape", tuple[int, ...], where="its weight")
    if len(shape) < 2 or min(shape) < 1:
        raise CheckpointError(f"its weight has shape {shape}, expected (O, I) or (O, I, KH, KW); {_REMEDY}")
    fill = arrays.get("weight_zero_point")
    if fill is None or len(fill) != shape[0]:
        raise CheckpointError(
            f"weight_zero_point does not have one value for each of {shape[0]} rows of weights; {_REMEDY}"
        )
    flat = matrix_shape(shape)
    values = {name: _member(stored, name) for name in PARTS[layout]}
    parts = numbers.parts(values, layout=layout, shape=flat)
    if layout != "dense":
        # Few parts may describe a large matrix, so the budget is checked before it is allocated.
        numbers.budget.take(math.prod(flat))
    weight = to_matrix(parts, layout=layout, shape=flat, fill=fill).reshape(shape)
    return {"weight": weight.astype(np.int64, copy=False), **arrays}


def _weight_of(name: str, earlier: Mapping[str, Operation]) -> IntArray:
    if name not in earlier or "weight" not in earlier[name].arrays:
        raise CheckpointError(f"its weight is that of {_shown(name)}, no earlier operation with weights; {_REMEDY}")
    return earlier[name].arrays["weight"]


def _member(record: Mapping[str, Any], name: str) -> Any:
    if name not in record:
        raise CheckpointError(f"there is no {name!r}; {_REMEDY}")
    return record[name]


def plain_field(record: Any, name: str, kind: Any, *, where: str) -> Any:
    """Return the value of a field, checked to be of type `kind`.

    Raises:
        CheckpointError: The field is missing or of another type.
    """
    if not isinstance(record, dict) or name not in record:
        raise CheckpointError(f"{where} has no {name!r}; {_REMEDY}")
    try:
        value = fitted(record[name], kind)
    except (ValueError, OverflowError) as error:
        raise CheckpointError(f"{where}: {name} is {_shown(record[name])}, expected {error}") from None
    if isinstance(value, dict) and not all(isinstance(key, str) for key in value):
        raise CheckpointError(f"{where}: {name} has keys that are not strings; {_REMEDY}")
    if any(_is_huge(number) for number in (value if isinstance(value, tuple) else (value,))):
        raise CheckpointError(f"{where}: {name} has a number of more than 64 bits; {_REMEDY}")
    return value


def _shown(value: Any) -> str:
    """Format a value for a message: shortened, and only the type of a container."""
    is_plain = value is None or isinstance(value, str | int | float)
    return repr(value)[:_MOST_SHOWN] if is_plain and not _is_huge(value) else type(value).__name__


def _is_huge(value: Any) -> bool:
    return isinstance(value, int) and not -_WORD <= value < _WORD


def _three(numbers: tuple[int, ...]) -> tuple[int, int, int]:
    if len(numbers) != 3:
        raise CheckpointError(f"image_shape is {numbers}, expected (C, H, W); {_REMEDY}")
    return numbers[0], numbers[1], numbers[2]
