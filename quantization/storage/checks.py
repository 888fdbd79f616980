"""Check that a program can run, before it is written and after it is read."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from quantization.program.program import LEAST_BITS, MOST_BITS, Affine, IntegerProgram, Operation
from quantization.program.shapes import result_shapes
from utils.errors import CheckpointError

_REMEDY = "the file is damaged or was edited, write it again"
_MOST_SETTING = 2**16
_ANY = 2**63
_MANY = 2**16


@dataclass(frozen=True, kw_only=True)
class _Rule:
    """Requirements for operations of one kind.

    Attributes:
        num_inputs: Least and most number of inputs.
        settings: Number of integers of each setting (0: any, at least one), and the least allowed value.
        arrays: Names of the arrays.
    """

    num_inputs: tuple[int, int] = (1, 1)
    settings: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    arrays: frozenset[str] = frozenset()


_WEIGHTED = frozenset({"weight", "weight_zero_point", "bias", "multiplier", "shift"})
_RESCALED = frozenset({"multiplier", "shift"})

_INT32 = 2**31 - 1
_RANGES: Mapping[str, tuple[int, int]] = {
    "bias": (-_INT32, _INT32),
    "multiplier": (0, _INT32),
    "factor": (0, _INT32),
    "shift": (1, 62),
}

# Operations that move or select values, so that their output has the same scale and zero point as their input.
_MOVERS = frozenset({"max_pool", "upsample", "slice", "flatten", "reshape", "permute"})

_RULES: Mapping[str, _Rule] = {
    "input": _Rule(num_inputs=(0, 0)),
    "conv": _Rule(
        settings={"stride": (2, 1), "padding": (2, 0), "dilation": (2, 1), "groups": (1, 1)}, arrays=_WEIGHTED
    ),
    "linear": _Rule(arrays=_WEIGHTED),
    "lookup": _Rule(arrays=frozenset({"table"})),
    "add": _Rule(num_inputs=(2, _MANY), arrays=frozenset({"factor", "shift"})),
    "concat": _Rule(num_inputs=(1, _MANY), settings={"axis": (1, 1)}, arrays=_RESCALED),
    "multiply": _Rule(num_inputs=(2, 2), arrays=_RESCALED),
    "max_pool": _Rule(settings={"kernel": (2, 1), "stride": (2, 1), "padding": (2, 0)}),
    "mean": _Rule(settings={"kernel": (2, 0), "stride": (2, 1)}, arrays=_RESCALED),
    "rescale": _Rule(arrays=_RESCALED),
    "upsample": _Rule(settings={"scale": (2, 1)}),
    "slice": _Rule(settings={"axis": (1, 1), "start": (1, -_ANY), "stop": (1, -_ANY), "step": (1, 1)}),
    "flatten": _Rule(settings={"start_axis": (1, 1)}),
    "reshape": _Rule(settings={"shape": (0, 1)}),
    "permute": _Rule(settings={"axes": (0, 0)}),
}


def check_program(program: IntegerProgram) -> None:
    """Check that a program can run and that its integers are in their ranges.

    Raises:
        CheckpointError: It cannot, or an integer is out of range; the message names the operation.
    """
    done: dict[str, Affine] = {}
    for operation in program.operations:
        if operation.name in done:
            raise CheckpointError(f"operation {operation.name!r} occurs twice; {_REMEDY}")
        if problem := _problem(operation, done):
            raise CheckpointError(f"operation {operation.name!r}: {problem}; {_REMEDY}")
        done[operation.name] = operation.output
    kinds = [operation.kind for operation in program.operations]
    if kinds.count("input") != 1 or kinds[0] != "input":
        raise CheckpointError(f"the first operation, and no other, is expected to be the input; {_REMEDY}")
    if not 0 <= program.size_step <= _MOST_SETTING:
        raise CheckpointError(f"size_step is {program.size_step}, expected 0 to {_MOST_SETTING}; {_REMEDY}")
    unknown = [name for name in program.outputs if name not in done]
    if unknown or not program.outputs:
        raise CheckpointError(f"outputs are {program.outputs}, expected names of operations; {_REMEDY}")
    result_shapes(program, program.image_shape)


def check_fingerprint(program: IntegerProgram, fingerprint: str | None) -> None:
    """Check that a program was made from the expected network.

    Raises:
        CheckpointError: The program was made from another network.
    """
    if fingerprint is not None and program.fingerprint != fingerprint:
        raise CheckpointError(
            f"it is of another network (fingerprint {program.fingerprint[:12]}, expected {fingerprint[:12]}); "
            "quantise the expected network, or give the file made from it"
        )


def _problem(operation: Operation, done: Mapping[str, Affine]) -> str | None:
    """Return what is wrong, in words that follow the name of the operation; None if nothing is."""
    rule = _RULES.get(operation.kind)
    if rule is None:
        return f"kind is {operation.kind!r}, known: {', '.join(_RULES)}"
    least, most = rule.num_inputs
    if not least <= len(operation.inputs) <= most:
        return f"it has {len(operation.inputs)} inputs, expected {least} or more, {most} at most"
    late = [name for name in operation.inputs if name not in done]
    if late:
        return f"it reads {late[0]!r}, which is no earlier operation"
    if operation.kind in _MOVERS and operation.output != done[operation.inputs[0]]:
        return f"its scale, zero point or range differs from that of {operation.inputs[0]!r}"
    return (
        _affine_problem(operation.output)
        or _settings_problem(operation, rule)
        or _arrays_problem(operation, rule)
        or (_weight_problem(operation) if "weight" in rule.arrays else None)
        or (_table_problem(operation, done[operation.inputs[0]]) if operation.kind == "lookup" else None)
    )


def _affine_problem(affine: Affine) -> str | None:
    if not (math.isfinite(affine.scale) and affine.scale > 0):
        return f"scale is {affine.scale}, expected a positive number"
    if not affine.low <= affine.zero_point <= affine.high or max(-affine.low, affine.high) >= 2**MOST_BITS:
        return f"zero point {affine.zero_point} and range {affine.low} to {affine.high} do not fit {MOST_BITS} bits"
    if affine.high - affine.low >= 2**MOST_BITS:
        return f"range {affine.low} to {affine.high} is wider than {MOST_BITS} bits"
    return None


def _settings_problem(operation: Operation, rule: _Rule) -> str | None:
    if set(operation.settings) != set(rule.settings):
        return f"settings are {sorted(operation.settings)}, expected {sorted(rule.settings)}"
    for name, (count, least) in rule.settings.items():
        value = operation.settings[name]
        is_single = isinstance(value, int)
        numbers = (value,) if isinstance(value, int) else value
        if is_single != (count == 1) or (count and len(numbers) != count) or not numbers:
            return f"{name} is {value}, expected {count or 'several'} numbers"
        # Sides of a shape may be as large as the result, whose size is bounded.
        most = _ANY if least < 0 or name == "shape" else _MOST_SETTING
        if not all(least <= number <= most for number in numbers):
            return f"{name} is {value}, which is out of range"
    return None


def _arrays_problem(operation: Operation, rule: _Rule) -> str | None:
    arrays = operation.arrays
    if set(arrays) != rule.arrays:
        return f"arrays are {sorted(arrays)}, expected {sorted(rule.arrays)}"
    count = {"conv": len(arrays.get("weight", ())), "linear": len(arrays.get("weight", ()))}.get(operation.kind, 1)
    several = len(operation.inputs)
    counts = {"factor": several, **({"multiplier": several, "shift": several} if operation.kind == "concat" else {})}
    for name, values in arrays.items():
        expected = counts.get(name, count)
        if name not in ("weight", "table") and values.shape != (expected,):
            return f"{name} has shape {values.shape}, expected ({expected},)"
        low, high = _RANGES.get(name, (-_ANY, _ANY))
        # Weights that other operations use as well may have the other sign here.
        low = -high if name == "multiplier" and "weight" in arrays else low
        if ((values < low) | (values > high)).any():
            return f"{name} has a number outside {low} to {high}"
    return None


def _weight_problem(operation: Operation) -> str | None:
    """Check the shape of weights, their range as signed or unsigned integers, and one scale per output channel."""
    weight = operation.arrays["weight"]
    bits = operation.weight_bits
    axes = 4 if operation.kind == "conv" else 2
    if weight.ndim != axes or weight.size == 0:
        return f"weight has shape {weight.shape}, expected {axes} axes"
    if not LEAST_BITS <= bits <= MOST_BITS:
        return f"weights have {bits} bits, expected {LEAST_BITS} to {MOST_BITS}"
    for name in ("weight", "weight_zero_point"):
        least, most = int(operation.arrays[name].min()), int(operation.arrays[name].max())
        low = 0 if least >= 0 and most >= 2 ** (bits - 1) else -(2 ** (bits - 1))
        if not low <= least <= most < low + 2**bits:
            return f"{name} ranges from {least} to {most}, which does not fit {bits} bits"
    scales = operation.weight_scales
    if scales.shape not in ((0,), (len(weight),)) or not np.isfinite(scales).all():
        return f"weight_scales has shape {scales.shape} or is not finite, expected ({len(weight)},)"
    return None


def _table_problem(operation: Operation, taken: Affine) -> str | None:
    table, output = operation.arrays["table"], operation.output
    expected = taken.high - taken.low + 1
    if table.shape != (expected,):
        return f"table has shape {table.shape}, expected ({expected},)"
    if table.min() < output.low or table.max() > output.high:
        return f"table ranges from {table.min()} to {table.max()}, outside {output.low} to {output.high}"
    return None
