"""Quantised networks made up for tests of storage: a LeNet5, and random ones of every kind of operation."""

from __future__ import annotations

import numpy as np

from quantization.program.program import Affine, IntArray, IntegerProgram, Operation, Setting
from quantization.program.shapes import result_shapes

FINGERPRINT = "0123456789abcdef" * 4
CONV: dict[str, Setting] = {"stride": (1, 1), "padding": (0, 0), "dilation": (1, 1), "groups": 1}
POOL: dict[str, Setting] = {"kernel": (2, 2), "stride": (2, 2), "padding": (0, 0)}


def ints(*values: int) -> IntArray:
    return np.array(values, np.int64)


def affine(*, zero_point: int = 0, low: int = 0, high: int = 255, scale: float = 0.05) -> Affine:
    return Affine(scale=scale, zero_point=zero_point, low=low, high=high)


def program_of(
    *operations: Operation, image_shape: tuple[int, int, int], source: Affine | None = None
) -> IntegerProgram:
    """An input named "input", these operations, and the result of the last."""
    first = Operation(name="input", kind="input", inputs=(), output=source or affine())
    return IntegerProgram(
        operations=(first, *operations),
        outputs=(operations[-1].name if operations else "input",),
        fingerprint=FINGERPRINT,
        image_shape=image_shape,
    )


def weighted(
    name: str,
    source: str,
    weight: IntArray,
    *,
    output: Affine,
    settings: dict[str, Setting] | None = None,
    bits: int = 8,
    rng: np.random.Generator,
) -> Operation:
    """A convolution (four axes) or linear layer with random biases, multipliers and scales."""
    num_out = len(weight)
    unsigned = weight.min() >= 0
    return Operation(
        name=name,
        kind="conv" if weight.ndim == 4 else "linear",
        inputs=(source,),
        output=output,
        settings={**CONV, **(settings or {})} if weight.ndim == 4 else {},
        arrays={
            "weight": weight,
            "weight_zero_point": rng.integers(0, 2 ** (bits - 1) if unsigned else 1, num_out),
            "bias": rng.integers(-500, 500, num_out),
            "multiplier": rng.integers(2**30, 2**31, num_out),
            "shift": rng.integers(36, 43, num_out),
        },
        weight_scales=rng.uniform(0.001, 0.1, num_out),
        weight_bits=bits,
    )


def sparse_weight(rng: np.random.Generator, shape: tuple[int, ...], *, bits: int = 8, zeros: float = 0.9) -> IntArray:
    """Weights as training gives them, the smallest of the layer set to zero, the rest scaled channel by channel."""
    weight = rng.normal(size=shape)
    weight[np.abs(weight) < np.quantile(np.abs(weight), zeros)] = 0
    flat = weight.reshape(len(weight), -1)
    largest = np.maximum(np.abs(flat).max(1, keepdims=True), 1e-9)
    return np.rint(flat / largest * (2 ** (bits - 1) - 1)).astype(np.int64).reshape(shape)


def lenet5_program(*, seed: int = 0, bits: int = 8, zeros: float = 0.9) -> IntegerProgram:
    """LeNet5 for 28 x 28, as a trained one would be stored."""
    rng, output = np.random.default_rng(seed), affine(scale=0.031)

    def layer(name: str, source: str, shape: tuple[int, ...], **settings: Setting) -> Operation:
        weight = sparse_weight(rng, shape, bits=bits, zeros=zeros)
        return weighted(name, source, weight, output=output, settings=settings, bits=bits, rng=rng)

    def pool(name: str, source: str) -> Operation:
        return Operation(name=name, kind="max_pool", inputs=(source,), output=output, settings=POOL)

    flat = Operation(name="flat", kind="flatten", inputs=("pool2",), output=output, settings={"start_axis": 1})
    return program_of(
        layer("conv1", "input", (6, 1, 5, 5), padding=(2, 2)),
        pool("pool1", "conv1"),
        layer("conv2", "pool1", (16, 6, 5, 5)),
        pool("pool2", "conv2"),
        flat,
        layer("fc1", "flat", (120, 400)),
        layer("fc2", "fc1", (84, 120)),
        layer("fc3", "fc2", (10, 84)),
        image_shape=(1, 28, 28),
    )


