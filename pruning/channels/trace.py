"""Trace the operators of a network with torch.fx."""

from __future__ import annotations

from typing import Any

from torch import fx, nn

from pruning.channels.operators import module_rule
from utils.errors import PruningError

# Errors of tracing a block that reads values of a tensor: branches, loops and lengths that depend on data.
_UNTRACEABLE = (fx.proxy.TraceError, TypeError, RuntimeError)


class BlockTracer(fx.Tracer):
    """Tracer that enters every module except those that have a rule and those that cannot be traced."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Return whether `m` is one operator of the graph."""
        return module_rule(m) is not None or super().is_leaf_module(m, module_qualified_name)

    def call_module(self, m: nn.Module, forward: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Trace `m`; if that fails, turn its innermost untraceable block into one operator without a rule."""
        last = _last_node(self.graph)
        try:
            return super().call_module(m, forward, args, kwargs)
        except _UNTRACEABLE:
            # Remove the operators of the block that were traced before it failed.
            while (node := _last_node(self.graph)) is not last:
                self.graph.erase_node(node)
            return self.create_proxy("call_module", self.path_of_module(m), args, kwargs)


def traced(network: nn.Module) -> fx.Graph:
    """Trace the operators of a network.

    Raises:
        PruningError: The network's own `forward`, outside of any block, cannot be traced.
    """
    try:
        return BlockTracer().trace(network)
    except _UNTRACEABLE as error:
        cause = str(error).split(". ")[0]
        raise PruningError(
            f"{type(network).__name__}: its own forward cannot be traced ({cause}); "
            "move what depends on data into a block of its own"
        ) from error


def _last_node(graph: fx.Graph) -> fx.Node:
    node: fx.Node = next(iter(reversed(graph.nodes)))
    return node
