"""What no sound program has is found, and the operation named."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from storage_programs import CONV, POOL, affine, ints, lenet5_program, program_of, random_program

from quantization.program.program import Affine, IntegerProgram, Operation
from quantization.program.shapes import result_shapes
from quantization.storage.checks import check_program
from utils.errors import CheckpointError


def conv(**changed: Any) -> Operation:
    """Two channels from one, 3 x 3."""
    plain = Operation(
        name="conv",
        kind="conv",
        inputs=("input",),
        output=affine(),
        settings=CONV,
        arrays={
            "weight": np.full((2, 1, 3, 3), 5),
            "weight_zero_point": ints(0, 0),
            "bias": ints(1, 2),
            "multiplier": ints(3, 4),
            "shift": ints(5, 6),
        },
        weight_scales=np.array([0.1, 0.2]),
        weight_bits=4,
    )
    return replace(plain, **changed)


def with_arrays(operation: Operation, **arrays: Any) -> Operation:
    return replace(operation, arrays={**operation.arrays, **arrays})


def after_conv(kind: str, inputs: tuple[str, ...] = ("conv",), **fields: Any) -> IntegerProgram:
    fields.setdefault("output", affine())
    return program_of(conv(), Operation(name="next", kind=kind, inputs=inputs, **fields), image_shape=(1, 6, 6))


RESCALED = {"multiplier": ints(1), "shift": ints(1)}


@settings(max_examples=20)
@given(seed=st.integers(0, 10**6))
def test_sound_programs_pass(seed: int) -> None:
    program = random_program(seed)
    check_program(program)
    assert {item.kind for item in program.operations} >= {"conv", "mean", "lookup", "permute", "concat"}


def test_shapes_of_lenet5_are_those_of_the_paper() -> None:
    shapes = result_shapes(lenet5_program(), (1, 28, 28))
    assert [shape[1:] for shape in shapes.values()] == [
        (1, 28, 28),
        (6, 28, 28),
        (6, 14, 14),
        (16, 10, 10),
        (16, 5, 5),
        (400,),
        (120,),
        (84,),
        (10,),
    ]


@pytest.mark.parametrize(
    ("operation", "words"),
    [
        (conv(kind="conv3d"), "kind is 'conv3d', known: input, conv"),
        (conv(inputs=("later",)), "reads 'later', which is no earlier operation"),
        (conv(inputs=("conv",)), "reads 'conv', which is no earlier"),
        (conv(inputs=("input", "input")), "has 2 inputs"),
        (conv(name="input"), "'input' occurs twice"),
        (
            Operation(name="more", kind="input", inputs=(), output=affine()),
            "and no other, is expected to be the input",
        ),
        (conv(output=affine(scale=0.0)), "scale is 0.0"),
        (conv(output=affine(scale=float("nan"))), "scale is nan"),
        (conv(output=affine(zero_point=256)), "zero point 256 and range 0 to 255"),
        (conv(output=affine(low=9, high=3, zero_point=5)), "zero point 5 and range 9 to 3"),
        (conv(output=affine(high=2**40)), "not fit 16 bits"),
        (conv(output=affine(low=-40000, high=40000)), "wider than 16 bits"),
        (conv(settings={**CONV, "colour": 3}), "settings are"),
        (conv(settings={}), "settings are"),
        (conv(settings={**CONV, "stride": (0, 1)}), "stride is .0, 1., which is out of range"),
        (conv(settings={**CONV, "stride": 1}), "stride is 1, expected 2 numbers"),
        (conv(settings={**CONV, "groups": (1, 1)}), "groups is .1, 1., expected 1 numbers"),
        (conv(settings={**CONV, "padding": (-1, 0)}), "padding is .-1, 0."),
        (conv(settings={**CONV, "padding": (60000, 60000)}), "values per image"),
        (conv(settings={**CONV, "groups": 2}), "weights for 1 x 2 channels in 2 groups and gets 1"),
        (conv(settings={**CONV, "dilation": (3, 3)}), "windows of .7, 7. on a map of .6, 6."),
        (conv(arrays={}), "arrays are"),
        (with_arrays(conv(), extra=ints(1)), "arrays are"),
        (with_arrays(conv(), bias=ints(1, 2, 3)), "bias has shape .3,., expected .2,."),
        (with_arrays(conv(), shift=ints(1, 63)), "shift has a number outside 1 to 62"),
        (with_arrays(conv(), shift=ints(0, 2)), "shift has a number outside 1 to 62"),
        (with_arrays(conv(), shift=ints(-1, 2)), "shift has a number outside"),
        (with_arrays(conv(), multiplier=ints(1, 2**31)), "multiplier has a number outside -2147483647 to 2147483647"),
        (with_arrays(conv(), bias=ints(-(2**31), 0)), "bias has a number outside"),
        (with_arrays(conv(), weight=np.full((2, 9), 1)), "weight has shape .2, 9., expected 4 axes"),
        (
            with_arrays(conv(), weight=np.full((2, 1, 3, 3), 16)),
            "weight ranges from 16 to 16, which does not fit 4 bits",
        ),
        (with_arrays(conv(), weight=np.full((2, 1, 3, 3), -9)), "weight ranges from -9 to -9"),
        (with_arrays(conv(), weight_zero_point=ints(0, 99)), "weight_zero_point ranges from 0 to 99"),
        (conv(weight_bits=1), "weights have 1 bits, expected 2 to 16"),
        (conv(weight_scales=np.ones(3)), "weight_scales has shape"),
        (conv(weight_scales=np.array([1.0, np.inf])), "not finite"),
    ],
)
def test_unsound_operation_is_found(operation: Operation, words: str) -> None:
    with pytest.raises(CheckpointError, match=words) as caught:
        check_program(program_of(operation, image_shape=(1, 6, 6)))
    assert "; " in str(caught.value)


@pytest.mark.parametrize(
    ("program", "words"),
    [
        (after_conv("lookup", arrays={"table": np.arange(255)}), "table has shape .255,., expected .256,."),
        (after_conv("lookup", arrays={"table": np.arange(1, 257)}), "table ranges from 1 to 256, outside 0 to 255"),
        (
            after_conv("max_pool", settings=POOL, output=affine(high=9)),
            "scale, zero point or range differs from that of 'conv'",
        ),
        (after_conv("max_pool", settings={**POOL, "kernel": (5, 5)}), "windows of .5, 5. on a map of .4, 4."),
        (after_conv("add", ("conv",), arrays={"factor": ints(1), "shift": ints(1)}), "has 1 inputs"),
        (after_conv("add", ("conv", "conv"), arrays={"factor": ints(1), "shift": ints(1)}), "factor has shape"),
        (after_conv("add", ("conv", "input"), arrays={"factor": ints(1, 1), "shift": ints(1)}), "of one shape"),
        (after_conv("multiply", ("conv", "input"), arrays=RESCALED), "cannot multiply"),
        (
            after_conv(
                "concat",
                ("conv", "input"),
                settings={"axis": 1},
                arrays={"multiplier": ints(1, 1), "shift": ints(1, 1)},
            ),
            "cannot join",
        ),
        (after_conv("slice", settings={"axis": 1, "start": 2, "stop": 9, "step": 1}), "takes nothing"),
        (after_conv("slice", settings={"axis": 4, "start": 0, "stop": 9, "step": 1}), "has axis 4"),
        (after_conv("permute", settings={"axes": (1, 0, 2, 3)}), "which must keep the batch first"),
        (after_conv("permute", settings={"axes": (0, 1, 2, 2)}), "cannot permute"),
        (after_conv("upsample", settings={"scale": (60000, 60000)}), "values per image"),
        (after_conv("mean", settings={"kernel": (0, 2), "stride": (1, 1)}, arrays=RESCALED), "windows of .0, 2."),
    ],
)
def test_unsound_program_is_found(program: IntegerProgram, words: str) -> None:
    with pytest.raises(CheckpointError, match=words):
        check_program(program)


@pytest.mark.parametrize(("source", "width"), [("input", 5), ("input", 6), ("flat", 36)])
def test_linear_layer_on_other_than_one_list_of_its_width_is_found(source: str, width: int) -> None:
    """Also one that fits the last of three or four axes."""
    flat = Operation(name="flat", kind="flatten", inputs=("input",), output=affine(), settings={"start_axis": 2})
    arrays = {name: ints(1, 2) for name in ("weight_zero_point", "bias", "multiplier", "shift")}
    linear = Operation(
        name="fc",
        kind="linear",
        inputs=(source,),
        output=affine(),
        arrays={**arrays, "weight": np.full((2, width), 1)},
        weight_bits=8,
    )
    with pytest.raises(CheckpointError, match=f"operation 'fc' takes {width} values and gets .1, "):
        check_program(program_of(flat, linear, image_shape=(1, 6, 6)))


def test_program_without_outputs_is_found() -> None:
    program = program_of(conv(), image_shape=(1, 6, 6))
    with pytest.raises(CheckpointError, match="outputs are"):
        check_program(replace(program, outputs=()))


def test_program_without_operations_is_found() -> None:
    with pytest.raises(CheckpointError, match="expected to be the input"):
        check_program(IntegerProgram(operations=(), outputs=("a",), fingerprint="", image_shape=(1, 2, 2)))


def test_zero_point_at_the_end_of_the_range_passes() -> None:
    edge = Affine(scale=1.0, zero_point=-32768, low=-32768, high=32767)
    program = program_of(conv(output=edge), image_shape=(1, 6, 6))
    check_program(program)
    assert result_shapes(program, (1, 6, 6))["conv"] == (1, 2, 4, 4)
