"""From any network that torch.fx can trace to a `Graph` of the kinds of operations that integers can do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from models.detector import Detector
from models.prepare import ready_for_export
from quantization.building import Builder, Call, Ref
from quantization.float_ops import computed
from quantization.graph import INPUT, Graph, Node
from quantization.merging import merged
from quantization.operators import function_call, module_call, operator_name
from utils.errors import QuantizationError
from utils.twins import twin_with_numbers

# What code raises that meets other values than it was written for. In tracing those are stand-ins without numbers:
# branches, loops and lengths that depend on data.
_CODE_ERRORS = (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
# What models.prepare.ExportNetwork puts before the paths of a detector.
_PREFIX = "detector."
# Folding batch norms changes the order of sums, no more.
_TOLERANCE = 1e-2
# More than one image: a size of 1 would hide where the batch goes.
_EXAMPLES = 2


def lower(model: nn.Module, *, image_shape: tuple[int, int, int]) -> Graph:
    """The graph of a network at inference: batch norms and clamps merged into the layers before them.

    Args:
        model: Not touched. Of a `Detector` it is the graph from the image to the head maps
            (B, A * (5 + nc), H, W): decoding is the same for all runtimes.
        image_shape: (C, H, W).

    Raises:
        QuantizationError: It cannot be traced, does not run on such images, or has an operator that integers
            cannot do here.
    """
    _check_leaves(model)
    network = ready_for_export(model) if isinstance(model, Detector) else twin_with_numbers(model)
    lowering = _Lowering(fx.GraphModule(network, _traced(network)), image_shape)
    graph = merged(lowering.run())
    _check_same(graph, lowering.example, lowering.outputs)
    return graph


def _check_leaves(model: nn.Module) -> None:
    """Whether weights are numbers of their own, and not computed from others at every call.

    Raises:
        QuantizationError: They are not.
    """
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            if isinstance(value, Tensor) and not value.is_leaf:
                where = f"{path}.{name}" if path else name
                raise QuantizationError(
                    f"{where}: is computed from other tensors, as masks of torch.nn.utils.prune do it; make it "
                    "permanent first, such as with prune.remove"
                )


def _check_same(graph: Graph, images: Tensor, expected: Sequence[Tensor]) -> None:
    """Whether a graph gives the numbers of its network.

    Raises:
        QuantizationError: It does not: the network changes a tensor in place that it reads again.
    """

    def compute(node: Node, inputs: Sequence[Tensor]) -> Tensor:
        weights = None if node.weight is None or node.bias is None else (node.weight, node.bias)
        return computed(node, inputs, weights)

    with torch.no_grad():
        values = {name: value for name, value in graph.results(images, compute) if name in graph.outputs}
    for name, wanted in zip(graph.outputs, expected, strict=True):
        difference = (values[name] - wanted).abs().max()
        # Numbers that are not finite are told of in calibration, with the layer they come from.
        if torch.isfinite(wanted).all() and difference > _TOLERANCE * wanted.abs().max():
            raise QuantizationError(
                f"{name}: without batch norms the network gives numbers that differ by {float(difference):.3g}; "
                "it may change a tensor in place that is read again: replace such operators (inplace=True, +=)"
            )


class _Tracer(fx.Tracer):
    """Remembers the innermost module that could not be traced."""

    failed = ""

    def call_module(self, m: nn.Module, forward: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Trace `m`."""
        try:
            return super().call_module(m, forward, args, kwargs)
        except _CODE_ERRORS:
            self.failed = self.failed or f"{self.path_of_module(m)} ({type(m).__name__})"
            raise


def _traced(network: nn.Module) -> fx.Graph:
    tracer = _Tracer()
    try:
        return tracer.trace(network)
    except _CODE_ERRORS as error:
        where = (tracer.failed or type(network).__name__).removeprefix(_PREFIX)
        raise QuantizationError(
            f"{where}: torch.fx cannot trace it ({_cause(error)}); "
            "rewrite what depends on data, or use a network without it"
        ) from error


def _cause(error: Exception) -> str:
    """The kind of an error and the first sentence of what it says, if anything."""
    said = str(error).strip().split(". ")[0].splitlines()
    return f"{type(error).__name__}: {said[0]}" if said else type(error).__name__


class _Shapes(fx.Interpreter):
    """Runs a network once and keeps the shapes of its tensors, and whatever else it computes.

    Attributes:
        found: By node.
        at: The node that runs, by its path.
    """

    def __init__(self, traced: fx.GraphModule) -> None:
        super().__init__(traced, garbage_collect_values=True)
        # Errors keep their words.
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
    """One pass over the operators.

    Attributes:
        example: Images (B, C, H, W) of noise.
        outputs: What the network gives for them.
    """

    def __init__(self, traced: fx.GraphModule, image_shape: tuple[int, int, int]) -> None:
        self.example = torch.rand(_EXAMPLES, *image_shape, generator=torch.Generator().manual_seed(0))
        self.outputs: tuple[Tensor, ...] = ()
        self._traced = traced
        self._builder = Builder()
        self._values: dict[fx.Node, Any] = {}

    def run(self) -> Graph:
        """The graph, not yet merged."""
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
                "give the channels, height and width it takes, or mend what fails there"
            ) from error
        self.outputs = tuple(given) if isinstance(given, list | tuple) else (given,)
        return shapes.found

    def _value(self, node: fx.Node, result: Any) -> Any:
        """What stands for the result of a node: a `Ref` for each tensor of the network."""
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
        if found is None:
            raise call.refusal("is an operator")
        return found[0](self._builder, call)

    def _graph(self, node: fx.Node) -> Graph:
        given = fx.node.map_arg(node.args[0], self._values.__getitem__)
        is_single = isinstance(given, Ref)
        outputs = [given] if is_single else list(given) if isinstance(given, list | tuple) else []
        if not outputs or not all(isinstance(output, Ref) for output in outputs):
            raise QuantizationError(
                f"the network gives {type(given).__name__}, expected a tensor or a list or tuple of tensors"
            )
        names = tuple(output.name for output in outputs if isinstance(output, Ref))
        return Graph(nodes=self._builder.nodes, outputs=names, is_single=is_single)


def _path_of(node: fx.Node) -> str:
    """The path of a module; of a function that of the module around it and its own name."""
    if node.op == "call_module":
        return str(node.target).removeprefix(_PREFIX)
    around = list(node.meta.get("nn_module_stack", {}).values())
    scope = f"{around[-1][0]}." if around and around[-1][0] else ""
    return f"{scope}{operator_name(node)}".removeprefix(_PREFIX)


def _attribute(root: nn.Module, path: str) -> Any:
    value: Any = root
    for part in path.split("."):
        value = getattr(value, part)
    return value


def _shapes_of(result: Any) -> tuple[tuple[int, ...], ...]:
    """Shapes of the tensors in a result; empty where it holds none."""
    items = result if isinstance(result, list | tuple) else (result,)
    return tuple(tuple(item.shape) for item in items if isinstance(item, Tensor))
