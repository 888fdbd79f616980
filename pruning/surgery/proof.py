"""Prove that a cut network computes what the uncut one computes if nothing reads the dropped channels.

In a copy of the uncut network, each layer reads only what is kept, whatever the rest is, and makes noise where the
cut network has nothing, so no operator between layers may depend on it. In both copies, the same random numbers stand
in for all values that a channel has on its own, such as biases and scales of norms, so that none of 0 or 1 hides a
mistake; statistics of norms are those of the noise that runs through, so that signals neither vanish nor explode. On
noise, at two sizes where the network takes them, the outputs must agree.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import fields, is_dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from models.copies import tensors_by_name, twin_that_shares
from pruning.channels.graph import ChannelGraph
from pruning.channels.groups import LayerChannels
from pruning.channels.ids import BoolArray
from pruning.channels.layer_rules import LINEAR
from pruning.surgery.slicing import kept_positions
from utils.errors import PruningError

_FAILURES = (RuntimeError, ValueError, AssertionError, LookupError, TypeError, AttributeError)
# Two images, so that no batch of one can be mistaken for a channel.
_BATCH = 2
# Largest difference relative to the largest output, in the precision of the comparison.
_TOLERANCES: Mapping[torch.dtype, float] = {torch.float32: 1e-4, torch.float64: 1e-8}


@torch.no_grad()
def check_equal(model: nn.Module, pruned: nn.Module, graph: ChannelGraph, stays: BoolArray) -> None:
    """Compare a cut network with the uncut one on noise.

    Rounding may differ more than expected in deep networks, so a difference in float32 is looked at in float64.

    Args:
        model: Network before the cut; it is not changed.
        pruned: Network after it; it is not changed.
        graph: Channels of `model`.
        stays: Mask of the kept channels by id (n,).

    Raises:
        PruningError: Their outputs differ, or the cut network cannot run; the message names the first layer that
            computes something else.
    """
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    if any(parameter.is_meta for parameter in model.parameters()):
        return  # there are no numbers to compare
    for precision in (torch.float32, torch.float64) if dtype != torch.float64 else (torch.float64,):
        pair = _Pair(model, pruned, graph, stays, precision)
        difference = pair.difference()
        if difference is None:
            return
    raise PruningError(
        f"{type(model).__name__} cannot be cut: {difference} after the cut than without the channels; protect the "
        "layers around it, and report the network"
    )


class _Pair:
    """A masked copy of an uncut network and a copy of the cut one, with the same random values."""

    def __init__(
        self, model: nn.Module, pruned: nn.Module, graph: ChannelGraph, stays: BoolArray, precision: torch.dtype
    ) -> None:
        self._graph, self._stays, self._precision = graph, stays, precision
        self._generator = torch.Generator().manual_seed(0)
        self._masked, self._cut = _copy(model, precision), _copy(pruned, precision)
        self._settled: set[str] = set()
        for layer in graph.layers.values():
            self._prepare(layer)
        own = tensors_by_name(self._masked)
        for path, channels in graph.stored.items():
            owner, _, name = path.rpartition(".")
            tensor = own[path]
            if owner not in graph.layers and tensor.is_floating_point():
                values = self._random_like(tensor)
                kept = torch.from_numpy(kept_positions(channels.ids, stays)).to(values.device)
                _replace_(self._masked.get_submodule(owner), name, values)
                _replace_(self._cut.get_submodule(owner), name, values.index_select(channels.axis, kept))

    def difference(self) -> str | None:
        """Say which layer computes something else, or None if the outputs agree at each size that can be run."""
        images: list[int] = []
        for number, inputs in enumerate(self._inputs()):
            try:
                expected = _tensors_of(self._masked(*inputs))
            except _FAILURES:
                if number:
                    continue
                raise
            if number and [len(each) for each in expected if each.ndim] != images:
                continue  # the code has fixed sizes, and took one image for several
            images = [len(each) for each in expected if each.ndim]
            try:
                found = _tensors_of(self._cut(*inputs))
            except _FAILURES as error:
                return f"{self._first_difference(inputs)} fails ({str(error).strip().splitlines()[0][:120]})"
            if not _agree(found, expected, _TOLERANCES[self._precision]):
                return f"{self._first_difference(inputs)} computes something else"
        return None

    def _prepare(self, layer: LayerChannels) -> None:
        """Give a layer of both networks the same random values per channel, and mask what the uncut one reads."""
        own, left = self._masked.get_submodule(layer.name), self._cut.get_submodule(layer.name)
        rows = torch.from_numpy(kept_positions(layer.output_ids, self._stays))
        for name, tensor in _values_per_channel(own):
            # Scales are positive and biases around zero, as they are in use.
            values = self._random_like(tensor) - float(name == "bias")
            _replace_(own, name, values)
            _replace_(left, name, values[rows.to(values.device)])
        if layer.is_norm:
            own.register_forward_pre_hook(self._settle(layer, left, rows))
        elif layer.reads_all and layer.is_called:
            own.forward = partial(self._deaf, layer, left, rows)
        elif layer.reads_all:
            reads = torch.from_numpy(self._stays[layer.input_ids])
            _replace_(own, "weight", _masked_along(own.get_parameter("weight"), reads, axis=layer.weight_axes[1]))

    def _deaf(
        self, layer: LayerChannels, left: nn.Module, rows: Tensor, input: Tensor, *rest: Any, **named: Any
    ) -> Tensor:
        """Compute a layer from what is kept, as far as it is kept; the rest is noise."""
        axis = input.ndim - 1 if layer.kind == LINEAR else 1
        if input.shape[axis] != len(layer.input_ids):
            raise RuntimeError(f"{layer.name} reads {input.shape[axis]} channels, and not {len(layer.input_ids)}")
        columns = torch.from_numpy(kept_positions(layer.input_ids, self._stays)).to(input.device)
        kept: Tensor = left(input.index_select(axis, columns), *rest, **named)
        if len(rows) == len(layer.output_ids):
            return kept
        shape = [*kept.shape[:axis], len(layer.output_ids), *kept.shape[axis + 1 :]]
        made = torch.rand(shape, generator=self._generator, dtype=kept.dtype).to(kept.device)
        return made.index_copy_(axis, rows.to(kept.device), kept)

    def _random_like(self, tensor: Tensor) -> Tensor:
        noise = torch.rand(tensor.shape, generator=self._generator, dtype=self._precision)
        return noise.to(tensor.device) + 0.5

    def _settle(self, layer: LayerChannels, left: nn.Module, rows: Tensor) -> Any:
        """Build a hook that sets the statistics of a norm, in both networks, to those of what it first reads."""

        def settle(norm: nn.Module, args: tuple[Any, ...]) -> None:
            if layer.name in self._settled or not args or not isinstance(norm.running_mean, Tensor):
                return
            self._settled.add(layer.name)
            values = args[0].transpose(0, 1).flatten(1)
            for name, value in (("running_mean", values.mean(1)), ("running_var", values.var(1) + 0.1)):
                _replace_(norm, name, value)
                _replace_(left, name, value[rows.to(value.device)])

        return settle

    def _inputs(self) -> Iterator[tuple[Tensor, ...]]:
        """Yield noise of the size that the network was traced on, then of half of it along all positions."""
        device = next(iter(tensors_by_name(self._masked).values())).device
        for divisor in (1, 2):
            shapes = [
                (shape[0], *(max(1, size // divisor) for size in shape[1:])) for shape in self._graph.input_shapes
            ]
            yield tuple(
                torch.rand(_BATCH, *shape, generator=self._generator, dtype=self._precision).to(device)
                for shape in shapes
            )

    def _first_difference(self, inputs: tuple[Tensor, ...]) -> str:
        """Return the path of the first layer whose kept outputs differ."""
        expected, found = self._outputs_of(self._masked, inputs), self._outputs_of(self._cut, inputs)
        for name, own in expected.items():
            layer = self._graph.layers[name]
            rows = torch.from_numpy(kept_positions(layer.output_ids, self._stays)).to(own.device)
            kept = own.index_select(own.ndim - 1 if layer.kind == LINEAR else 1, rows)
            if name not in found or not _agree([found[name]], [kept], _TOLERANCES[self._precision]):
                return f"layer {name}"
        return "what follows its layers"

    def _outputs_of(self, network: nn.Module, inputs: tuple[Tensor, ...]) -> dict[str, Tensor]:
        outputs: dict[str, Tensor] = {}
        handles = [
            network.get_submodule(name).register_forward_hook(partial(_keep, outputs, name))
            for name in self._graph.layers
        ]
        with suppress(*_FAILURES):
            network(*inputs)
        for handle in handles:
            handle.remove()
        return outputs


def _keep(outputs: dict[str, Tensor], name: str, module: nn.Module, args: Any, output: Tensor) -> None:
    outputs.setdefault(name, output.clone())


def _copy(network: nn.Module, precision: torch.dtype) -> nn.Module:
    """Copy a network in evaluation mode; parameters of this precision are shared."""
    twin = twin_that_shares(network)
    for module in twin.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and parameter.is_floating_point() and parameter.dtype != precision:
                module._parameters[name] = nn.Parameter(parameter.to(precision), requires_grad=False)
        for name, buffer in module._buffers.items():
            if buffer is not None and buffer.is_floating_point() and buffer.dtype != precision:
                module._buffers[name] = buffer.to(precision)
    return twin


def _values_per_channel(module: nn.Module) -> list[tuple[str, Tensor]]:
    own = {**dict(module.named_parameters(recurse=False)), **dict(module.named_buffers(recurse=False))}
    return [(name, own[name]) for name in ("weight", "bias") if name in own and own[name].ndim == 1]


def _replace_(module: nn.Module, name: str, values: Tensor) -> None:
    """Replace a parameter or buffer of a module by another tensor."""
    if name in module._parameters:
        module._parameters[name] = nn.Parameter(values, requires_grad=False)
    else:
        module._buffers[name] = values


def _masked_along(values: Tensor, stays: Tensor, *, axis: int) -> Tensor:
    """Return a tensor with zeros at the indices of a dimension where `stays` is False."""
    if values.shape[axis] != len(stays):
        raise RuntimeError(f"{values.shape[axis]} channels where {len(stays)} are read")
    shape = [1] * values.ndim
    shape[axis] = len(stays)
    return torch.where(stays.view(shape).to(values.device), values, 0)


def _tensors_of(outputs: Any) -> list[Tensor]:
    """List the tensors in outputs of any form; of dataclasses those of their fields.

    Raises:
        PruningError: There are none, so nothing could be compared.
    """
    found: list[Tensor] = []
    for leaf in pytree.tree_leaves(outputs):
        if isinstance(leaf, Tensor):
            found.append(leaf)
        elif is_dataclass(leaf):
            found += _tensors_of([getattr(leaf, field.name) for field in fields(leaf)])
    if not found:
        raise PruningError("the network returns no tensors, so that a cut cannot be proved; wrap it to return them")
    return found


def _agree(found: list[Tensor], expected: list[Tensor], tolerance: float) -> bool:
    """Return whether tensors have the same shapes and values, relative to the largest value of each."""
    if [each.shape for each in found] != [each.shape for each in expected]:
        return False
    for each, other in zip(found, expected, strict=True):
        scale = other.abs().max().clamp(min=1e-6) if other.numel() else 1
        if other.is_floating_point() and not bool(((each - other).abs() <= tolerance * scale).all()):
            return False
    return True
