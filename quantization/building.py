"""What rules of lowering are told of an operator, and what they build with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor

from quantization.graph import INPUT, Node
from utils.errors import QuantizationError


@dataclass(frozen=True, kw_only=True)
class Ref:
    """A tensor of the network while it is lowered.

    Attributes:
        name: Of the node that gives it.
        shape: With the batch of the example.
    """

    name: str
    shape: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Call:
    """One operator of the traced network, modules and functions alike.

    Attributes:
        name: For its node, unique.
        operator: What it is, for messages: "MaxPool2d", "cat".
        arguments: By the names of torch's functions; tensors of the network are a `Ref`.
        shapes: Of its result, or of each of its results.
    """

    name: str
    operator: str
    arguments: Mapping[str, Any]
    shapes: tuple[tuple[int, ...], ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Of its one result."""
        return self.shapes[0]

    @property
    def source(self) -> Ref:
        """The tensor it works on.

        Raises:
            QuantizationError: That is a constant.
        """
        found = self.arguments.get("input")
        if not isinstance(found, Ref):
            raise self.refusal("works on no result of the network")
        return found

    def get(self, name: str, default: Any = None) -> Any:
        """An argument, or the default where it is not given."""
        return self.arguments.get(name, default)

    def pair(self, name: str, default: Any = None) -> tuple[int, int]:
        """An argument that is one number for height and width, or one each."""
        value = self.get(name, default)
        both = tuple(value) if isinstance(value, list | tuple) else (value, value)
        if len(both) == 1:
            both = both * 2
        if len(both) != 2 or not all(isinstance(side, int) for side in both):
            raise self.refusal(f"has {name} {value!r}")
        return both

    def part(self, suffix: str, source: Ref) -> Call:
        """A step towards the result, on `source` and of its shape."""
        return replace(self, name=f"{self.name}.{suffix}", arguments={"input": source}, shapes=(source.shape,))

    def refusal(self, finding: str) -> QuantizationError:
        """The error of an operator that has no integer form here."""
        return QuantizationError(
            f"{self.name}: {self.operator} {finding}, which has no integer form here; "
            "put another operator in its place, or leave it out of the network that is quantised"
        )


class Builder:
    """Collects nodes."""

    def __init__(self) -> None:
        self.nodes: dict[str, Node] = {INPUT: Node(name=INPUT, kind="input", inputs=())}
        self._names: set[str] = {INPUT}

    def unique(self, name: str) -> str:
        """The name, with a number where it is taken: a module may be called several times."""
        found, number = name, 2
        while found in self._names:
            found, number = f"{name}@{number}", number + 1
        self._names.add(found)
        return found

    def add(self, node: Node, shape: tuple[int, ...]) -> Ref:
        """Take up a node; its weights become detached copies."""
        for tensor in (node.weight, node.bias):
            assert tensor is None or not tensor.requires_grad
        self.nodes[node.name] = node
        return Ref(name=node.name, shape=shape)


Rule: TypeAlias = Callable[[Builder, Call], Any]


def constant(value: Tensor) -> Tensor:
    """A copy of a parameter or buffer without history."""
    return value.detach().clone()


def constant_or_zeros(value: Tensor | None, length: int, like: Tensor) -> Tensor:
    """A copy of a bias, or zeros where there is none."""
    return constant(value) if value is not None else torch.zeros(length, dtype=like.dtype)
