"""A quantised network as data: integer arrays, and the operations on them.

Everything that runs or stores a quantised network shares this module: the torch executor, the numpy reader, the
files. It imports only numpy, so that a platform without torch can use it.

With x the integers of an operation's inputs, Z their zero points and `rescale` below, the arithmetic is exactly:

    rescale(a; M, k)   = (a * M + 2^(k-1)) >> k                      int64, arithmetic shift, k from 1: half up
    clamp(y)           = min(max(y, low), high)                      of the output's Affine
    conv, linear       : y = clamp(Z_out + rescale(sum (x - Z) * (w - Z_w) + bias; M, k)), M and k per output channel;
                         borders are padded with Z, so they add nothing; M may be negative, the other M are not
    lookup             : y = table[x - low]                          any function of one tensor
    add                : y = clamp(Z_out + rescale(sum over inputs of (x - Z) * factor; 1, k))
    concat             : y = clamp(Z_out + rescale(x - Z; M, k)), M and k per input
    multiply           : y = clamp(Z_out + rescale((x - Z) * (x' - Z'); M, k)), broadcast over (B, C, 1, 1)
    max_pool           : y = max over the window, borders padded with low
    mean               : y = clamp(Z_out + rescale(sum over the window of (x - Z); M, k)), M includes 1 / area
    rescale            : y = clamp(Z_out + rescale(x - Z; M, k))     the same values on another scale
    upsample, slice, flatten, reshape, permute : move values; the output has the Affine of the input

Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference", CVPR
2018 (arXiv 1712.05877).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]

LEAST_BITS, MOST_BITS = 2, 16

Kind = Literal[
    "input",
    "conv",
    "linear",
    "lookup",
    "add",
    "concat",
    "multiply",
    "max_pool",
    "mean",
    "rescale",
    "upsample",
    "slice",
    "flatten",
    "reshape",
    "permute",
]

# An integer or a short list of them that configures an operation, such as stride, padding, groups or axis.
Setting = int | tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Affine:
    """The mapping from integers to real values: real = scale * (integer - zero_point).

    Attributes:
        scale: Step between integers, positive.
        zero_point: Integer that represents 0.0, in [low, high].
        low, high: Smallest and largest integer allowed.
    """

    scale: float
    zero_point: int
    low: int
    high: int


@dataclass(frozen=True, kw_only=True, eq=False)
class Operation:
    """One step of a program.

    Attributes:
        name: Unique name; the path of the module it comes from, if there is one.
        kind: Kind of arithmetic, see the head of this file.
        inputs: Names of the operations whose results it reads.
        output: Scale, zero point and limits of the result.
        settings: Settings by kind. conv: stride, padding, dilation (two integers each), groups. max_pool: kernel,
            stride, padding (two each). mean: kernel, stride (two each); a kernel of (0, 0) is the whole map, whose
            size follows from `IntegerProgram.image_shape`. concat, slice: axis; slice also start, stop, step.
            upsample: scale (two). flatten: start_axis. reshape: shape, without the batch. permute: axes.
        arrays: Integer arrays by kind. conv, linear: weight (O, I / groups, KH, KW) or (O, I), weight_zero_point
            (O,), bias (O,), multiplier (O,), shift (O,); operations that use one layer have the same weight. lookup:
            table. add: factor (inputs,), shift (1,). concat: multiplier, shift (inputs,). multiply, mean, rescale:
            multiplier, shift (1,).
        weight_scales: Scale of the weights of conv and linear (O,); empty otherwise. Not used in integer inference;
            stored so that a file shows what its integers mean.
        weight_bits: Number of bits of the weights; 0 if there are none.
    """

    name: str
    kind: Kind
    inputs: tuple[str, ...]
    output: Affine
    settings: Mapping[str, Setting] = field(default_factory=dict)
    arrays: Mapping[str, IntArray] = field(default_factory=dict)
    weight_scales: FloatArray = field(default_factory=lambda: np.empty(0))
    weight_bits: int = 0


@dataclass(frozen=True, kw_only=True, eq=False)
class IntegerProgram:
    """A whole network: operations in an order in which they can run.

    Attributes:
        operations: Operations, the first of kind "input"; each reads the results of earlier ones.
        outputs: Names of the operations whose results the network returns, in order.
        fingerprint: Fingerprint of the original network (SHA-256 over names and shapes of its weights).
        image_shape: Shape (C, H, W) of the calibration images.
        size_step: Other images may be higher and wider, or less so, by multiples of this; 0: all have the same size.
    """

    operations: tuple[Operation, ...]
    outputs: tuple[str, ...]
    fingerprint: str
    image_shape: tuple[int, int, int]
    size_step: int = 1
