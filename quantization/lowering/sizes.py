"""Find the sizes of images that a lowered network holds for, by lowering it at others and comparing.

Lowering turns what the code of a network computes from the size of its images into constants: windows of adaptive
pooling, ends of slices, factors of upsampling. Where those of another size differ, the network holds for one size.
"""

from __future__ import annotations

from itertools import zip_longest

import torch
from torch import Tensor, fx, nn

from models.copies import twin_without_numbers
from models.operators import ACTIVATIONS, module_operator
from quantization.lowering.graph import Function, Graph, Node
from quantization.lowering.one_size import CODE_ERRORS, Lowering, NotTakenError
from utils.errors import QuantizationError

# By how many pixels other sizes differ. Strides of 1 to 128 are powers of two; a constant of another kind, such as
# three windows in a row, differs at all of these. The last two show limits beyond the usual sizes and are no results.
_STEPS = (*(2**power for power in range(8)), 512, 4096)
_MOST_STEP = 128
# Sides of the smallest images that numbers are compared on.
_LEAST_SIDE = 64
# Operators whose results are shaped as their input.
_KEEP_SHAPES = ACTIVATIONS.keys() | {"batch_norm"}
# Arguments on which functions of one tensor are compared.
_POINTS = torch.linspace(-8, 8, 257)


class OtherSizes:
    """Lowers a network at other sizes, without its numbers if it runs without them."""

    def __init__(self, traced: fx.GraphModule, given: Graph, *, allow_opaque: bool) -> None:
        """Prepare a network.

        Args:
            traced: Network that the graph was lowered from.
            given: Graph before merging.
            allow_opaque: Whether it may have opaque nodes.
        """
        self._traced, self._given, self._allow_opaque = traced, given, allow_opaque
        self._stand_in: nn.Module | None = _shapes_alone(twin_without_numbers(traced))
        try:
            is_alike = self._unlike(*given.image_shape[1:]) == ""
        except CODE_ERRORS:
            is_alike = False
        if not is_alike:  # as with tensors that are neither parameters nor buffers, which have numbers
            self._stand_in = None

    def step(self) -> tuple[int, str]:
        """Return by multiples of how many pixels images may be higher or wider.

        Returns:
            The step, 0 if no other size is taken, and the name of a node that another size changes, or "".
        """
        height, width = self._given.image_shape[1:]
        found, changed = 0, ""
        steps = [step for step in _STEPS if self._stand_in is not None or step <= _MOST_STEP]
        for step in reversed(steps):
            unlike = self._unlike(height + step, width + 2 * step)
            if unlike:
                changed = unlike
                break
            found = step if unlike is not None else found
        while found and (unlike := self._unlike(height, width + found)):
            found, changed = next((step for step in steps if step > found), 0), unlike
        return found if found <= _MOST_STEP else 0, changed

    def to_compare(self, step: int) -> tuple[int, int, int]:
        """Return the shape of images, small if the network takes such, on which its numbers can be compared."""
        channels, height, width = self._given.image_shape
        sides = [side - step * max(0, (side - _LEAST_SIDE) // step) for side in (height, width)]
        small = (channels, sides[0], sides[1] + step)
        if small != self._given.image_shape and self._unlike(*small[1:]) == "":
            return small
        return channels, height + step, width + 2 * step

    def _unlike(self, height: int, width: int) -> str | None:
        """Return the name of a node that this size changes; "" if none does, None if the network does not take it."""
        try:
            return _unlike_node(self._given, self._lowered(height, width))
        except NotTakenError:
            return None
        except QuantizationError as error:
            return str(error).split(":")[0]

    def _lowered(self, height: int, width: int) -> Graph:
        """Lower the network.

        Raises:
            NotTakenError: It does not run on images of this size.
            QuantizationError: It has an operator without an integer form at this size.
        """
        shape = (self._given.image_shape[0], height, width)
        return Lowering(self._traced, shape, allow_opaque=self._allow_opaque, stand_in=self._stand_in).run()


def _shapes_alone(network: nn.Module) -> nn.Module:
    """Replace modules that keep shapes, which torch is slow to compute the shapes of; changes `network`."""
    for parent in list(network.modules()):
        for name, child in parent.named_children():
            if module_operator(type(child)) in _KEEP_SHAPES:
                setattr(parent, name, nn.Identity())
    return network


def _unlike_node(one: Graph, other: Graph) -> str:
    """Return the name of the first node of a graph that differs from the other's; "" if none does."""
    for node, twin in zip_longest(one.nodes.values(), other.nodes.values()):
        if node is None or twin is None or not _is_same_node(node, twin):
            return (node or twin).name
    return "" if one.outputs == other.outputs else one.outputs[0]


def _is_same_node(one: Node, other: Node) -> bool:
    """Return whether two nodes compute the same; the area of a mean over whole maps may differ."""
    fields = ("name", "kind", "inputs", "settings", "clamp")
    return (
        all(getattr(one, name) == getattr(other, name) for name in fields)
        and all(_is_same_tensor(*pair) for pair in ((one.weight, other.weight), (one.bias, other.bias)))
        and (one.kind == "opaque" or _is_same_function(one.function, other.function))
    )


def _is_same_tensor(one: Tensor | None, other: Tensor | None) -> bool:
    if one is None or other is None:
        return one is other
    is_itself = one.data_ptr() == other.data_ptr() and one.stride() == other.stride()
    return one.shape == other.shape and (is_itself or torch.equal(one, other))


@torch.no_grad()
def _is_same_function(one: Function | None, other: Function | None) -> bool:
    if one is None or other is None or one is other:
        return one is other
    values, others = (function(_POINTS.clone()) for function in (one, other))
    return torch.allclose(values, others, rtol=0, atol=0, equal_nan=True)