def random_program(seed: int) -> IntegerProgram:
    """Every kind of operation once, with random numbers, channels, bits and zero points."""
    rng = np.random.default_rng(seed)
    made = _Made(rng)
    channels = int(rng.integers(1, 4))
    made.start((channels, int(rng.integers(8, 12)), int(rng.integers(8, 12))))
    wide = 2 * int(rng.integers(1, 4))
    made.conv((wide, channels, 3, 3), stride=(1, int(rng.integers(1, 3))), padding=(1, 2))
    made.conv((wide, 1, 3, 3), padding=(2, 2), dilation=(2, 2), groups=wide)
    made.conv((wide, wide // 2, 1, 1), groups=2)
    before = made.last
    made.lookup()
    made.scaled("multiply", (before, made.last))
    made.add((before, made.last))
    made.mover("max_pool", kernel=(3, 3), stride=(1, 1), padding=(1, 1))
    made.concat((made.last, before))
    made.scaled("mean", (made.last,), kernel=(2, 2), stride=(2, 2))
    made.mover("upsample", scale=(1, 2))
    made.mover("slice", axis=2, start=0, stop=2**40, step=2)
    made.mover("permute", axes=(0, 1, 3, 2))
    made.scaled("rescale", (made.last,))
    made.keep()
    _, depth, height, width = result_shapes(made.program(), made.image_shape)[made.last]
    made.mover("reshape", shape=(1, depth, height, width))
    made.mover("permute", axes=(0, 2, 1, 4, 3))
    made.mover("reshape", shape=(depth, width, height))
    made.scaled("mean", (made.last,), kernel=(0, 0), stride=(1, 1))
    made.mover("flatten", start_axis=1)
    made.linear(int(rng.integers(2, 6)))
    made.keep()
    return made.program()


class _Made:
    """Operations so far."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        self.bits = int(rng.integers(2, 11))
        self.operations: list[Operation] = []
        self.outputs: list[str] = []

    def start(self, image_shape: tuple[int, int, int]) -> None:
        self.image_shape = image_shape
        self.operations.append(Operation(name="input", kind="input", inputs=(), output=self.some_affine()))

    @property
    def last(self) -> str:
        return self.operations[-1].name

    def program(self) -> IntegerProgram:
        return IntegerProgram(
            operations=tuple(self.operations),
            outputs=tuple(self.outputs) or (self.last,),
            fingerprint=FINGERPRINT,
            image_shape=self.image_shape,
        )

    def keep(self) -> None:
        self.outputs.append(self.last)

    def some_affine(self) -> Affine:
        bits = int(self.rng.integers(2, 11))
        low = -(2 ** (bits - 1)) if self.rng.random() < 0.5 else 0
        high = low + 2**bits - 1
        scale = float(self.rng.uniform(0.001, 1))
        return Affine(scale=scale, zero_point=int(self.rng.integers(low, high + 1)), low=low, high=high)

    def weight(self, shape: tuple[int, ...]) -> IntArray:
        low = -(2 ** (self.bits - 1)) if self.rng.random() < 0.5 else 0
        weight = self.rng.integers(low, low + 2**self.bits, shape)
        return np.where(self.rng.random(shape) < 0.6, 0, weight)

    def conv(self, shape: tuple[int, ...], **settings: Setting) -> None:
        self.weighted(self.weight(shape), settings)

    def linear(self, num_out: int) -> None:
        num_in = result_shapes(self.program(), self.image_shape)[self.last][-1]
        self.weighted(self.weight((num_out, num_in)), None)

    def weighted(self, weight: IntArray, settings: dict[str, Setting] | None) -> None:
        name = f"layer.{len(self.operations)}"
        output = self.some_affine()
        made = weighted(name, self.last, weight, output=output, settings=settings, bits=self.bits, rng=self.rng)
        self.operations.append(made)

    def append(
        self, kind: str, inputs: tuple[str, ...], output: Affine, **rest: dict[str, Setting | IntArray]
    ) -> None:
        self.operations.append(
            Operation(name=f"{kind}.{len(self.operations)}", kind=kind, inputs=inputs, output=output, **rest)  # type: ignore[arg-type]
        )

    def mover(self, kind: str, **settings: Setting) -> None:
        self.append(kind, (self.last,), self.operations[-1].output, settings=settings)

    def lookup(self) -> None:
        taken, output = self.operations[-1].output, self.some_affine()
        table = self.rng.integers(output.low, output.high + 1, taken.high - taken.low + 1)
        self.append("lookup", (self.last,), output, arrays={"table": table})

    def scaled(self, kind: str, inputs: tuple[str, ...], **settings: Setting) -> None:
        arrays = {"multiplier": self.rng.integers(2**28, 2**31, 1), "shift": self.rng.integers(30, 36, 1)}
        self.append(kind, inputs, self.some_affine(), settings=settings, arrays=arrays)

    def add(self, inputs: tuple[str, ...]) -> None:
        arrays = {"factor": self.rng.integers(2**18, 2**22, len(inputs)), "shift": self.rng.integers(18, 24, 1)}
        self.append("add", inputs, self.some_affine(), arrays=arrays)

    def concat(self, inputs: tuple[str, ...]) -> None:
        arrays = {
            "multiplier": self.rng.integers(2**28, 2**31, len(inputs)),
            "shift": self.rng.integers(30, 34, len(inputs)),
        }
        self.append("concat", inputs, self.some_affine(), settings={"axis": 1}, arrays=arrays)


def random_images(program: IntegerProgram, *, seed: int = 0, count: int = 2) -> IntArray:
    """Integers in the whole range of the input."""
    taken = program.operations[0].output
    return np.random.default_rng(seed).integers(taken.low, taken.high + 1, (count, *program.image_shape))


def assert_same_program(found: IntegerProgram, expected: IntegerProgram) -> None:
    """Every field, every bit."""
    assert (found.outputs, found.fingerprint, found.image_shape) == (
        expected.outputs,
        expected.fingerprint,
        expected.image_shape,
    )
    assert len(found.operations) == len(expected.operations)
    for one, other in zip(found.operations, expected.operations, strict=True):
        fields = ("name", "kind", "inputs", "output", "settings", "weight_bits")
        assert [getattr(one, name) for name in fields] == [getattr(other, name) for name in fields]
        assert one.weight_scales.tobytes() == other.weight_scales.tobytes()
        assert one.arrays.keys() == other.arrays.keys()
        for name, values in other.arrays.items():
            assert one.arrays[name].dtype == np.int64
            np.testing.assert_array_equal(one.arrays[name], values, strict=True)
