"""ncnn's `.bin`: the arrays of every layer in the order of the `.param`, without names or sizes.

Weights begin with a tag of four bytes that says how they are stored, so a file may mix widths; biases, norms and int8
scales have no tag and are always float32. All numbers are little-endian, and arrays are padded to multiples of four
bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from deploy.ncnn.param import ParamLayer
from utils.errors import CheckpointError, ConfigError

FLOAT32_TAG, FLOAT16_TAG, INT8_TAG = 0, 0x01306B47, 0x000D4B38

Floats: TypeAlias = np.ndarray[Any, np.dtype[np.float32]]
# Length of each array of a layer, and whether a tag comes first.
Layout: TypeAlias = tuple[tuple[int, bool], ...]


@dataclass(frozen=True, kw_only=True)
class Stored:
    """One array of a layer.

    Attributes:
        values: Values (n,) float32.
        has_tag: True if a tag says how the array is stored, so that its width can be chosen.
    """

    values: Floats
    has_tag: bool

    @cached_property
    def as_bytes(self) -> bytes:
        """Bytes of the array, in 16 bits if the format and the range of the values allow it, else in 32."""
        if not self.has_tag:
            return float_bytes(self.values)
        if np.abs(self.values).max(initial=0) > np.finfo(np.float16).max:
            return struct.pack("<I", FLOAT32_TAG) + float_bytes(self.values)
        return struct.pack("<I", FLOAT16_TAG) + _padded(self.values.astype("<f2").tobytes())


def float_bytes(values: Floats) -> bytes:
    """Convert values to bytes without a tag, as for biases, norms and scales."""
    return values.astype("<f4").tobytes()


def int8_bytes(weights: np.ndarray[Any, np.dtype[np.int8]]) -> bytes:
    """Convert quantised weights to bytes with their tag."""
    return struct.pack("<I", INT8_TAG) + _padded(weights.tobytes())


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)


def read_bin(path: Path, layers: tuple[ParamLayer, ...]) -> dict[str, tuple[Stored, ...]]:
    """Read the arrays of each layer, by its name; layers without arrays are left out.

    Args:
        path: Path of the `.bin` of an fp32 export.
        layers: Layers of the `.param` beside it.

    Raises:
        CheckpointError: The file ends too early, or is not stored in fp32.
        ConfigError: It contains arrays of layers whose storage is not known.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}; export the model again") from error
    position = 0
    found: dict[str, tuple[Stored, ...]] = {}
    for layer in (layer for layer in layers if layer.kind in LAYOUTS):
        arrays = []
        for count, has_tag in LAYOUTS[layer.kind](layer):
            start = position + 4 * has_tag
            if has_tag and data[position:start] != struct.pack("<I", FLOAT32_TAG):
                raise CheckpointError(f"{path}: layer {layer.name} is not stored in fp32; export the model in fp32")
            position = start + 4 * count
            if position > len(data):
                raise CheckpointError(f"{path} is truncated at layer {layer.name}; export the model again")
            values = np.frombuffer(data, dtype="<f4", count=count, offset=start).astype(np.float32)
            arrays.append(Stored(values=values, has_tag=has_tag))
        found[layer.name] = tuple(arrays)
    if position != len(data):
        kinds = sorted({layer.kind for layer in layers} - LAYOUTS.keys())
        raise ConfigError(
            f"{path}: {len(data) - position} bytes belong to layers whose storage is not known, among "
            f"{', '.join(kinds)}; export in fp16 instead of int8"
        )
    return found


def write_bin(path: Path, layers: tuple[ParamLayer, ...], chunks: Mapping[str, bytes]) -> None:
    """Write the bytes of all layers that have any, in the order of the `.param`."""
    path.write_bytes(b"".join(chunks.get(layer.name, b"") for layer in layers))


def _convolution(layer: ParamLayer) -> Layout:
    return (layer.number(6), True), *_bias(layer, key=5)


def _inner_product(layer: ParamLayer) -> Layout:
    return (layer.number(2), True), *_bias(layer, key=1)


def _bias(layer: ParamLayer, *, key: int) -> Layout:
    return ((layer.number(0), False),) if layer.number(key) else ()


def _batch_norm(layer: ParamLayer) -> Layout:
    return ((layer.number(0), False),) * 4


def _attention(layer: ParamLayer) -> Layout:
    """Return the layout of query, key, value and output, each with its bias."""
    inner = layer.number(0)
    outer = layer.number(2) // inner
    widths = (outer, layer.number(3, inner), layer.number(4, inner))
    projections = [pair for width in widths for pair in ((inner * width, True), (inner, False))]
    return (*projections, (inner * outer, True), (outer, False))


def _matrix_product(layer: ParamLayer) -> Layout:
    """Return the layout of those of A, B and C that are constant; the length of C depends on how it is broadcast."""
    rows, columns, inner = (layer.number(key) for key in (7, 8, 9))
    sizes_of_c = {-1: 0, 0: 1, 1: rows, 2: rows, 3: rows * columns, 4: columns}
    sizes = {4: rows * inner, 5: columns * inner, 6: sizes_of_c[layer.number(10)]}
    return tuple((size, True) for key, size in sizes.items() if layer.number(key) and size)


# The layers that this project's networks convert to; other layers with arrays show up as bytes left over.
LAYOUTS: dict[str, Callable[[ParamLayer], Layout]] = {
    "BatchNorm": _batch_norm,
    "Convolution": _convolution,
    "ConvolutionDepthWise": _convolution,
    "Gemm": _matrix_product,
    "InnerProduct": _inner_product,
    "MultiHeadAttention": _attention,
}
