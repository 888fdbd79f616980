"""Write and read a quantised network as YAML that people can read: the record of records.py with plain numbers.

Each list of numbers is on one line; a dense weight is a list of rows, one for each output channel. Floating-point
networks have their own kind of file: names, shapes and the shortest decimals that give the same numbers again.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantization.choices import Layout
from quantization.program.program import FloatArray, IntArray, IntegerProgram
from quantization.storage.budget import Budget
from quantization.storage.checks import check_fingerprint, check_program
from quantization.storage.records import (
    check_head,
    matrix_shape,
    plain_field,
    program_from_record,
    program_record,
)
from quantization.storage.sparse import PARTS, Parts, check_layout, to_matrix, to_parts
from quantization.storage.yaml_lists import ListReader, dumped, part_lists, read_lists, read_parts
from utils.errors import CheckpointError
from utils.storage.files import write_text

_KIND = "quantised network"
_FLOAT_KIND = "network in real numbers"
_FLOAT_VERSION = 1
_REMEDY = "the file is damaged or was edited, write it again"
_TYPES = {"float32": np.float32, "float64": np.float64}


def save_yaml(program: IntegerProgram, path: str | Path, *, layout: str = "dense") -> None:
    """Write a quantised network as YAML.

    Args:
        program: Network to write.
        path: Path of the file.
        layout: Layout of the weights: dense, coo, csr or csc.

    Raises:
        CheckpointError: The program is not valid.
        ConfigError: There is no such layout, or the file cannot be written.
    """
    write_text(path, program_text(program, layout=layout))


def load_yaml(path: str | Path, *, fingerprint: str | None = None) -> IntegerProgram:
    """Read what `save_yaml` wrote.

    Args:
        path: Path of the file.
        fingerprint: Fingerprint of the expected network; None accepts any.

    Raises:
        CheckpointError: The file is missing, of another kind, version or network, or damaged.
    """
    record, num_bytes = read_lists(path)
    try:
        program = program_from_record(record, kind_of_file=_KIND, numbers=ListReader(Budget(num_bytes)))
        check_program(program)
        check_fingerprint(program, fingerprint)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
    return program


def program_text(program: IntegerProgram, *, layout: str) -> str:
    """Return the content of the file; see `save_yaml`."""
    check_program(program)
    return dumped(program_record(program, kind_of_file=_KIND, layout=check_layout(layout), numbers=_Writer()))


def save_float_yaml(arrays: Mapping[str, NDArray[Any]], path: str | Path, *, layout: str = "dense") -> None:
    """Write a floating-point network as YAML.

    Args:
        arrays: Arrays of any shape, float32 or float64, by name. They are read back exactly, except for -0.0, which
            a sparse layout turns into 0.0.
        path: Path of the file.
        layout: Layout of arrays that have two or more axes.

    Raises:
        CheckpointError: An array is of another type.
        ConfigError: There is no such layout, or the file cannot be written.
    """
    checked = check_layout(layout)
    records = {name: _float_record(name, values, layout=checked) for name, values in arrays.items()}
    write_text(path, dumped({"format": _FLOAT_KIND, "version": _FLOAT_VERSION, "layout": checked, "arrays": records}))


def load_float_yaml(path: str | Path) -> dict[str, NDArray[Any]]:
    """Read the arrays that `save_float_yaml` wrote, with their types.

    Raises:
        CheckpointError: The file is missing, of another kind or version, or damaged.
    """
    record, num_bytes = read_lists(path)
    budget = Budget(num_bytes)
    try:
        layout, _ = check_head(record, kind_of_file=_FLOAT_KIND, newest=_FLOAT_VERSION)
        records = plain_field(record, "arrays", dict, where="the file")
        return {name: _float_array(name, item, layout=layout, budget=budget) for name, item in records.items()}
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None


class _Writer:
    """Converts numbers to lists."""

    def integers(self, values: IntArray) -> Any:
        return values.tolist()

    def floats(self, values: FloatArray) -> Any:
        return values.tolist()

    def parts(self, parts: Parts, *, layout: Layout, shape: tuple[int, int]) -> dict[str, Any]:
        return part_lists(parts, layout=layout, shape=shape, as_list=np.ndarray.tolist)


def _float_record(name: str, values: NDArray[Any], *, layout: Layout) -> dict[str, Any]:
    if str(values.dtype) not in _TYPES:
        raise CheckpointError(f"{name} is {values.dtype}, expected float32 or float64; convert it first")
    head = {"type": str(values.dtype), "shape": list(values.shape)}
    if values.ndim < 2 or values.size == 0:
        return {**head, "data": _shortest(values.reshape(-1))}
    shape = matrix_shape(values.shape)
    parts = to_parts(values.reshape(shape), layout=layout, fill=0.0)
    return {**head, **part_lists(parts, layout=layout, shape=shape, as_list=_shortest)}


def _shortest(values: NDArray[Any]) -> list[float]:
    """Find doubles whose shortest decimals give the same numbers again when read in the type of `values`."""
    short = np.array([float(str(value)) for value in values], np.float64)
    # A decimal read by way of a double is rounded twice, and so may, very rarely, differ.
    is_same = (short.astype(values.dtype) == values) | np.isnan(values)
    doubles: list[float] = np.where(is_same, short, values.astype(np.float64)).tolist()
    return doubles


def _float_array(name: str, record: Any, *, layout: Layout, budget: Budget) -> NDArray[Any]:
    where, reader = f"array {name!r}", ListReader(budget)
    dtype = _TYPES.get(plain_field(record, "type", str, where=where))
    shape = plain_field(record, "shape", tuple[int, ...], where=where)
    if dtype is None or min(shape, default=0) < 0:
        raise CheckpointError(f"{where} has an unknown type or a negative size; {_REMEDY}")
    size = math.prod(shape)
    if len(shape) < 2 or size == 0:
        data = reader.floats(plain_field(record, "data", list, where=where))
        if data.size != size:
            raise CheckpointError(f"{where} has {data.size} numbers, expected shape {shape}; {_REMEDY}")
        return data.astype(dtype).reshape(shape)
    values = {part: plain_field(record, part, list, where=where) for part in PARTS[layout]}
    flat = matrix_shape(shape)
    parts = read_parts(values, layout=layout, shape=flat, reader=reader, read_data=reader.floats)
    if layout != "dense":
        budget.take(size)
    return to_matrix(parts, layout=layout, shape=flat, fill=0.0).astype(dtype).reshape(shape)
