"""Activation times gradient at every layer whose channels can be pruned, sample by sample.

A channel is measured before the activation, at the output of its batch norm, or of the convolution or linear layer
that produces it if there is no batch norm: the value that masking sets to zero.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from types import TracebackType

import numpy as np
from torch import Tensor, nn

from pruning.channels.graph import ChannelGraph
from pruning.channels.layer_rules import LINEAR
from pruning.importance.masking import evaluating
from utils.errors import DataError, PruningError

REMEDY = "measure on other weights, such as those of an earlier epoch"

# Takes the path of a layer and its products (B, C, positions).
TakeProducts = Callable[[str, Tensor], None]


class ProductRecorder:
    """Context manager that hands on activation times gradient of every measured layer.

    Products stay on the network's device, so a GPU is not waited for. No gradient of a weight is computed.

    Attributes:
        layers: Paths of the measured layers.
    """

    def __init__(self, model: nn.Module, graph: ChannelGraph, take: TakeProducts) -> None:
        """Create the recorder.

        Args:
            model: Network; in evaluation mode within the context, and unchanged afterwards.
            graph: Channels of the network.
            take: Function that is called with a layer and its products in each backward pass.

        Raises:
            PruningError: No channel can be pruned.
        """
        self.layers = measured_layers(graph)
        if not self.layers:
            raise PruningError(f"{type(model).__name__}: no channel can be pruned; see why in the graph's listing")
        self._model, self._graph, self._take = model, graph, take
        self._passes = 0
        self._stack = ExitStack()

    def __enter__(self) -> ProductRecorder:
        self._stack.enter_context(evaluating(self._model))
        for parameter in self._model.parameters():
            # Without weight gradients the backward pass takes half the time and leaves nothing behind.
            self._stack.callback(parameter.requires_grad_, parameter.requires_grad)
            parameter.requires_grad_(False)
        for name in self.layers:
            handle = self._model.get_submodule(name).register_forward_hook(
                self._hook(name, is_linear=self._graph.layers[name].kind == LINEAR)
            )
            self._stack.callback(handle.remove)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def measure(self, loss: Tensor) -> None:
        """Measure one batch whose forward pass ran within this context; `loss` is its scalar loss."""
        loss.backward()  # type: ignore[no-untyped-call]
        self._passes += 1

    def check_measured(self) -> None:
        """Raise a DataError if nothing was measured."""
        if not self._passes:
            raise DataError("there are no batches to measure importance on; give a data set with training images")

    def _hook(self, name: str, *, is_linear: bool) -> Callable[[nn.Module, object, Tensor], Tensor]:
        def record(module: nn.Module, inputs: object, output: Tensor) -> Tensor:
            if not output.requires_grad:
                # The first measured layer: the layers before it take no part in the backward pass.
                output = output.detach().requires_grad_()
            values = output.detach()
            # A linear layer has its channels behind the positions.
            axis = -1 if is_linear else 1
            output.register_hook(  # type: ignore[no-untyped-call]
                lambda gradient: self._hand_on(name, values.movedim(axis, 1), gradient.movedim(axis, 1))
            )
            # The rest of the network gets a copy, since it may change it in place, as torchvision's ReLU and `+=` do.
            return output.clone()

        return record

    def _hand_on(self, name: str, values: Tensor, gradient: Tensor) -> None:
        """Hand on the products of one layer; `values` and `gradient` (B, C, ...)."""
        product = values.float() * gradient.float()
        self._take(name, product.reshape(*product.shape[:2], -1))


def measured_layers(graph: ChannelGraph) -> tuple[str, ...]:
    """List the layers at which to measure: batch norms, and producers of channels that pass no batch norm."""
    norms = [layer for layer in graph.layers.values() if layer.is_norm]
    normed = np.unique(np.concatenate([np.empty(0, dtype=np.int64), *(layer.output_ids for layer in norms)]))
    found = []
    for layer in graph.layers.values():
        ids = layer.output_ids if layer.is_norm else np.setdiff1d(layer.output_ids, normed)
        if graph.is_prunable(ids).any():
            found.append(layer.name)
    return tuple(found)
