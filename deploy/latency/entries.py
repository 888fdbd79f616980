"""Entries of a latency table: single layers at chosen widths, which of them a network needs, and torch's own."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import nn

from deploy.choices import Precision
from pruning.selection.latency import LayerKind
from pruning.selection.latency_layers import TimedLayer

# Runs an opened entry once.
RunEntry: TypeAlias = Callable[[], object]
Array: TypeAlias = np.ndarray[Any, np.dtype[np.float32]]

# Distance between measured widths, up to a width; above the last one widths double.
_STEPS = ((64, 8), (128, 16), (256, 32), (512, 128), (1024, 256))
# Widths that fill no vector, to see what that costs the layers that write and that read them.
_PROBES = (4, 12, 20)
_LARGEST_INT8 = 127
# Random values that weights repeat; drawing megabytes of them would take longer than the layer.
_BLOCK = np.random.default_rng(0).normal(0, 0.05, 4096).astype(np.float32)
_ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "silu": nn.SiLU,
    "hardswish": nn.Hardswish,
    "sigmoid": nn.Sigmoid,
    "leaky_relu": nn.LeakyReLU,
}


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A layer of given widths.

    Attributes:
        kind: Everything else about the layer.
        inputs: Input channels; those of one group if the layer has groups.
        outputs: Output channels.
    """

    kind: LayerKind
    inputs: int
    outputs: int

    @property
    def groups(self) -> int:
        """Number of groups; 1 for a layer whose outputs read every input."""
        return self.outputs // self.kind.group[1] if self.kind.group[1] else 1

    @property
    def in_channels(self) -> int:
        """Input channels of all groups together."""
        return self.inputs * self.groups

    @property
    def is_linear(self) -> bool:
        """Whether the layer is linear, not a convolution."""
        return self.kind.kind == "linear"

    def weights(self) -> Array:
        """Return weights (outputs, inputs, height, width), or (outputs, inputs) of a linear layer."""
        kernel = () if self.is_linear else self.kind.kernel
        shape = (self.outputs, self.inputs, *kernel)
        return np.resize(_BLOCK, int(np.prod(shape))).reshape(shape)

    def image(self) -> Array:
        """Return an input (1, C, H, W), or (N, C) of a linear layer."""
        height, width = self.kind.input_hw
        shape = (height, self.in_channels) if self.is_linear else (1, self.in_channels, height, width)
        return np.resize(np.abs(_BLOCK), int(np.prod(shape))).reshape(shape)


@dataclass(frozen=True, kw_only=True)
class EntrySettings:
    """How entries are computed.

    Attributes:
        precision: "fp32", "fp16" or "int8".
        threads: Number of threads.
    """

    precision: Precision = "fp32"
    threads: int = 1


# Opens an entry on a runtime.
OpenEntry: TypeAlias = Callable[[Entry, EntrySettings], RunEntry]


def grids(layers: Sequence[TimedLayer]) -> dict[LayerKind, tuple[tuple[int, ...], tuple[int, ...]]]:
    """Return the input and output widths at which each kind of layer of a network is measured, ascending.

    The image and the outputs of the network keep their widths, so that there one width is enough.
    """
    present: dict[LayerKind, tuple[set[int], set[int]]] = {}
    for layer in layers:
        inputs, outputs = present.setdefault(layer.kind, (set(), set()))
        inputs.add(layer.inputs(len(layer.input_ids)))
        outputs.add(len(layer.output_ids))
    found = {}
    for kind, (inputs, outputs) in present.items():
        has_fixed_inputs = kind.end == "first" or kind.group != (0, 0)
        rows = () if has_fixed_inputs else _widths(max(inputs))
        columns = () if kind.end == "last" else _widths(max(outputs))
        # A layer of groups is a whole number of them.
        columns = tuple(width for width in columns if width % (kind.group[1] or 1) == 0)
        found[kind] = (_axis(rows, inputs), _axis(columns, outputs))
    return found


def entries_of(kind: LayerKind, inputs: Iterable[int], outputs: Sequence[int]) -> Iterator[Entry]:
    """Yield the entries of a kind, row by row."""
    for width in inputs:
        for made in outputs:
            yield Entry(kind=kind, inputs=width, outputs=made)


def open_torchscript_entry(entry: Entry, settings: EntrySettings) -> RunEntry:
    """Trace one layer; the number of threads applies to the whole process."""
    torch.set_num_threads(settings.threads)
    image = torch.from_numpy(entry.image())
    with warnings.catch_warnings():
        # Torch warns that this is deprecated; our artefacts use it all the same.
        warnings.filterwarnings("ignore", message=".*torch.jit.*deprecated")
        traced = torch.jit.trace(torch_entry(entry), image, check_trace=False)  # type: ignore[no-untyped-call]

    @torch.no_grad()
    def run() -> object:
        return traced(image)

    return run


def torch_entry(entry: Entry) -> nn.Sequential:
    """Build the module of an entry, in evaluation mode."""
    kind = entry.kind
    layer: nn.Linear | nn.Conv2d
    if entry.is_linear:
        layer = nn.Linear(entry.inputs, entry.outputs)
    else:
        layer = nn.Conv2d(
            entry.in_channels,
            entry.outputs,
            kind.kernel,
            stride=kind.stride,
            padding=kind.padding,
            dilation=kind.dilation,
            groups=entry.groups,
        )
    layer.weight.data.copy_(torch.from_numpy(entry.weights()))
    nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    activation = [_ACTIVATIONS[kind.activation]()] if kind.activation in _ACTIVATIONS else []
    return nn.Sequential(layer, *activation).eval().requires_grad_(False)


def _widths(most: int) -> tuple[int, ...]:
    """Return the widths that are measured up to one that is at least `most`, in no order."""
    found, width = list(_PROBES), 0
    while width < most:
        width += next((step for limit, step in _STEPS if width < limit), width)
        found.append(width)
    return tuple(found)


def _axis(widths: Iterable[int], present: set[int]) -> tuple[int, ...]:
    """Return the widths below the largest present one, and those that are present."""
    return tuple(sorted({width for width in widths if width < max(present)} | present))


def quantized_weights(weights: Array) -> tuple[np.ndarray[Any, np.dtype[np.int8]], Array]:
    """Quantise weights (channels, n) to int8, and return them with the factor of each channel, (channels,).

    The largest magnitude of a channel becomes 127. A channel of zeros gets the factor 1, since ncnn divides by it.
    """
    largest = np.abs(weights).max(axis=1)
    scales = _LARGEST_INT8 / np.where(largest > 0, largest, _LARGEST_INT8)
    scaled: Array = np.rint(weights * scales[:, None])
    return scaled.astype(np.int8), scales.astype(np.float32)
