"""int8 for ncnn, calibrated on real images and written here, since no package contains ncnn's own table tools.

ncnn computes an int8 convolution as follows (its `Convolution`, checked against torch in tests/deploy):

    q_in = clamp(round(input * input_scale), -127, 127)          halves away from zero
    output = sum(q_in * q_weight) / (input_scale * weight_scale) + bias

with one scale per layer for inputs and one per output channel for weights. The operations after it, activations
included, are in floating point again.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
from torch import Tensor

from deploy.artefact.metadata import METADATA_NAME
from deploy.choices import Int8Method
from deploy.ncnn.bin import Floats, Stored, float_bytes, int8_bytes, read_bin, write_bin
from deploy.ncnn.names import CONVOLUTIONS, matching_convolutions
from deploy.ncnn.param import ParamLayer, output_blobs, read_param, write_param
from deploy.ncnn.ranges import input_ranges
from deploy.ncnn.runtime import BIN_NAME, PARAM_NAME
from deploy.outputs.metadata import folder_metadata
from utils.errors import ConfigError

_LARGEST = 127
# The setting that makes a layer int8 with one scale per output channel, as `id=value`.
_INT8_SETTINGS = {"Convolution": "8=2", "ConvolutionDepthWise": "8=1"}


@dataclass(frozen=True, kw_only=True)
class Int8Settings:
    """Settings for converting a network to int8.

    Attributes:
        method: Method that chooses the ranges of activations, see `deploy.ncnn.ranges.input_ranges`.
        skip: Patterns of convolutions to keep in floating point, such as "model.2.*".
        head: Whether to convert also the last convolutions, whose outputs are the network's. They have a few
            thousandths of the weights, and no later layer evens out their rounding: boxes lose their last pixel of
            accuracy.
    """

    method: Int8Method = "minmax"
    skip: tuple[str, ...] = ()
    head: bool = False

    def __post_init__(self) -> None:
        if self.method not in get_args(Int8Method):
            raise ConfigError(f"--calib-method {self.method}: expected one of {', '.join(get_args(Int8Method))}")

    def skipped(self, layers: tuple[ParamLayer, ...]) -> frozenset[str]:
        """Return the names of the convolutions to keep in floating point.

        Raises:
            ConfigError: A pattern matches no convolution.
        """
        heads = output_blobs(layers)
        last = {layer.name for layer in layers if layer.kind in CONVOLUTIONS and layer.outputs[0] in heads}
        return matching_convolutions(layers, self.skip) | (frozenset() if self.head else last)


@dataclass(frozen=True, kw_only=True)
class Calibrated:
    """An fp32 export with the ranges that int8 needs.

    Attributes:
        folder: Folder of the export.
        layers: Layers of its `.param`.
        arrays: Arrays of its `.bin`, by name of the layer.
        ranges: Magnitude that 127 represents at the input of each convolution, by name.
    """

    folder: Path
    layers: tuple[ParamLayer, ...]
    arrays: Mapping[str, tuple[Stored, ...]]
    ranges: Mapping[str, float]

    @property
    def convolutions(self) -> tuple[str, ...]:
        """Names of the layers that can be int8, in execution order."""
        return tuple(self.ranges)


def calibrate(folder: Path, *, images: Sequence[Tensor], method: Int8Method) -> Calibrated:
    """Run an fp32 export on real images and measure the ranges of its convolutions' inputs.

    Args:
        folder: Folder of the export.
        images: Images, each (1, C, H, W) float32, in the form of network input.
        method: Method that chooses the ranges, see `deploy.ncnn.ranges.input_ranges`.

    Raises:
        ConfigError: There are no images, or the storage of a layer is not known.
        CheckpointError: A file is missing or damaged.
    """
    if not images:
        raise ConfigError("int8 needs images to calibrate with; give --data")
    layers = read_param(folder / PARAM_NAME)
    arrays = read_bin(folder / BIN_NAME, layers)
    wanted = [layer.name for layer in layers if layer.kind in CONVOLUTIONS]
    ranges = input_ranges(folder, layers, wanted, images=images, method=method)
    return Calibrated(folder=folder, layers=layers, arrays=arrays, ranges=ranges)


def write_int8(source: Calibrated, folder: Path, *, skip: Collection[str] = ()) -> None:
    """Write param, bin and metadata of a network whose convolutions are int8.

    Args:
        source: Calibrated fp32 network.
        folder: Existing folder; files there are replaced.
        skip: Names of convolutions to keep in floating point. They and all other layers are stored in 16 bits.
    """
    chosen = {name for name in source.convolutions if name not in skip}
    layers = tuple(_as_int8(layer) if layer.name in chosen else layer for layer in source.layers)
    chunks = {
        layer.name: _int8_chunk(layer, source.arrays[layer.name], source.ranges[layer.name])
        if layer.name in chosen
        else b"".join(array.as_bytes for array in source.arrays.get(layer.name, ()))
        for layer in source.layers
    }
    write_param(folder / PARAM_NAME, layers)
    write_bin(folder / BIN_NAME, layers, chunks)
    metadata = replace(folder_metadata(source.folder), precision="int8")
    (folder / METADATA_NAME).write_text(metadata.to_json(), encoding="utf-8")


def _as_int8(layer: ParamLayer) -> ParamLayer:
    return replace(layer, settings=(*layer.settings, _INT8_SETTINGS[layer.kind]))


def _int8_chunk(layer: ParamLayer, arrays: tuple[Stored, ...], input_range: float) -> bytes:
    """Return the bytes of the weights, the bias if there is one, the weight scales and the input scale."""
    weights, *bias = arrays
    num_scales = layer.number(7) if layer.kind == "ConvolutionDepthWise" else layer.number(0)
    quantized, scales = quantized_weights(weights.values.reshape(num_scales, -1))
    input_scale = np.array([_LARGEST / input_range], dtype=np.float32)
    floats = [*(array.values for array in bias), scales, input_scale]
    return int8_bytes(quantized) + b"".join(map(float_bytes, floats))


def quantized_weights(weights: Floats) -> tuple[np.ndarray[Any, np.dtype[np.int8]], Floats]:
    """Quantise weights (channels, n) to int8, and return them with the factor of each channel, (channels,).

    The largest magnitude of a channel becomes 127. A channel of zeros gets the factor 1, since ncnn divides by it.
    """
    largest = np.abs(weights).max(axis=1)
    scales = _LARGEST / np.where(largest > 0, largest, _LARGEST)
    scaled: Floats = np.rint(weights * scales[:, None])
    return scaled.astype(np.int8), scales.astype(np.float32)
