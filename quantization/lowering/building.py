"""The description of an operator that lowering rules receive, and the builder that they add nodes to."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map

from quantization.lowering.graph import INPUT, Node
from utils.errors import QuantizationError


@dataclass(frozen=True, kw_only=True)
class Ref:
    """A tensor of the network while it is lowered.

    Attributes:
        name: Name of the node that computes it.
        shape: Shape, including the batch of the example images.
    """

    name: str
    shape: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Call:
    """One operator of the traced network, a module or a function.

    Attributes:
        name: Unique name for its node.
        operator: Type of the operator for messages, such as "MaxPool2d" or "cat".
        arguments: Arguments by the names of torch's functions; tensors of the network are a `Ref`.
        shapes: Shape of each result.
    """

    name: str
    operator: str
    arguments: Mapping[str, Any]
    shapes: tuple[tuple[int, ...], ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the only result."""
        return self.shapes[0]

    @property
    def source(self) -> Ref:
        """Input tensor.

        Raises:
            QuantizationError: The input is a constant.
        """
        found = self.arguments.get("input")
        if not isinstance(found, Ref):
            raise self.refusal("works on no result of the network")
        return found

    def get(self, name: str, default: Any = None) -> Any:
        """Return an argument, or the default if it is not given."""
        return self.arguments.get(name, default)

    def pair(self, name: str, default: Any = None) -> tuple[int, int]:
        """Return an argument that is one integer for height and width, or one for each."""
        value = self.get(name, default)
        both = tuple(value) if isinstance(value, list | tuple) else (value, value)
        if len(both) == 1:
            both = both * 2
        if len(both) != 2 or not all(isinstance(side, int) for side in both):
            raise self.refusal(f"has {name} {value!r}")
        return both

    def part(self, suffix: str, source: Ref) -> Call:
        """Return a call for an intermediate result, with input `source` and its shape."""
        return replace(self, name=f"{self.name}.{suffix}", arguments={"input": source}, shapes=(source.shape,))

    def refusal(self, finding: str) -> QuantizationError:
        """Build the error for an operator that has no integer form here."""
        return QuantizationError(
            f"{self.name}: {self.operator} {finding}, which has no integer form here; "
            "replace the operator, or leave it out of the network that is quantised"
        )


class Builder:
    """Collects the nodes of a graph under unique names."""

    def __init__(self) -> None:
        self.nodes: dict[str, Node] = {INPUT: Node(name=INPUT, kind="input", inputs=())}
        self._names: set[str] = {INPUT}

    def unique(self, name: str) -> str:
        """Return the name, with a suffix if it is taken, since a module may be called several times."""
        found, number = name, 2
        while found in self._names:
            found, number = f"{name}@{number}", number + 1
        self._names.add(found)
        return found

    def add(self, node: Node, shape: tuple[int, ...]) -> Ref:
        """Add a node, whose weights must be detached, and return a reference to its result."""
        for tensor in (node.weight, node.bias):
            assert tensor is None or not tensor.requires_grad
        self.nodes[node.name] = node
        return Ref(name=node.name, shape=shape)


Rule: TypeAlias = Callable[[Builder, Call], Any]


def opaque(
    build: Builder, call: Call, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], *, result: Any
) -> Any:
    """Add a module that is called as it is, one node for each tensor that it returns.

    Args:
        build: Builder of the graph.
        call: Call of the module.
        module: The module.
        args, kwargs: Arguments of the call; tensors of the network are a `Ref`.
        result: Result for the example, with any tensors.

    Returns:
        The result with a `Ref` for each tensor.
    """
    refs = list(dict.fromkeys(item for item in tree_flatten((args, kwargs))[0] if isinstance(item, Ref)))

    def run(tensors: Sequence[Tensor]) -> list[Tensor]:
        value_of = dict(zip(refs, tensors, strict=True))
        given, named = tree_map(lambda item: value_of[item] if isinstance(item, Ref) else item, (args, kwargs))
        return [item for item in tree_flatten(module(*given, **named))[0] if isinstance(item, Tensor)]

    def add(item: Any) -> Any:
        if not isinstance(item, Tensor):
            return item
        index = len(made)
        made.append(call.name if index == 0 else build.unique(f"{call.name}.{index}"))
        node = Node(
            name=made[index],
            kind="opaque",
            inputs=tuple(ref.name for ref in refs),
            function=lambda *tensors: run(tensors)[index],
            # Not needed to run it; they show whether it depends on the size of the images.
            settings={"numbers": tuple(item for item in tree_flatten((args, kwargs))[0] if isinstance(item, int))},
        )
        return build.add(node, tuple(item.shape))

    made: list[str] = []
    return tree_map(add, result)


def addresses(*tensors: Tensor | None) -> tuple[int, ...]:
    """Return where tensors are in memory, 0 for None."""
    return tuple(0 if tensor is None else tensor.data_ptr() for tensor in tensors)


def constant(value: Tensor) -> Tensor:
    """Return a parameter or buffer of the network, which is a copy that nothing else uses, without gradient."""
    return value.detach()


def constant_or_zeros(value: Tensor | None, length: int, like: Tensor) -> Tensor:
    """Return a bias without gradient, or zeros if there is none."""
    return constant(value) if value is not None else torch.zeros(length, dtype=like.dtype)
