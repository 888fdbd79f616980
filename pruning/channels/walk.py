"""Walk over a traced network: run each operator on tensors of the right shape and ask its rule for the channels."""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from models.copies import tensors_by_name
from models.operators import KEYWORDS, full_name
from pruning.channels.layer_rules import READS_ALL, weight_axes
from pruning.channels.norms_after import NormAfter, norms_after
from pruning.channels.operators import follows_counts, reads_anything, rule_of
from pruning.channels.recording import (
    Call,
    Channels,
    Count,
    LayerRecord,
    Recording,
    Stored,
    Tracked,
    UnknownOperator,
    counts_in,
    tracked_in,
)
from pruning.channels.stand_in import output_shape
from pruning.channels.trace import traced_with_widths
from utils.errors import PruningError

# Errors of code that does not get what it expects.
_FAILURES = (TypeError, ValueError, AttributeError, LookupError, AssertionError, NotImplementedError)

# Names of the two outputs of `torch.max` and the like along a dimension.
_PARTS = ("values", "indices")


def record(network: nn.Module, inputs: Sequence[Tensor]) -> tuple[Recording, dict[str, tuple[NormAfter, ...]]]:
    """Trace a network and follow its channels.

    Args:
        network: Network in evaluation mode.
        inputs: Tensors (B, C, ...) on the device of the network; B is 2 or more.

    Returns:
        The recording, and for layers without a bias whose output only batch norms read, those norms by layer path.

    Raises:
        PruningError: The network cannot be traced, or its code fails on tensors whose channels are followed.
        RuntimeError: An operator cannot run on such images.
    """
    graph, widths_read = traced_with_widths(network)
    _check_inputs(network, graph, len(inputs))
    walk = _Walk(network, graph, inputs[0].device)
    try:
        with torch.no_grad():
            walk.run(*inputs)
    except _FAILURES as error:
        cause = str(error).strip().split("\n")[0]
        raise PruningError(
            f"{type(network).__name__}: {walk.place} cannot be followed ({type(error).__name__}: {cause}); move it "
            "into a block of its own that torch.fx does not enter, or prune the parts of the network"
        ) from error
    walk.protect_shared_tensors()
    walk.protect_widths(widths_read)
    return walk.recording, walk.norms_after()


def _check_inputs(network: nn.Module, graph: fx.Graph, given: int) -> None:
    """Raise a PruningError unless each input of a network without a default is given."""
    names = [node.target for node in graph.nodes if node.op == "placeholder" and not node.args]
    if len(names) > given:
        raise PruningError(
            f"{type(network).__name__} takes {len(names)} inputs ({', '.join(map(str, names))}), {given} given; "
            "give the shape of each as input_shapes"
        )


