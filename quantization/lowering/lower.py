"""Lower any network that torch.fx can trace to a `Graph` of the operations that have an integer form."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from models.copies import twin_with_numbers
from models.detector import Detector
from models.prepare import ready_for_export
from quantization.lowering.building import Builder, Call, Ref, opaque
from quantization.lowering.float_ops import computed
from quantization.lowering.graph import INPUT, Graph, Node
from quantization.lowering.merging import merged
from quantization.lowering.operators import function_call, module_call, operator_name
from utils.errors import QuantizationError

# Errors of code that meets unexpected values. While tracing, values are stand-ins without data, so branches, loops
# and lengths that depend on data raise these.
_CODE_ERRORS = (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
# Prefix that models.prepare.ExportNetwork adds to the paths of a detector.
_PREFIX = "detector."
# Folding batch norms changes only the order of sums.
_TOLERANCE = 1e-2
# More than one image: a size of 1 would hide which dimension is the batch.
_EXAMPLES = 2


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
            lowering = _Lowering(traced, image_shape, allow_opaque=allow_opaque)
            graph = merged(lowering.run())
            break
        except RefusedError as refused:
            if not allow_opaque or refused.module in {"", *opaque}:
                raise
            opaque.add(refused.module)
    _check_same(graph, lowering.example, lowering.outputs)
    return graph


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


def _check_same(graph: Graph, images: Tensor, expected: Sequence[Tensor]) -> None:
    """Check that a graph computes the same values as its network.

    Raises:
        QuantizationError: The values differ: the network changes a tensor in place that it reads again.
    """

    def compute(node: Node, inputs: Sequence[Tensor]) -> Tensor:
        weights = None if node.weight is None or node.bias is None else (node.weight, node.bias)
        return computed(node, inputs, weights)

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


class RefusedError(QuantizationError):
    """Something in the code of a module cannot be lowered.

    Attributes:
        module: Path of the innermost module whose code it is, in the traced network.
    """

    def __init__(self, message: str, *, module: str) -> None:
        super().__init__(message)
        self.module = module


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
        except _CODE_ERRORS:
            self.failed = self.failed or (self.path_of_module(m), type(m).__name__)
            raise


def _traced(network: nn.Module, opaque: Collection[str]) -> fx.Graph:
    tracer = _Tracer(opaque)
    try:
        return tracer.trace(network)
    except _CODE_ERRORS as error:
        path, kind = tracer.failed or ("", type(network).__name__)
        where = f"{path.removeprefix(_PREFIX)} ({kind})" if path else kind
        raise RefusedError(
            f"{where}: torch.fx cannot trace it ({_cause(error)}); "
            "rewrite what depends on data, or use a network without it",
            module=path,
        ) from error


def _cause(error: Exception) -> str:
    """Return the type of an error and the first sentence of its message, if any."""
    said = str(error).strip().split(". ")[0].splitlines()
    return f"{type(error).__name__}: {said[0]}" if said else type(error).__name__


class _Shapes(fx.Interpreter):
    """Runs a network once and records the shapes of its tensors, and all other values it computes.

    Attributes:
        found: Recorded values by node; tensors are on the meta device.
        at: Path of the node that runs.
    """

    def __init__(self, traced: fx.GraphModule) -> None:
        super().__init__(traced, garbage_collect_values=True)
        # Keep error messages unchanged.
        self.extra_traceback = False
        self.found: dict[fx.Node, Any] = {}
        self.at = ""

    def run_node(self, n: fx.Node) -> Any:
        self.at = _path_of(n)
        result = super().run_node(n)
        self.found[n] = fx.node.map_aggregate(
            result, lambda item: torch.empty(item.shape, device="meta") if isinstance(item, Tensor) else item
        )
        return result


class _Lowering:
    """One pass over the operators of a traced network.

    Attributes:
        example: Images of noise (B, C, H, W).
        outputs: Outputs of the network for the example.
    """

    def __init__(self, traced: fx.GraphModule, image_shape: tuple[int, int, int], *, allow_opaque: bool) -> None:
        self.example = torch.rand(_EXAMPLES, *image_shape, generator=torch.Generator().manual_seed(0))
        self.outputs: tuple[Tensor, ...] = ()
        self._traced = traced
        self._allow_opaque = allow_opaque
        self._builder = Builder()
        self._values: dict[fx.Node, Any] = {}

    def run(self) -> Graph:
        """Build the graph, before merging."""
        results = self._run_example()
        for node in self._traced.graph.nodes:
            if node.op == "output":
                return self._graph(node)
            self._values[node] = self._value(node, results[node])
        raise AssertionError("a graph of torch.fx ends with its output")

    def _run_example(self) -> dict[fx.Node, Any]:
        shapes = _Shapes(self._traced)
        try:
            with torch.no_grad():
                # Some networks change their images in place.
                given = shapes.run(self.example.clone())
        except _CODE_ERRORS as error:
            shape = tuple(self.example.shape[1:])
            raise QuantizationError(
                f"{shapes.at}: the network does not run on images of shape {shape} ({_cause(error)}); "
                "give the channels, height and width it accepts, or fix what fails there"
            ) from error
        self.outputs = tuple(given) if isinstance(given, list | tuple) else (given,)
        return shapes.found

    def _value(self, node: fx.Node, result: Any) -> Any:
        """Return a node's result for later nodes, with a `Ref` for each tensor of the network."""
        if node.op == "placeholder":
            return Ref(name=INPUT, shape=tuple(result.shape))
        if node.op == "get_attr":
            return _attribute(self._traced, str(node.target))
        shapes = _shapes_of(result)
        if not shapes:
            return result
        args = fx.node.map_arg(node.args, self._values.__getitem__)
        kwargs = fx.node.map_arg(node.kwargs, self._values.__getitem__)
        module = self._traced.get_submodule(str(node.target)) if node.op == "call_module" else None
        found = module_call(module, args) if module is not None else function_call(node, args, dict(kwargs))
        operator = type(module).__name__ if module is not None else operator_name(node)
        call = Call(
            name=self._builder.unique(_path_of(node)),
            operator=operator,
            arguments=found[1] if found else {},
            shapes=shapes,
        )
        try:
            if found is None:
                raise call.refusal("is an operator")
            return found[0](self._builder, call)
        except QuantizationError as error:
            if module is None or not self._allow_opaque:
                raise RefusedError(str(error), module=_module_of(node)) from error
            return opaque(self._builder, call, module, args, dict(kwargs), result=result)

    def _graph(self, node: fx.Node) -> Graph:
        given = fx.node.map_arg(node.args[0], self._values.__getitem__)
        is_single = isinstance(given, Ref)
        outputs = [given] if is_single else list(given) if isinstance(given, list | tuple) else []
        if not outputs or not all(isinstance(output, Ref) for output in outputs):
            raise QuantizationError(
                f"the network returns {type(given).__name__}, expected a tensor or a list or tuple of tensors"
            )
        names = tuple(output.name for output in outputs if isinstance(output, Ref))
        return Graph(nodes=self._builder.nodes, outputs=names, is_single=is_single)


def _module_of(node: fx.Node) -> str:
    """Return the path of the innermost module whose code calls a node."""
    around = list(node.meta.get("nn_module_stack", {}).values())
    return str(around[-1][0]) if around else ""


def _path_of(node: fx.Node) -> str:
    """Return the path of a module, or for a function its name within the path of the surrounding module."""
    if node.op == "call_module":
        return str(node.target).removeprefix(_PREFIX)
    scope = _module_of(node)
    return f"{scope}.{operator_name(node)}".removeprefix(_PREFIX) if scope else operator_name(node)


def _attribute(root: nn.Module, path: str) -> Any:
    value: Any = root
    for part in path.split("."):
        value = getattr(value, part)
    return value


def _shapes_of(result: Any) -> tuple[tuple[int, ...], ...]:
    """Return the shapes of the tensors in a result; empty if there are none."""
    items = result if isinstance(result, list | tuple) else (result,)
    return tuple(tuple(item.shape) for item in items if isinstance(item, Tensor))
