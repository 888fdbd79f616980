"""Walk over a traced network: run each operator on tensors of the right shape and ask its rule for the channels."""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn

from models.operators import KEYWORDS, full_name
from pruning.channels.ids import IntArray
from pruning.channels.norms_after import NormAfter, norms_after
from pruning.channels.operators import rule_of
from pruning.channels.recording import Call, Recording, Tracked, UnknownOperator
from pruning.channels.stand_in import output_shape
from pruning.channels.trace import traced


def record(network: nn.Module, images: Tensor) -> tuple[Recording, dict[str, tuple[NormAfter, ...]]]:
    """Trace a network and follow its channels.

    Args:
        network: Network in evaluation mode.
        images: (B, C, H, W) on the device of the network; B is 2 or more.

    Returns:
        The recording, and for layers without a bias whose output only batch norms read, those norms by layer path.

    Raises:
        PruningError: The network cannot be traced.
        RuntimeError: An operator cannot run on such images.
    """
    walk = _Walk(network, traced(network), images)
    with torch.no_grad():
        walk.run(images)
    walk.protect_shared_weights()
    return walk.recording, walk.norms_after()


class _Walk(fx.Interpreter):
    """Interpreter that replaces tensors whose channels are known by `Tracked`."""

    def __init__(self, network: nn.Module, graph: fx.Graph, images: Tensor) -> None:
        super().__init__(network, garbage_collect_values=False, graph=graph)
        self.recording = Recording()
        self._device = images.device
        # Uses of each parameter, by identity: a cut for one of several uses would affect the others.
        self._uses: Counter[int] = Counter()

    def run_node(self, n: fx.Node) -> Any:
        """Return the value of one node, channels included."""
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        if n.op == "output":
            self._protect(args, "output")
            return None
        if n.target is operator.getitem and not isinstance(args[0], Tracked):
            return args[0][args[1]]
        rule = None if n.op in ("placeholder", "get_attr") else rule_of(n, self._module_of(n))
        output = self._output(n, _without_ids(args), _without_ids(kwargs))
        if n.op == "placeholder":
            return self._with_fresh_ids(output, "input")
        if n.op == "get_attr":
            self._uses[id(output)] += 1
            return output.to(self._device) if isinstance(output, Tensor) else output
        if not any(_tracked_in((args, kwargs))):
            return output
        call = Call(
            node=n,
            module=self._module_of(n),
            args=args,
            kwargs={KEYWORDS.get(name, name): value for name, value in kwargs.items()},
            output=output,
            recording=self.recording,
            value_of=self.env.__getitem__,
        )
        try:
            if rule is None:
                raise UnknownOperator("unknown operator")
            return _with_ids(output, rule(call))
        except UnknownOperator as unknown:
            return self._give_up(call, f"{_described(call)}: {unknown}")

    def _output(self, n: fx.Node, args: Any, kwargs: Any) -> Any:
        """Return the output of a node; for a convolution only zeros of the right shape, which saves time."""
        module = self._module_of(n)
        if isinstance(module, nn.Conv2d) and not kwargs:
            return args[0].new_zeros(output_shape(module, args[0]))
        return getattr(self, n.op)(n.target, args, kwargs)

    def protect_shared_weights(self) -> None:
        """Protect the channels of layers whose weight has a second use, by another layer or by name."""
        layers = [layer for layer in self.recording.layers.values() if layer.module.weight is not None]
        self._uses.update(id(layer.module.weight) for layer in layers)
        for layer in layers:
            if self._uses[id(layer.module.weight)] > 1:
                for ids in (layer.input_ids, layer.output_ids):
                    self.recording.ids.protect(ids, "its weight is used in more than one place")

    def norms_after(self) -> dict[str, tuple[NormAfter, ...]]:
        """Find the batch norms behind each layer of this pass; see `pruning.channels.norms_after`."""
        layers = self.recording.layers
        return norms_after(self.graph, layers, module_of=self._module_of, value_of=self.env.__getitem__)

    def _module_of(self, node: fx.Node) -> nn.Module | None:
        return self.submodules[str(node.target)] if node.op == "call_module" else None

    def _give_up(self, call: Call, reason: str) -> Any:
        """Protect all channels that reach an operator, and give its output new, protected channels."""
        self._protect((call.args, call.kwargs), reason)
        if call.module is not None:
            self._uses.update(id(parameter) for parameter in call.module.parameters())
        return self._with_fresh_ids(call.output, reason)

    def _protect(self, values: Any, reason: str) -> None:
        for tracked in _tracked_in(values):
            self.recording.ids.protect(tracked.ids, reason)

    def _with_fresh_ids(self, values: Any, reason: str) -> Any:
        """Give tensors new, protected channels; return those without a channel dimension unchanged."""

        def track(value: Any) -> Any:
            if not isinstance(value, Tensor) or value.ndim < 2:
                return value
            ids = self.recording.ids.new(value.shape[1])
            self.recording.ids.protect(ids, reason)
            return Tracked(tensor=value, ids=ids)

        return fx.node.map_aggregate(values, track)


def _tracked_in(values: Any) -> Iterator[Tracked]:
    """Yield every tracked tensor in arguments, however nested."""
    if isinstance(values, Tracked):
        yield values
    elif isinstance(values, dict):
        yield from _tracked_in(tuple(values.values()))
    elif isinstance(values, list | tuple):
        for value in values:
            yield from _tracked_in(value)


def _without_ids(values: Any) -> Any:
    return fx.node.map_aggregate(values, lambda value: value.tensor if isinstance(value, Tracked) else value)


def _with_ids(output: Any, ids: IntArray | tuple[IntArray, ...] | None) -> Any:
    """Combine an operator's output with the ids that its rule returned.

    Raises:
        UnknownOperator: The number of channels differs from the rule's.
    """
    if ids is None:
        return output
    if isinstance(ids, tuple):
        return tuple(_with_ids(part, part_ids) for part, part_ids in zip(output, ids, strict=True))
    if not isinstance(output, Tensor) or output.ndim < 2 or output.shape[1] != len(ids):
        raise UnknownOperator("its output is not one tensor with the expected channels")
    return Tracked(tensor=output, ids=ids)


def _described(call: Call) -> str:
    """Describe an operator and its place in the network for people."""
    if call.module is not None:
        return f"{call.node.target} ({type(call.module).__name__})"
    stack = list((call.node.meta.get("nn_module_stack") or {}).values())
    target = call.node.target
    return f"{full_name(target) if callable(target) else target} in {stack[-1][0] if stack else 'the network'}"
