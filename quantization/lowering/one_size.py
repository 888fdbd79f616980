"""One pass over the operators of a traced network, at one size of images."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn

from quantization.lowering.building import Builder, Call, Ref, opaque
from quantization.lowering.graph import INPUT, Graph
from quantization.lowering.operators import function_call, module_call, operator_name
from utils.errors import QuantizationError

# Errors of code that meets unexpected values. While tracing, values are stand-ins without data, so branches, loops
# and lengths that depend on data raise these.
CODE_ERRORS = (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
# Prefix that models.prepare.ExportNetwork adds to the paths of a detector.
PREFIX = "detector."
# More than one image: a size of 1 would hide which dimension is the batch.
_EXAMPLES = 2


class NotTakenError(QuantizationError):
    """The network does not run on images of this shape."""


class RefusedError(QuantizationError):
    """Something in the code of a module cannot be lowered.

    Attributes:
        module: Path of the innermost module whose code it is, in the traced network.
    """

    def __init__(self, message: str, *, module: str) -> None:
        super().__init__(message)
        self.module = module


def cause(error: Exception) -> str:
    """Return the type of an error and the first sentence of its message, if any."""
    said = str(error).strip().split(". ")[0].splitlines()
    return f"{type(error).__name__}: {said[0]}" if said else type(error).__name__


class _Shapes(fx.Interpreter):
    """Runs a network once and records the shapes of its tensors, and all other values it computes.

    Attributes:
        found: Recorded values by node; tensors are on the meta device.
        at: Path of the node that runs.
    """

    def __init__(self, network: nn.Module, graph: fx.Graph) -> None:
        super().__init__(network, garbage_collect_values=True, graph=graph)
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


class Lowering:
    """One pass over the operators of a traced network.

    Attributes:
        example: Images of noise (B, C, H, W), or their shape on the meta device.
        outputs: Outputs of the network for the example.
    """

    def __init__(
        self,
        traced: fx.GraphModule,
        image_shape: tuple[int, int, int],
        *,
        allow_opaque: bool,
        stand_in: nn.Module | None = None,
    ) -> None:
        """Prepare a pass.

        Args:
            traced: Network.
            image_shape: Shape of an image (C, H, W).
            allow_opaque: Whether modules with operators that have no integer form become opaque nodes.
            stand_in: Network without numbers that is run in place of `traced`, which only tells shapes.
        """
        if stand_in is None:
            self.example = torch.rand(_EXAMPLES, *image_shape, generator=torch.Generator().manual_seed(0))
        else:
            self.example = torch.empty(_EXAMPLES, *image_shape, device="meta")
        self.outputs: tuple[Tensor, ...] = ()
        self._image_shape = image_shape
        self._runs = traced if stand_in is None else stand_in
        self._traced = traced
        self._allow_opaque = allow_opaque
        self._builder = Builder()
        self._values: dict[fx.Node, Any] = {}

    def run(self) -> Graph:
        """Build the graph, before merging.

        Raises:
            NotTakenError: The network does not run on such images.
            RefusedError: The code of a module cannot be lowered.
        """
        results = self._run_example()
        for node in self._traced.graph.nodes:
            if node.op == "output":
                return self._graph(node)
            self._values[node] = self._value(node, results[node])
        raise AssertionError("a graph of torch.fx ends with its output")

    def _run_example(self) -> dict[fx.Node, Any]:
        shapes = _Shapes(self._runs, self._traced.graph)
        try:
            with torch.no_grad():
                # Some networks change their images in place.
                given = shapes.run(self.example.clone())
        except CODE_ERRORS as error:
            shape = tuple(self.example.shape[1:])
            raise NotTakenError(
                f"{shapes.at}: the network does not run on images of shape {shape} ({cause(error)}); "
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
        return Graph(nodes=self._builder.nodes, outputs=names, is_single=is_single, image_shape=self._image_shape)


def _module_of(node: fx.Node) -> str:
    """Return the path of the innermost module whose code calls a node."""
    around = list(node.meta.get("nn_module_stack", {}).values())
    return str(around[-1][0]) if around else ""


def _path_of(node: fx.Node) -> str:
    """Return the path of a module, or for a function its name within the path of the surrounding module."""
    if node.op == "call_module":
        return str(node.target).removeprefix(PREFIX)
    scope = _module_of(node)
    return f"{scope}.{operator_name(node)}".removeprefix(PREFIX) if scope else operator_name(node)


def _attribute(root: nn.Module, path: str) -> Any:
    value: Any = root
    for part in path.split("."):
        value = getattr(value, part)
    return value


def _shapes_of(result: Any) -> tuple[tuple[int, ...], ...]:
    """Return the shapes of the tensors in a result; empty if there are none."""
    items = result if isinstance(result, list | tuple) else (result,)
    return tuple(tuple(item.shape) for item in items if isinstance(item, Tensor))
