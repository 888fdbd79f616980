"""Entries in TorchScript: a traced module of one layer."""

from __future__ import annotations

import warnings

import torch
from torch import nn

from deploy.latency.entries import Entry, EntrySettings, RunEntry

_ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "silu": nn.SiLU,
    "hardswish": nn.Hardswish,
    "sigmoid": nn.Sigmoid,
    "leaky_relu": nn.LeakyReLU,
}


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