class _Walk(fx.Interpreter):
    """Interpreter that replaces tensors whose channels are known by `Tracked`, and their numbers by `Count`.

    Attributes:
        recording: Record of the nodes so far.
        place: Operator that runs, for people.
    """

    def __init__(self, network: nn.Module, graph: fx.Graph, device: torch.device) -> None:
        super().__init__(network, garbage_collect_values=False, graph=graph)
        self.recording = Recording()
        self.place = "the network"
        self._device = device
        # Of several names of a tensor the first, which is that of the layer it belongs to.
        self._names = {id(tensor): name for name, tensor in reversed(tensors_by_name(network).items())}
        # Uses of each tensor, by identity: a cut for one of several uses would affect the others.
        self._uses: Counter[int] = Counter()
        self._called: dict[str, None] = {}

    def run_node(self, n: fx.Node) -> Any:
        """Return the value of one node, channels included."""
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        if n.op == "output":
            self._protect(args, "output")
            return None
        if n.op == "placeholder":
            return self._input(super().run_node(n))
        if n.op == "get_attr":
            return self._stored(n, super().run_node(n))
        if n.target is operator.getitem and isinstance(args[0], tuple | list | dict):
            return args[0][args[1]]
        if n.target is getattr and isinstance(args[0], tuple) and args[1] in _PARTS:
            return args[0][_PARTS.index(args[1])]
        module = self._module_of(n)
        self.place = _described(n, module)
        rule = rule_of(n, module)
        if any(counts_in((args, kwargs))) and not follows_counts(rule):
            return self._counted(n, args, kwargs)
        output = self._output(n, args, kwargs)
        if not any(tracked_in((args, kwargs))) and not reads_anything(rule):
            return output
        call = Call(
            node=n,
            module=module,
            args=args,
            kwargs={KEYWORDS.get(name, name): value for name, value in kwargs.items()},
            output=output,
            recording=self.recording,
            owner_of=self.module.get_submodule,
        )
        try:
            if rule is None:
                raise UnknownOperator("unknown operator")
            if module is not None:
                self._called[str(n.target)] = None
            return _with_channels(output, rule(call))
        except UnknownOperator as unknown:
            return self._give_up(call, f"{self.place}: {unknown}")

    def _output(self, n: fx.Node, args: Any, kwargs: Any) -> Any:
        """Return the output of a node; for a convolution only zeros of the right shape, which saves time."""
        args, kwargs = _plain(args), _plain(kwargs)
        module = self._module_of(n)
        if isinstance(module, nn.Conv2d) and type(module).forward is nn.Conv2d.forward and not kwargs:
            return args[0].new_zeros(output_shape(module, args[0]))
        if n.op == "call_method" and isinstance(args[0], tuple):
            # A shape has methods that a tuple lacks.
            args = (torch.Size(args[0]), *args[1:])
        output = getattr(self, n.op)(n.target, args, kwargs)
        return tuple(output) if isinstance(output, torch.Size) else output

    def _stored(self, n: fx.Node, value: Any) -> Any:
        """Return a parameter or buffer under its name; if it is a list of values, with ids of its own."""
        if not isinstance(value, Tensor):
            return value
        name = self._names.get(id(value))
        tensor = value.to(self._device)
        if name is None:
            return tensor
        wide = [dimension for dimension, size in enumerate(value.shape) if size > 1]
        if len(wide) > 1:
            self._uses[id(value)] += len(n.users)
        if len(wide) != 1:
            return Stored(tensor=tensor, name=name)
        ids = self.recording.ids.new(value.shape[wide[0]])
        self.recording.add_stored(name, wide[0], ids)
        return Tracked(tensor=tensor, channels=Channels(ids=ids, axis=wide[0]), stored=name)

    def _counted(self, n: fx.Node, args: Any, kwargs: Any) -> Any:
        """Compute with counts of channels: a multiple or part of one is a count again, else what it counts stays."""
        if (scaled := _scaled(n.target, args)) is not None:
            return scaled
        for count in counts_in((args, kwargs)):
            self.recording.ids.protect(count.ids, f"{self.place}: its channel count is used in a computation")
        self._protect((args, kwargs), f"{self.place}: its channel count is used in a computation")
        return self._output(n, args, kwargs)

    def protect_shared_tensors(self) -> None:
        """Tie tensors that belong to layers with their channels; protect layers whose tensors have further uses."""
        layers, ids = self.recording.layers, self.recording.ids
        own = tensors_by_name(self.module)
        for name, channels in self.recording.stored.items():
            if self._uses[id(own[name])] > self.recording.stored_uses[name]:
                ids.protect(channels.ids, f"{name} is used by other means than its channels")
            if (owner := layers.get(name.rpartition(".")[0])) is not None:
                self._tie_to_layer(name, channels, owner)
        owned = {name: _tensors_of(layer.module) for name, layer in layers.items()}
        self._uses.update(id(tensor) for name, tensors in owned.items() if name in self._called for tensor in tensors)
        for name, tensors in owned.items():
            if any(self._uses[id(tensor)] > 1 for tensor in tensors):
                for each in (layers[name].input_ids, layers[name].output_ids):
                    ids.protect(each, "its weight is used in more than one place")

    def _tie_to_layer(self, name: str, channels: Channels, owner: LayerRecord) -> None:
        """Tie a tensor of a layer, used outside of it, with the channels that it has a value for."""
        reads = name.endswith(".weight") and owner.kind in READS_ALL and channels.axis == weight_axes(owner.kind)[1]
        ids = owner.input_ids if reads else owner.output_ids
        if ids.shape == channels.ids.shape:
            self.recording.ids.tie(channels.ids, ids)
        else:
            for each in (channels.ids, owner.input_ids, owner.output_ids):
                self.recording.ids.protect(each, f"{name} is used outside of its layer")

    def protect_widths(self, places: Sequence[tuple[str, str]]) -> None:
        """Protect the channels of layers whose width the code of the network reads: path and attribute of each."""
        for name, attribute in places:
            layer = self.recording.layers.get(name)
            if layer is not None:
                ids = layer.input_ids if attribute.startswith("in_") else layer.output_ids
                self.recording.ids.protect(ids, f"the code reads {name}.{attribute}")

    def norms_after(self) -> dict[str, tuple[NormAfter, ...]]:
        """Find the batch norms behind each layer of this pass; see `pruning.channels.norms_after`."""
        return norms_after(self.graph, self.recording, module_of=self._module_of, value_of=self.env.__getitem__)

    def _module_of(self, node: fx.Node) -> nn.Module | None:
        return self.submodules[str(node.target)] if node.op == "call_module" else None

    def _give_up(self, call: Call, reason: str) -> Any:
        """Protect all channels that reach an operator, and follow none through it."""
        self._protect((call.args, call.kwargs), reason)
        if call.module is not None:
            self._uses.update(id(parameter) for parameter in call.module.parameters())
        return call.output

    def _protect(self, values: Any, reason: str) -> None:
        for tracked in tracked_in(values):
            self.recording.ids.protect(tracked.ids, reason)

    def _input(self, value: Any) -> Any:
        """Give the channels of an input, which must stay, their ids."""
        if not isinstance(value, Tensor) or value.ndim < 2:
            return value
        ids = self.recording.ids.new_protected(value.shape[1], "input")
        return Tracked(tensor=value, channels=Channels(ids=ids, axis=1))


