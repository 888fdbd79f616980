"""Trace the operators of a network with torch.fx."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import fx, nn

from pruning.channels.operators import module_rule
from utils.errors import PruningError

# Errors of tracing a block that reads values of a tensor: branches, loops and lengths that depend on data.
_UNTRACEABLE = (
    *(fx.proxy.TraceError, TypeError, RuntimeError, AttributeError, NameError, LookupError, AssertionError),
    ValueError,
)
# Attributes by which layers tell their widths.
_WIDTHS = ("in_channels", "out_channels", "in_features", "out_features", "num_features")


class BlockTracer(fx.Tracer):
    """Tracer that enters every module except those that have a rule and those that cannot be traced.

    Attributes:
        widths_read: Path and attribute of each width of a layer that the traced code reads.
    """

    proxy_buffer_attributes = True

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.widths_read: list[tuple[str, str]] = []
        # Looked at before tracing, during which tensors of modules are no numbers.
        self._operators = {module for module in network.modules() if module_rule(module) is not None}

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Return whether `m` is one operator of the graph."""
        return m in self._operators or super().is_leaf_module(m, module_qualified_name)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        """Return an attribute of a module, and note if it is a width of a layer."""
        if isinstance(attr_val, _Width):
            self.widths_read.append((attr_val.path, attr))
            return int(attr_val)
        return super().getattr(attr, attr_val, parameter_proxy_cache)

    def call_module(self, m: nn.Module, forward: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Trace `m`; if that fails, turn its innermost untraceable block into one operator without a rule."""
        last, read, stack = _last_node(self.graph), len(self.widths_read), dict(self.module_stack)
        try:
            return super().call_module(m, forward, args, kwargs)
        except _UNTRACEABLE:
            # Remove the operators of the block that were traced before it failed.
            while (node := _last_node(self.graph)) is not last:
                self.graph.erase_node(node)
            del self.widths_read[read:]
            # An error leaves the blocks that were entered on the stack of the tracer.
            self.module_stack.clear()
            self.module_stack.update(stack)
            return self.create_proxy("call_module", self.path_of_module(m), args, kwargs)


def traced(network: nn.Module) -> fx.Graph:
    """Trace the operators of a network.

    Raises:
        PruningError: The network's own `forward`, outside of any block, cannot be traced.
    """
    return traced_with_widths(network)[0]


def traced_with_widths(network: nn.Module) -> tuple[fx.Graph, list[tuple[str, str]]]:
    """Trace the operators of a network, and see which widths its code reads.

    Returns:
        The graph, and path and attribute of each width of a layer that the network's code reads.

    Raises:
        PruningError: The network's own `forward`, outside of any block, cannot be traced.
    """
    tracer = BlockTracer(network)
    try:
        with _widths_as_buffers(network):
            return tracer.trace(network), tracer.widths_read
    except _UNTRACEABLE as error:
        cause = str(error).split(". ")[0]
        raise PruningError(
            f"{type(network).__name__}: its own forward cannot be traced ({cause}); "
            "move what depends on data into a block of its own"
        ) from error


class _Width(int):
    """A width of a layer, which knows the path of the layer."""

    path: str


@contextmanager
def _widths_as_buffers(network: nn.Module) -> Iterator[None]:
    """Let the tracer see reads of widths: it is asked for buffers, and not for plain attributes."""
    moved: list[tuple[nn.Module, str, int]] = []
    for path, module in network.named_modules():
        for name in _WIDTHS:
            if type(vars(module).get(name)) is int and module_rule(module) is not None:
                width = _Width(vars(module)[name])
                width.path = path
                moved.append((module, name, int(width)))
                del module.__dict__[name]
                module._buffers[name] = width
    try:
        yield
    finally:
        for module, name, value in moved:
            del module._buffers[name]
            module.__dict__[name] = value


def _last_node(graph: fx.Graph) -> fx.Node:
    node: fx.Node = next(iter(reversed(graph.nodes)))
    return node
