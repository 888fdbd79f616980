"""Entries on ncnn, written as `.param` and `.bin` without a conversion."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from deploy.artefact.packages import optional_package
from deploy.latency.entries import Entry, EntrySettings, RunEntry
from deploy.ncnn.bin import Stored, float_bytes, int8_bytes, write_bin
from deploy.ncnn.int8 import quantized_weights
from deploy.ncnn.param import ParamLayer, write_param
from deploy.ncnn.runtime import BIN_NAME, INPUT_BLOB, PARAM_NAME, open_network, sixteen_bits_of
from deploy.settings import RuntimeOptions
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
    layer = _layer(entry)
    is_int8 = settings.precision == "int8" and entry.kind.end != "last" and not entry.is_linear
    if is_int8:
        layer = ParamLayer(**{**vars(layer), "settings": (*layer.settings, _INT8_SETTINGS[layer.kind])})
    layers = [
        ParamLayer(kind="Input", name=INPUT_BLOB, inputs=(), outputs=(INPUT_BLOB,)),
        layer,
    ]
    if layer.outputs != (_OUTPUT_BLOB,):
        layers.append(ParamLayer(kind="Swish", name="act", inputs=layer.outputs, outputs=(_OUTPUT_BLOB,)))
    bias = float_bytes(np.zeros(entry.outputs, dtype=np.float32))
    chunk = _int8_chunk(entry, bias) if is_int8 else _float_chunk(entry, settings) + bias
    write_param(folder / PARAM_NAME, tuple(layers))
    write_bin(folder / BIN_NAME, tuple(layers), {layer.name: chunk})


def _layer(entry: Entry) -> ParamLayer:
    kind = entry.kind
    count = entry.weights().size
    if entry.is_linear:
        settings = [f"0={entry.outputs}", "1=1", f"2={count}"]
    else:
        (height, width), (top, left) = kind.kernel, kind.padding
        settings = [f"0={entry.outputs}", f"1={width}", f"11={height}", "5=1", f"6={count}"]
        settings += [f"2={kind.dilation[1]}", f"12={kind.dilation[0]}", f"3={kind.stride[1]}", f"13={kind.stride[0]}"]
        settings += [f"4={left}", f"14={top}"]
    if entry.groups > 1:
        settings.append(f"7={entry.groups}")
    names = {True: "InnerProduct", False: "ConvolutionDepthWise" if entry.groups > 1 else "Convolution"}
    return ParamLayer(
        kind=names[entry.is_linear],
        name="layer",
        inputs=(INPUT_BLOB,),
        outputs=("made",) if kind.activation == "silu" else (_OUTPUT_BLOB,),
        settings=(*settings, *_FUSED.get(kind.activation, ())),
    )


def _float_chunk(entry: Entry, settings: EntrySettings) -> bytes:
    stored = Stored(values=entry.weights().reshape(-1), has_tag=True)
    if settings.precision == "fp32":
        return bytes(4) + float_bytes(stored.values)
    return stored.as_bytes


def _int8_chunk(entry: Entry, bias: bytes) -> bytes:
    num_scales = entry.groups if entry.groups > 1 else entry.outputs
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
