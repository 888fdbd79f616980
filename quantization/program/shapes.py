"""Compute the shape of every result of a program without running it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from quantization.program.program import IntegerProgram, Operation
from utils.errors import CheckpointError, DataError

Shape = tuple[int, ...]

# Most values of one result, borders included: 4 GiB as 64-bit integers for one image.
_MOST_NUMBERS = 2**29


class _Misfit(Exception):
    """A misfit of shapes; the message continues the name of the operation."""


def pair(operation: Operation, name: str) -> tuple[int, int]:
    """Return a setting of two integers."""
    value = operation.settings[name]
    assert isinstance(value, tuple)
    return value[0], value[1]


def number(operation: Operation, name: str) -> int:
    """Return a setting of one integer."""
    value = operation.settings[name]
    assert isinstance(value, int)
    return value


def result_shapes(program: IntegerProgram, image_shape: tuple[int, int, int]) -> dict[str, Shape]:
    """Compute the shape of each operation's result for one image, such as (1, C, H, W), by name.

    Args:
        program: Program whose operations have the settings and arrays of their kind.
        image_shape: Shape (C, H, W) of the image; H and W may differ from the calibration images.

    Raises:
        CheckpointError: A result does not fit an operation that reads it.
    """
    if misfit := _size_misfit(image_shape, made_for=program.image_shape, step=program.size_step):
        raise CheckpointError(f"images of shape {image_shape}: {misfit}")
    try:
        return _shapes_of_all(program, image_shape)
    except _Misfit as misfit:
        raise CheckpointError(
            f"{misfit}; the file is damaged, or the network does not accept images of this size"
        ) from None


def _shapes_of_all(program: IntegerProgram, image_shape: Shape) -> dict[str, Shape]:
    shapes: dict[str, Shape] = {}
    for operation in program.operations:
        try:
            if operation.kind == "input":
                shape = _image(program.image_shape, image_shape)
            else:
                _check_own_size(operation, program.image_shape, image_shape)
                shape = _SHAPES[operation.kind](operation, [shapes[name] for name in operation.inputs])
            _check_size(shape)
        except _Misfit as misfit:
            raise _Misfit(f"operation {operation.name!r} {misfit}") from None
        shapes[operation.name] = shape
    return shapes


def check_size(image_shape: Shape, *, made_for: Shape, step: int) -> None:
    """Check that a network holds for images of a size.

    Args:
        image_shape: Shape (C, H, W) of the images.
        made_for: Shape (C, H, W) of the images that it was made for.
        step: By multiples of how many pixels others may be higher and wider; 0 if they have the same size.

    Raises:
        DataError: It does not.
    """
    if misfit := _size_misfit(image_shape, made_for=made_for, step=step):
        raise DataError(f"images of shape {image_shape}: {misfit}")


def _size_misfit(image_shape: Shape, *, made_for: Shape, step: int) -> str:
    """Return why a network does not hold for images of a size; "" if it does."""
    differences = [found - side for found, side in zip(image_shape[1:], made_for[1:], strict=True)]
    if not any(differences) or (step and not any(difference % step for difference in differences)):
        return ""
    sizes = f"{made_for[1]}x{made_for[2]}"
    others = f"and sizes that differ from it by multiples of {step}" if step else "alone"
    return f"the network holds for {sizes} {others}; resize the images, or quantise it for their size"


def _image(expected: Shape, found: Shape) -> Shape:
    if found[0] != expected[0] or min(found) < 1:
        raise _Misfit(f"got images of {found}, channels first, expected {expected}")
    return (1, *found)


def _check_own_size(operation: Operation, calibrated: Shape, image: Shape) -> None:
    """Check that an operation that depends on the size of its map gets images of the calibrated size."""
    is_whole_mean = operation.kind == "mean" and pair(operation, "kernel") == (0, 0)
    if image != calibrated and (is_whole_mean or operation.kind == "reshape"):
        what = "averages over a whole map" if is_whole_mean else "returns a fixed shape"
        raise _Misfit(f"{what}, which is correct for images of {calibrated} and not of {image}")


def check_image_shape(program: IntegerProgram, shape: Sequence[int]) -> None:
    """Check that a program accepts a batch of this shape.

    Args:
        program: Valid program.
        shape: Shape (B, C, H, W) of the images.

    Raises:
        DataError: There are no images, or the network does not accept their shape.
    """
    if len(shape) != 4 or shape[0] == 0:
        raise DataError(f"images have shape {tuple(shape)}, expected (B, C, H, W) with at least one image")
    check_size(tuple(shape[1:]), made_for=program.image_shape, step=program.size_step)
    try:
        _shapes_of_all(program, tuple(shape[1:]))
    except _Misfit as misfit:
        raise DataError(
            f"images of shape {tuple(shape[1:])}: {misfit}; the network was made for {program.image_shape}"
        ) from None


def _conv(operation: Operation, shapes: Sequence[Shape]) -> Shape:
    _, channels, height, width = _maps(shapes[0])
    num_out, num_in, *kernel = operation.arrays["weight"].shape
    groups = number(operation, "groups")
    if num_in * groups != channels or num_out % groups:
        raise _Misfit(f"has weights for {num_in} x {groups} channels in {groups} groups and gets {channels}")
    dilation = pair(operation, "dilation")
    spans = tuple(step * (size - 1) + 1 for size, step in zip(kernel, dilation, strict=True))
    rows, columns = _windows(operation, (channels, height, width), spans, pair(operation, "padding"))
    return (1, num_out, rows, columns)


def _max_pool(operation: Operation, shapes: Sequence[Shape]) -> Shape:
    one, channels, height, width = _maps(shapes[0])
    padding, kernel = pair(operation, "padding"), pair(operation, "kernel")
    return (one, channels, *_windows(operation, (channels, height, width), kernel, padding))


def _mean(operation: Operation, shapes: Sequence[Shape]) -> Shape:
    one, channels, height, width = _maps(shapes[0])
    kernel = pair(operation, "kernel")
    if kernel == (0, 0):  # the whole map
        return (one, channels, 1, 1)
    return (one, channels, *_windows(operation, (channels, height, width), kernel, (0, 0)))


def _windows(operation: Operation, shape: Shape, kernel: Shape, padding: Shape) -> tuple[int, int]:
    """Count the windows of this extent on the padded map, by height and width."""
    padded = [size + 2 * extra for size, extra in zip(shape[1:], padding, strict=True)]
    _check_size((shape[0], *padded))
    stride = pair(operation, "stride")
    counts = [(size - span) // step + 1 for size, span, step in zip(padded, kernel, stride, strict=True)]
    if min(counts) < 1 or min(kernel) < 1:
        raise _Misfit(f"has windows of {tuple(kernel)} on a map of {tuple(padded)}")
    return counts[0], counts[1]


def _linear(operation: Operation, shapes: Sequence[Shape]) -> Shape:
    num_out, num_in = operation.arrays["weight"].shape
    if shapes[0] != (1, num_in):
        raise _Misfit(f"takes {num_in} values and gets {shapes[0]}")
    return (1, num_out)


def _same(operation: Operation, shapes: Sequence[Shape]) -> Shape:
    if len(set(shapes)) > 1:
        raise _Misfit(f"takes results of one shape and gets {', '.join(map(str, shapes))}")
    return shapes[0]


def _broadcast(operation: Operation, shapes: Sequence[Shape]) -> Shape:
    if len(shapes[0]) != len(shapes[1]) or any(a != b and 1 not in (a, b) for a, b in zip(*shapes, strict=True)):
        raise _Misfit(f"cannot multiply {shapes[0]} and {shapes[1]}")
    return tuple(max(sizes) for sizes in zip(*shapes, strict=True))


def _concat(operation: Operation, shapes: Sequence[Shape]) -> Shape:
    axis = _axis(operation, "axis", shapes[0])
    others = {(*shape[:axis], *shape[axis + 1 :]) for shape in shapes}
    if len(others) > 1 or len({len(shape) for shape in shapes}) > 1:
        raise _Misfit(f"cannot join {', '.join(map(str, shapes))} along axis {axis}")
    return (*shapes[0][:axis], sum(shape[axis] for shape in shapes), *shapes[0][axis + 1 :])


def _upsample(operation: Operation, shapes: Sequence[Shape]) -> Shape:
    one, channels, height, width = _maps(shapes[0])
    rows, columns = pair(operation, "scale")
    return (one, channels, height * rows, width * columns)


def _slice(operation: Operation, shapes: Sequence[Shape]) -> Shape:
    axis = _axis(operation, "axis", shapes[0])
    size = len(range(shapes[0][axis])[numbers_taken(operation)])
    if size == 0:
        raise _Misfit(f"takes nothing of {shapes[0]}")
    return (*shapes[0][:axis], size, *shapes[0][axis + 1 :])


def numbers_taken(operation: Operation) -> slice:
    """Return the slice that an operation takes along its axis."""
    return slice(number(operation, "start"), number(operation, "stop"), number(operation, "step"))


def _flatten(operation: Operation, shapes: Sequence[Shape]) -> Shape:
    start = _axis(operation, "start_axis", shapes[0])
    return (*shapes[0][:start], math.prod(shapes[0][start:]))


def _reshape(operation: Operation, shapes: Sequence[Shape]) -> Shape:
    shape = operation.settings["shape"]
    assert isinstance(shape, tuple)
    if math.prod(shape) != math.prod(shapes[0]):
        raise _Misfit(f"cannot make {shapes[0]} into {(1, *shape)}")
    return (1, *shape)


def _permute(operation: Operation, shapes: Sequence[Shape]) -> Shape:
    axes = operation.settings["axes"]
    assert isinstance(axes, tuple)
    if sorted(axes) != list(range(len(shapes[0]))) or axes[0] != 0:
        raise _Misfit(f"cannot permute {shapes[0]} by axes {axes}, which must keep the batch first")
    return tuple(shapes[0][axis] for axis in axes)


def _axis(operation: Operation, name: str, shape: Shape) -> int:
    axis = number(operation, name)
    if axis >= len(shape):
        raise _Misfit(f"has {name} {axis} and gets {shape}")
    return axis


def _maps(shape: Shape) -> Shape:
    if len(shape) != 4:
        raise _Misfit(f"takes maps (1, C, H, W) and gets {shape}")
    return shape


def _check_size(shape: Shape) -> None:
    if math.prod(shape) > _MOST_NUMBERS:
        raise _Misfit(f"makes {shape}, more than {_MOST_NUMBERS} values per image")


_SHAPES: Mapping[str, Callable[[Operation, Sequence[Shape]], Shape]] = {
    "conv": _conv,
    "linear": _linear,
    "lookup": _same,
    "add": _same,
    "concat": _concat,
    "multiply": _broadcast,
    "max_pool": _max_pool,
    "mean": _mean,
    "rescale": _same,
    "upsample": _upsample,
    "slice": _slice,
    "flatten": _flatten,
    "reshape": _reshape,
    "permute": _permute,
}