def _scaled(target: Any, args: tuple[Any, ...]) -> Count | None:
    """Return a whole multiple or part of a count, if that is what is computed."""
    if target not in (operator.mul, operator.floordiv) or len(args) != 2:
        return None
    count, by = args[::-1] if target is operator.mul and isinstance(args[1], Count) else args
    if not isinstance(count, Count) or type(by) is not int or by <= 0:
        return None
    scale = count.scale * by if target is operator.mul else count.scale / by
    return Count.of(count.ids, scale) if (len(count.ids) * scale).denominator == 1 else None


def _tensors_of(module: nn.Module) -> list[Tensor]:
    """List the parameters and buffers of a layer that have values per channel."""
    own = (*module.parameters(recurse=False), *module.buffers(recurse=False))
    return [tensor for tensor in own if tensor.ndim]


def _plain(values: Any) -> Any:
    """Return arguments as operators take them."""

    def plain(value: Any) -> Any:
        if isinstance(value, Tracked | Stored):
            return value.tensor
        return int(value) if isinstance(value, Count) else value

    return fx.node.map_aggregate(values, plain)


def _with_channels(output: Any, found: Any) -> Any:
    """Combine an operator's output with what its rule returned.

    Raises:
        UnknownOperator: The number of channels differs from the rule's.
    """
    if found is None:
        return output
    if isinstance(found, tuple):
        return tuple(_with_channels(part, each) for part, each in zip(output, found, strict=True))
    if not isinstance(found, Channels):
        return found
    if not isinstance(output, Tensor) or output.ndim <= found.axis or output.shape[found.axis] != len(found.ids):
        raise UnknownOperator("its output is not one tensor with the expected channels")
    return Tracked(tensor=output, channels=found)


def _described(node: fx.Node, module: nn.Module | None) -> str:
    """Describe an operator and its place in the network for people."""
    if module is not None:
        return f"{node.target} ({type(module).__name__})"
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    target = node.target
    return f"{full_name(target) if callable(target) else target} in {stack[-1][0] if stack else 'the network'}"
