"""Measure the size of a quantised network in each file format and layout."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

from quantization.choices import Layout
from quantization.program.program import IntegerProgram
from quantization.storage.binary import program_bytes
from quantization.storage.text import program_text

_FLOAT_BYTES = 4
_NUMBERS = frozenset({"weight", "bias"})


@dataclass(frozen=True, kw_only=True)
class FormSize:
    """The size of a network in one form.

    Attributes:
        form: Name of the form, such as "npz csr".
        num_bytes: Size in bytes.
        times_smaller: Factor by which it is smaller than weights and biases in float32; below 1 it is larger.
    """

    form: str
    num_bytes: int
    times_smaller: float


def float_bytes(program: IntegerProgram) -> int:
    """Return the bytes of weights and biases in float32, without names or shapes; a weight used twice counts once."""
    arrays = [
        operation.arrays[name] for operation in program.operations for name in _NUMBERS & operation.arrays.keys()
    ]
    return _FLOAT_BYTES * sum({id(values): values.size for values in arrays}.values())


def form_sizes(program: IntegerProgram, *, with_yaml: bool = True) -> tuple[FormSize, ...]:
    """Measure every form of a program; YAML, which is slow for millions of weights, may be left out."""
    whole = float_bytes(program)
    sizes = {"float32": whole}
    sizes.update({f"npz {layout}": len(program_bytes(program, layout=layout)) for layout in get_args(Layout)})
    if with_yaml:
        sizes.update({f"yaml {name}": len(program_text(program, layout=name).encode()) for name in get_args(Layout)})
    return tuple(FormSize(form=form, num_bytes=size, times_smaller=whole / size) for form, size in sizes.items())


def as_table(sizes: Sequence[FormSize]) -> str:
    """Format sizes as a table in Markdown, one line for each form."""
    rows = [f"| {item.form} | {item.num_bytes} | {item.times_smaller:.1f} |" for item in sizes]
    return "\n".join(["| form | bytes | times smaller |", "|---|---|---|", *rows])
