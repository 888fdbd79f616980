"""Lower any network that torch.fx can trace to a `Graph` of the operations that have an integer form."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from models.copies import twin_with_numbers
from models.detector import Detector
from models.prepare import ready_for_export
from quantization.lowering.float_ops import computed
from quantization.lowering.graph import Graph, Node
from quantization.lowering.merging import merged
from quantization.lowering.one_size import CODE_ERRORS, PREFIX, Lowering, RefusedError, cause
from quantization.lowering.sizes import OtherSizes
from utils.errors import QuantizationError

logger = logging.getLogger(__name__)

# Folding batch norms changes only the order of sums.
_TOLERANCE = 1e-2


def lower(model: nn.Module, *, image_shape: tuple[int, int, int], allow_opaque: bool = False) -> Graph:
    """Lower a network at inference, with batch norms and clamps merged into the layers before them.

    Args:
        model: Network; it is not changed. For a `Detector` the graph extends from the image to the head maps
            (B, A * (5 + nc), H, W), since decoding is the same for all runtimes.
        image_shape: Shape of an image (C, H, W).
        allow_opaque: Whether the smallest modules with operators that have no integer form become opaque nodes.

    Raises:
        QuantizationError: The network cannot be traced, does not run on such images, or has an operator without an
            integer form outside of all modules, or with `allow_opaque` False anywhere.
    """
    _check_leaves(model)
    network = ready_for_export(model) if isinstance(model, Detector) else twin_with_numbers(model)
    opaque: set[str] = set()
    while True:
        try:
            traced = fx.GraphModule(network, _traced(network, opaque))
            lowering = Lowering(traced, image_shape, allow_opaque=allow_opaque)
            given = lowering.run()
            break
        except RefusedError as refused:
            if not allow_opaque or refused.module in {"", *opaque}:
                raise
            opaque.add(refused.module)
    graph = merged(given)
    _check_same(graph, lowering.example, lowering.outputs)
    return _with_sizes(graph, given, traced, allow_opaque=allow_opaque)


def tell_of_size(graph: Graph) -> None:
    """Log which operator limits a network to one size of images, if one does."""
    if graph.limited_by:
        height, width = graph.image_shape[1:]
        logger.info(
            "%s depends on the size of the images: the network holds for %dx%d alone", graph.limited_by, height, width
        )


def _check_leaves(model: nn.Module) -> None:
    """Check that no weight is computed from other tensors at every call.

    Raises:
        QuantizationError: A weight is computed.
    """
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            if isinstance(value, Tensor) and not value.is_leaf:
                where = f"{path}.{name}" if path else name
                raise QuantizationError(
                    f"{where}: is computed from other tensors, as with masks of torch.nn.utils.prune; make it "
                    "permanent first, for instance with prune.remove"
                )


def _with_sizes(graph: Graph, given: Graph, traced: fx.GraphModule, *, allow_opaque: bool) -> Graph:
    """Return a graph that knows the sizes of images it holds for; numbers are compared at a second one."""
    others = OtherSizes(traced, given, allow_opaque=allow_opaque)
    step, changed = others.step()
    graph = replace(graph, size_step=step)
    if step:
        second = Lowering(traced, others.to_compare(step), allow_opaque=allow_opaque)
        try:
            second.run()
            _check_same(graph, second.example, second.outputs)
        except QuantizationError as error:
            step, changed = 0, str(error).split(":")[0]
    return replace(graph, size_step=step, limited_by="" if step else changed)


def _check_same(graph: Graph, images: Tensor, expected: Sequence[Tensor]) -> None:
    """Check that a graph computes the same values as its network.

    Raises:
        QuantizationError: The values differ: the network changes a tensor in place that it reads again.
    """

    def compute(node: Node, inputs: Sequence[Tensor]) -> Tensor:
        return computed(node, inputs, graph.weights_of(node))

    with torch.no_grad():
        values = {name: value for name, value in graph.results(images, compute) if name in graph.outputs}
    for name, wanted in zip(graph.outputs, expected, strict=True):
        difference = (values[name] - wanted).abs().max()
        # Calibration reports values that are not finite, with the layer they come from.
        if torch.isfinite(wanted).all() and difference > _TOLERANCE * wanted.abs().max():
            raise QuantizationError(
                f"{name}: with batch norms folded, the result differs by {float(difference):.3g}; "
                "the network may change a tensor in place that is read again: replace such operators "
                "(inplace=True, +=)"
            )


class _Tracer(fx.Tracer):
    """Tracer that remembers the innermost module that could not be traced.

    Args:
        opaque: Paths of modules that are called as they are.
    """

    def __init__(self, opaque: Collection[str]) -> None:
        super().__init__()
        self.failed: tuple[str, str] | None = None
        self._opaque = opaque

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Return whether a module is called as it is."""
        return module_qualified_name in self._opaque or super().is_leaf_module(m, module_qualified_name)

    def call_module(self, m: nn.Module, forward: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Trace `m`, and remember it if that fails."""
        try:
            return super().call_module(m, forward, args, kwargs)
        except CODE_ERRORS:
            self.failed = self.failed or (self.path_of_module(m), type(m).__name__)
            raise


def _traced(network: nn.Module, opaque: Collection[str]) -> fx.Graph:
    tracer = _Tracer(opaque)
    try:
        return tracer.trace(network)
    except CODE_ERRORS as error:
        path, kind = tracer.failed or ("", type(network).__name__)
        where = f"{path.removeprefix(PREFIX)} ({kind})" if path else kind
        raise RefusedError(
            f"{where}: torch.fx cannot trace it ({cause(error)}); "
            "rewrite what depends on data, or use a network without it",
            module=path,
        ) from error
