"""A quantised network as data: integers, and the operations between them.

Everything that runs or stores a quantised network shares this: the torch executor, the numpy reader, the files. It
imports numpy alone, so that a platform without torch can use it.

With x the integers of an operation's inputs, Z their zero points and `rescale` below, the arithmetic is exactly:

    rescale(a; M, k)   = (a * M + 2^(k-1)) >> k                      int64, arithmetic shift, k from 1: half up
    clamp(y)           = min(max(y, low), high)                      of the output's Affine
    conv, linear       : y = clamp(Z_out + rescale(sum (x - Z) * (w - Z_w) + bias; M, k)), M and k per output channel;
                         borders are padded with Z, so they add nothing
    lookup             : y = table[x - low]                          any function of one tensor
    add                : y = clamp(Z_out + rescale(sum over inputs of (x - Z) * factor; 1, k))
    concat             : y = clamp(Z_out + rescale(x - Z; M, k)), M and k per input
    multiply           : y = clamp(Z_out + rescale((x - Z) * (x' - Z'); M, k)), broadcast over (B, C, 1, 1)
    max_pool           : y = max over the window, borders padded with low
    mean               : y = clamp(Z_out + rescale(sum over the window of (x - Z); M, k)), M holds 1 / area
    rescale            : y = clamp(Z_out + rescale(x - Z; M, k))     the same numbers on another scale
    upsample, slice, flatten, reshape, permute : move numbers; the Affine stays

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

# Numbers, or short lists of them, that say how an operation works: stride, padding, groups, axis and the like.
Setting = int | tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Affine:
    """How integers stand for real numbers: real = scale * (integer - zero_point).

    Attributes:
        scale: Positive.
        zero_point: The integer of 0.0, in [low, high].
        low, high: The smallest and largest integer allowed.
    """

    scale: float
    zero_point: int
    low: int
    high: int


@dataclass(frozen=True, kw_only=True, eq=False)
class Operation:
    """One step.

    Attributes:
        name: Unique; the path of the module it comes from where there is one.
        kind: Which arithmetic, see the head of this file.
        inputs: Names of the operations whose results it takes.
        output: How its integers stand for real numbers.
        settings: By kind. conv: stride, padding, dilation (each two numbers), groups. max_pool: kernel, stride,
            padding (two each). mean: kernel, stride (two each); a kernel of (0, 0) is the whole map, whose size is
            that of `IntegerProgram.image_shape`. concat, slice: axis; slice also start, stop, step. upsample: scale
            (two). flatten: start_axis. reshape: shape, of all but the batch. permute: axes.
        arrays: Integers. conv, linear: weight (O, I / groups, KH, KW) or (O, I), weight_zero_point (O,), bias (O,),
            multiplier (O,), shift (O,). lookup: table. add: factor (inputs,), shift (1,). concat: multiplier, shift
            (inputs,). multiply, mean, rescale: multiplier, shift (1,).
        weight_scales: conv, linear: real weight per integer, (O,); empty otherwise. Not used in integer inference:
            kept so that a file tells what its integers mean.
        weight_bits: Of the weights; 0 where there are none.
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
        operations: The first of kind "input"; each takes the results of earlier ones.
        outputs: Names of the operations whose results the network gives, in order.
        fingerprint: Of the network it was made from (SHA-256 over names and shapes of its weights).
        image_shape: (C, H, W) it was calibrated with; H and W of a fully convolutional network may differ in use.
    """

    operations: tuple[Operation, ...]
    outputs: tuple[str, ...]
    fingerprint: str
    image_shape: tuple[int, int, int]
