"""Write and read YAML with lists of numbers on one line, using the fast loader within safe limits."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from quantization.choices import Layout
from quantization.program.program import FloatArray, IntArray
from quantization.storage.budget import Budget
from quantization.storage.sparse import Parts
from utils.errors import CheckpointError

_REMEDY = "the file is damaged or was edited, write it again"
# The largest width that the C emitter accepts.
_NO_WRAP = 2**31 - 1
# Most levels of nesting; the rows of an operation's array are at level 7.
_MOST_DEPTH = 10
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Dumper(getattr(yaml, "CSafeDumper", yaml.SafeDumper)):  # type: ignore[misc]
    """Dumper without anchors for lists that are the same object, so that readers need not support them."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def dumped(record: dict[str, Any]) -> str:
    """Format plain data as YAML, with keys in the given order and no line breaks within a list."""
    # None: lists and mappings of plain values on one line, everything else nested.
    text: str = yaml.dump(
        record, Dumper=_Dumper, default_flow_style=None, sort_keys=False, allow_unicode=True, width=_NO_WRAP
    )
    return text


def read_lists(path: str | Path) -> tuple[Any, int]:
    """Read a YAML file; return its content and its size in characters.

    Raises:
        CheckpointError: The file is missing, not YAML, nested too deeply, or refers to its own parts.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
        _check_depth(text)
        return yaml.load(text, _LOADER), len(text)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}; check the path") from None
    except (ValueError, yaml.YAMLError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{path} is not YAML ({reason}); copy or write it again, or give another") from None


def _check_depth(text: str) -> None:
    """Check the nesting of a text before the C loader reads it, which has no limit and crashes on very deep lists.

    References to other parts of a file are refused as well: they could take any amount of memory, and are never
    written.
    """
    depth = 0
    for event in yaml.parse(text, Loader=_LOADER):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _MOST_DEPTH:
            raise ValueError(f"more than {_MOST_DEPTH} levels deep")
        if isinstance(event, yaml.AliasEvent):
            raise ValueError(f"has a reference to another part, *{event.anchor}")


def part_lists(parts: Parts, *, layout: Layout, shape: tuple[int, int], as_list: Any) -> dict[str, Any]:
    """Convert parts of a matrix to lists, `data` with `as_list`; a dense matrix becomes a list of rows."""
    if layout == "dense":
        return {"data": [as_list(row) for row in parts["data"].reshape(shape)]}
    return {name: as_list(values) if name == "data" else values.tolist() for name, values in parts.items()}


def read_parts(
    values: Mapping[str, Any],
    *,
    layout: Layout,
    shape: tuple[int, int],
    reader: ListReader,
    read_data: Callable[[Any], NDArray[Any]],
) -> Parts:
    """Undo `part_lists`.

    Raises:
        CheckpointError: The lists contain something other than numbers, or a dense matrix has another shape.
    """
    if layout == "dense":
        return {"data": _joined(values["data"], shape, read_data)}
    return {name: read_data(value) if name == "data" else reader.integers(value) for name, value in values.items()}


def _joined(rows: Any, shape: tuple[int, int], read: Callable[[Any], NDArray[Any]]) -> NDArray[Any]:
    """Read all numbers of a dense matrix, row by row."""
    is_list = isinstance(rows, list) and all(isinstance(row, list) for row in rows)
    if not is_list or len(rows) != shape[0] or {len(row) for row in rows} != {shape[1]}:
        raise CheckpointError(f"a dense matrix is not a list of {shape[0]} rows of {shape[1]} numbers; {_REMEDY}")
    return np.concatenate([read(row) for row in rows])


def _numbers(value: Any, *, kinds: tuple[type, ...], dtype: Any, budget: Budget) -> NDArray[Any]:
    """Convert a list of numbers to an array (N,); values of other types are refused, not converted."""
    if not isinstance(value, list) or not all(type(number) in kinds for number in value):
        names = " or ".join(kind.__name__ for kind in kinds)
        raise CheckpointError(f"numbers are not a list of {names}; {_REMEDY}")
    budget.take(len(value))
    try:
        return np.array(value, dtype)
    except OverflowError:
        raise CheckpointError(f"a number has more than 64 bits; {_REMEDY}") from None


class ListReader:
    """Reads numbers from lists.

    Args:
        budget: Budget of the numbers that the file may contain.
    """

    def __init__(self, budget: Budget) -> None:
        self.budget = budget

    def integers(self, value: Any) -> IntArray:
        return _numbers(value, kinds=(int,), dtype=np.int64, budget=self.budget)

    def floats(self, value: Any) -> FloatArray:
        return _numbers(value, kinds=(int, float), dtype=np.float64, budget=self.budget)

    def parts(self, values: Mapping[str, Any], *, layout: Layout, shape: tuple[int, int]) -> Parts:
        return read_parts(values, layout=layout, shape=shape, reader=self, read_data=self.integers)
