"""Entries on ncnn, written as `.param` and `.bin` without a conversion."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from deploy.artefact.packages import optional_package
from deploy.latency.entries import Array, Entry, EntrySettings, RunEntry, quantized_weights
from deploy.ncnn.bin import Stored, float_bytes, int8_bytes, write_bin
from deploy.ncnn.param import ParamLayer, param_text, write_param
from deploy.ncnn.runtime import BIN_NAME, INPUT_BLOB, PARAM_NAME, open_network, sixteen_bits_of
from deploy.settings import RuntimeOptions
from pruning.selection.latency import LayerKind
from utils.errors import ConfigError

_OUTPUT_BLOB = "out0"
# Activations that ncnn's converter makes a part of the layer; those of SiLU stay a layer of their own.
_FUSED = {
    "none": (),
    "relu": ("9=1",),
    "leaky_relu": ("9=2", "-23310=1,1.000000e-02"),
    "relu6": ("9=3", "-23310=2,0.000000e+00,6.000000e+00"),
    "sigmoid": ("9=4",),
    "hardswish": ("9=6", "-23310=2,1.666667e-01,5.000000e-01"),
}
_INT8_SETTINGS = {"Convolution": "8=2", "ConvolutionDepthWise": "8=1"}


def open_ncnn_entry(entry: Entry, settings: EntrySettings) -> RunEntry:
    """Write and load a network of one layer; running it neither unpacks inputs nor outputs, as inside a network.

    Raises:
        ConfigError: The ncnn package is not installed, or does not load or compute the layer.
    """
    ncnn = optional_package("ncnn", purpose="a latency table of ncnn")
    with tempfile.TemporaryDirectory() as scratch:
        write_ncnn_entry(entry, settings, Path(scratch))
        net = _opened(ncnn, Path(scratch), settings)
        image = _packed(ncnn, entry, settings, Path(scratch))

    def run() -> None:
        with net.create_extractor() as extractor:
            extractor.input(INPUT_BLOB, image)
            code, _ = extractor.extract(_OUTPUT_BLOB, 1)  # 1: in the layout of the next layer
            if code != 0:
                raise ConfigError(f"ncnn cannot compute {entry.kind.as_text()} (code {code}); free some memory")

    return run


def write_ncnn_entry(entry: Entry, settings: EntrySettings, folder: Path) -> None:
    """Write the `.param` and `.bin` of one layer with its activation into a folder."""
    weights = entry.weights()
    text = entry_param(entry.kind, settings.precision)
    param = text.format(outputs=entry.outputs, weights=weights.size, groups=entry.groups)
    (folder / PARAM_NAME).write_text(param, encoding="utf-8")
    bias = float_bytes(np.zeros(entry.outputs, dtype=np.float32))
    storage = entry_storage(entry.kind, settings.precision)
    chunk = _int8_chunk(entry, bias) if storage == "int8" else _float_chunk(weights, storage) + bias
    (folder / BIN_NAME).write_bytes(chunk)


def entry_param(kind: LayerKind, precision: str) -> str:
    """Return the `.param` of a kind of layer with its activation, for any widths.

    `{outputs}`, `{weights}` and `{groups}` stand for the number of output channels, of weights and of groups.
    """
    layer = _layer(kind)
    if entry_storage(kind, precision) == "int8":
        layer = replace(layer, settings=(*layer.settings, _INT8_SETTINGS[layer.kind]))
    layers = [
        ParamLayer(kind="Input", name=INPUT_BLOB, inputs=(), outputs=(INPUT_BLOB,)),
        layer,
    ]
    if layer.outputs != (_OUTPUT_BLOB,):
        layers.append(ParamLayer(kind="Swish", name="act", inputs=layer.outputs, outputs=(_OUTPUT_BLOB,)))
    return param_text(tuple(layers))


def entry_storage(kind: LayerKind, precision: str) -> str:
    """Return how the weights of a kind of layer are stored: "fp32", "fp16" or "int8"."""
    if precision == "int8" and (kind.end == "last" or kind.kind == "linear"):
        return "fp16"
    return precision


def _layer(kind: LayerKind) -> ParamLayer:
    if kind.kind == "linear":
        name, settings = "InnerProduct", ["0={outputs}", "1=1", "2={weights}"]
    else:
        is_split = kind.group != (0, 0)
        name = "ConvolutionDepthWise" if is_split else "Convolution"
        (height, width), (top, left) = kind.kernel, kind.padding
        settings = ["0={outputs}", f"1={width}", f"11={height}", "5=1", "6={weights}"]
        settings += [f"2={kind.dilation[1]}", f"12={kind.dilation[0]}", f"3={kind.stride[1]}", f"13={kind.stride[0]}"]
        settings += [f"4={left}", f"14={top}", *(["7={groups}"] if is_split else [])]
    return ParamLayer(
        kind=name,
        name="layer",
        inputs=(INPUT_BLOB,),
        outputs=("made",) if kind.activation == "silu" else (_OUTPUT_BLOB,),
        settings=(*settings, *_FUSED.get(kind.activation, ())),
    )


def _float_chunk(weights: Array, storage: str) -> bytes:
    if storage == "fp32":
        return bytes(4) + float_bytes(weights)
    return Stored(values=weights.reshape(-1), has_tag=True).as_bytes


def _int8_chunk(entry: Entry, bias: bytes) -> bytes:
    num_scales = entry.groups if entry.kind.group != (0, 0) else entry.outputs
    quantized, scales = quantized_weights(entry.weights().reshape(num_scales, -1))
    input_scale = np.array([127.0], dtype=np.float32)
    return int8_bytes(quantized) + bias + float_bytes(scales) + float_bytes(input_scale)


def _opened(ncnn: Any, folder: Path, settings: EntrySettings) -> Any:
    half = sixteen_bits_of(ncnn) if settings.precision == "fp16" else None
    return open_network(ncnn, folder, options=RuntimeOptions(threads=settings.threads), sixteen_bits=half)


def _packed(ncnn: Any, entry: Entry, settings: EntrySettings, folder: Path) -> Any:
    """Return the input in the layout that a layer before this one would leave it in."""
    array = entry.image()
    image = ncnn.Mat(array[0] if len(array) == 1 else array).clone()  # a copy, since it does not own the array
    if entry.is_linear or entry.kind.end == "first":
        return image
    layers = (
        ParamLayer(kind="Input", name=INPUT_BLOB, inputs=(), outputs=(INPUT_BLOB,)),
        ParamLayer(kind="ReLU", name="before", inputs=(INPUT_BLOB,), outputs=(_OUTPUT_BLOB,)),
    )
    write_param(folder / PARAM_NAME, layers)
    write_bin(folder / BIN_NAME, layers, {})
    net = _opened(ncnn, folder, settings)
    with net.create_extractor() as extractor:
        extractor.input(INPUT_BLOB, image)
        return _copied(extractor)


def _copied(extractor: Any) -> Any:
    """Return a copy of the output; the output itself must be gone before its network is."""
    _, blob = extractor.extract(_OUTPUT_BLOB, 1)
    return blob.clone()
