"""int8 for ncnn, written here, since no package contains ncnn's own table tools.

ncnn computes an int8 convolution as follows (its `Convolution`, checked against torch in tests/deploy):

    q_in = clamp(round(input * input_scale), -127, 127)          halves away from zero
    output = sum(q_in * q_weight) / (input_scale * weight_scale) + bias

with one scale per layer for inputs and one per output channel for weights. The operations after it, activations
included, are in floating point again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from deploy.artefact.metadata import METADATA_NAME
from deploy.int8.calibration import Arithmetic
from deploy.ncnn.bin import Floats, Stored, float_bytes, int8_bytes, read_bin, write_bin
from deploy.ncnn.param import ParamLayer, read_param, write_param
from deploy.ncnn.runtime import BIN_NAME, PARAM_NAME
from deploy.outputs.metadata import folder_metadata
from quantization.ranges.config import QuantConfig
from quantization.runtime_layers import Integers, RuntimeLayer

ARITHMETIC = Arithmetic(rounding=QuantConfig(rounded="inputs", activation_symmetric=True, activation_signed=True))
# The setting that makes a layer int8, and its value for one scale per output channel.
_INT8_KEY, _INT8_VALUES = 8, {"Convolution": 2, "ConvolutionDepthWise": 1}
# The setting that says that a layer has a bias.
_BIAS_KEYS = {"Convolution": 5, "ConvolutionDepthWise": 5, "InnerProduct": 1}


@dataclass(frozen=True, kw_only=True)
class FloatFolder:
    """An fp32 export whose layers are to be replaced.

    Attributes:
        folder: Folder of the export.
        layers: Layers of its `.param`.
        arrays: Arrays of its `.bin`, by name of the layer.
    """

    folder: Path
    layers: tuple[ParamLayer, ...]
    arrays: Mapping[str, tuple[Stored, ...]]

    @classmethod
    def read(cls, folder: Path) -> FloatFolder:
        """Read an export.

        Raises:
            ConfigError: The storage of a layer is not known.
            CheckpointError: A file is missing or damaged.
        """
        layers = read_param(folder / PARAM_NAME)
        return cls(folder=folder, layers=layers, arrays=read_bin(folder / BIN_NAME, layers))

    @property
    def stored(self) -> dict[str, Floats]:
        """Weight of each layer that can be replaced, flat, by its name."""
        return {layer.name: self.arrays[layer.name][0].values for layer in self.layers if layer.kind in _BIAS_KEYS}

    @property
    def floats(self) -> tuple[str, ...]:
        """Names of the layers that are not written in int8; pnnx makes them of convolutions of a single pixel too."""
        return tuple(layer.name for layer in self.layers if layer.kind not in _INT8_VALUES)


def write_int8(source: FloatFolder, folder: Path, layers: Mapping[str, RuntimeLayer]) -> None:
    """Write param, bin and metadata of a network with other layers.

    Args:
        source: The network in fp32.
        folder: Existing folder; files there are replaced.
        layers: Layers by name. Those without integers, and all others of the network, are stored in 16 bits.
    """
    written = [_written(layer, source.arrays.get(layer.name, ()), layers.get(layer.name)) for layer in source.layers]
    params = tuple(layer for layer, _ in written)
    write_param(folder / PARAM_NAME, params)
    write_bin(folder / BIN_NAME, params, {layer.name: chunk for layer, chunk in written})
    metadata = replace(folder_metadata(source.folder), precision="int8")
    (folder / METADATA_NAME).write_text(metadata.to_json(), encoding="utf-8")


def _written(layer: ParamLayer, arrays: tuple[Stored, ...], new: RuntimeLayer | None) -> tuple[ParamLayer, bytes]:
    """Return a layer and the bytes of its arrays."""
    if new is None:
        return layer, b"".join(array.as_bytes for array in arrays)
    # A layer without a bias gets one, which makes up for rounding.
    layer, bias = layer.with_number(_BIAS_KEYS[layer.kind], 1), float_bytes(new.bias)
    if new.integers is None:
        return layer, replace(arrays[0], values=new.weight.ravel()).as_bytes + bias
    layer = layer.with_number(_INT8_KEY, _INT8_VALUES[layer.kind])
    return layer, int8_bytes(new.integers.weight) + bias + _scale_bytes(new.integers)


def _scale_bytes(integers: Integers) -> bytes:
    """Return the factors of the weights and of the input: ncnn multiplies by them, we divide by scales."""
    factors: Floats = np.append(1 / integers.scales, 1 / integers.source.scale).astype(np.float32)
    return float_bytes(factors)
