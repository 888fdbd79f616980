"""`QuantizedNetwork`: one network in floating point, with simulated rounding, and in integers only."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

from models.fingerprint import network_fingerprint
from quantization.assembly import Layer, operations_of
from quantization.execution.executor import Executor, run_program
from quantization.lowering.float_ops import computed
from quantization.lowering.graph import INPUT, MOVERS, Graph, Node
from quantization.lowering.lower import lower, tell_of_size
from quantization.places import Places, with_places
from quantization.program.program import Affine, IntegerProgram
from quantization.ranges.affine import (
    Grid,
    fake_bias,
    fake_quantise,
    fake_weight,
    integer_limits,
    weight_grid,
    weight_integers,
    within,
)
from quantization.ranges.bits import BitPlan, planned_bits
from quantization.ranges.config import QuantConfig
from quantization.ranges.learnt import LearntScales
from quantization.ranges.observers import Calibration
from utils.errors import QuantizationError

Mode: TypeAlias = Literal["float", "fake", "integer"]
# One tensor, or several if the network returns several.
Outputs: TypeAlias = Tensor | tuple[Tensor, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class _Prepared:
    """An integer program and the weights that it was made from.

    Attributes:
        state: Address and version of each weight.
        weights: The weights, kept so that no later tensor reuses the address of one of them.
        program: Program made from the weights.
        executor: Executor of the program.
    """

    state: tuple[tuple[int, int], ...]
    weights: tuple[Tensor, ...]
    program: IntegerProgram
    executor: Executor


class QuantizedNetwork(nn.Module):
    """A network whose parameters are real weights with batch norms folded in, under their old paths in `layers`.

    A layer that is used several times has one weight, in the place of its first use.

    Attributes:
        graph: Operations of the network.
        mode: Arithmetic of `forward`. float: floating point. fake: floating point, rounded wherever integers would
            be, with gradients that pass through the rounding. integer: integers between input and output, on the CPU.
        config: Settings of the quantisation.
        bits: Number of bits of each weight and value; those of `config` until `set_bits_`.
        fingerprint: Fingerprint of the network that it was made from.
        image_shape: Shape (C, H, W) of the images that it was made for.
        scales: Scales that train in fake mode, see `learn_scales_`; None where they are fixed or follow the weights.
    """

    scales: LearntScales | None

    def __init__(
        self, graph: Graph, *, config: QuantConfig, fingerprint: str, image_shape: tuple[int, int, int]
    ) -> None:
        super().__init__()
        self.layers = nn.Module()
        self.graph = with_places(self.layers, graph)
        self.places = Places(self.layers, self.graph)
        self.mode: Mode = "float"
        self.config = config
        self.bits = planned_bits(graph, config)
        self.fingerprint = fingerprint
        self.image_shape = image_shape
        self._calibration = Calibration(self.graph, config)
        self._affines: Mapping[str, Affine] = {}
        self._held_grids: dict[str, Grid] = {}
        self._prepared: _Prepared | None = None
        self.scales = None

    def weights(self, name: str) -> tuple[nn.Parameter, nn.Parameter]:
        """Return the weight and bias of a node that has some, without its gain; in units while scales train."""
        return self.places.weights(name)

    def real_weights(self, name: str) -> tuple[Tensor, Tensor]:
        """Return the weight and bias that a node computes with, not rounded."""
        weight, bias = self._layer_weights(name)
        return self.places.with_gain(name, weight), bias

    def _layer_weights(self, name: str) -> tuple[Tensor, Tensor]:
        """Return the weight of a node's layer, not in units, and the bias of the node."""
        weight, bias = self.weights(name)
        return weight if self.scales is None else weight * self.scales.unit(self.graph.layer_of(name), weight), bias

    @torch.no_grad()
    def calibrate(self, batches: Iterable[Tensor]) -> None:
        """Measure the range of every value on images; earlier calibration is discarded.

        Args:
            batches: Images (B, C, H, W), preprocessed for the network.

        Raises:
            DataError: There are no images, or a value becomes NaN or infinite.
        """
        calibration = Calibration(self.graph, self.config)
        for images in batches:
            for name, value in self._values(images, is_rounded=False):
                calibration.observe(name, value)
        self._calibration = calibration
        self.set_bits_(self.bits)

    def set_config_(self, config: QuantConfig) -> None:
        """Change the settings without calibrating anew.

        Raises:
            ConfigError: A pattern of `config.layers` matches no layer.
            DataError: The network is not calibrated.
        """
        bits = planned_bits(self.graph, config)
        self.config = config
        self._calibration = self._calibration.with_config(config)
        self.set_bits_(bits)

    def set_bits_(self, bits: BitPlan, *, grids: Mapping[str, Grid] | None = None) -> None:
        """Set the number of bits of each weight and value; with None it is not quantised in fake mode.

        Args:
            bits: Bits by name of the node.
            grids: Fixed scales of weights; see `hold_grid_`.

        Raises:
            DataError: The network is not calibrated.
        """
        self._affines = {
            name: self._calibration.affine(name, number) for name, number in bits.values.items() if number is not None
        }
        self.bits = bits
        self._held_grids = dict(grids or {})
        self._prepared = None

    def forward(self, images: Tensor) -> Outputs:
        """Compute the outputs for images (B, C, H, W), as floating point in every mode.

        Raises:
            QuantizationError: The mode is "integer" and the network is not calibrated, or has values without bits.
        """
        if self.mode == "integer":
            outputs = self._in_integers(images)
        else:
            wanted = set(self.graph.outputs)
            values = self._values(images, is_rounded=self.mode == "fake")
            found = {name: value for name, value in values if name in wanted}
            outputs = [found[name] for name in self.graph.outputs]
        return outputs[0] if self.graph.is_single else tuple(outputs)

    def rounded(self, node: Node, inputs: Sequence[Tensor]) -> Tensor:
        """Compute the result of a node in fake mode; the input node reads the images."""
        return self._result(node, inputs, is_rounded=True)

    def exact(self, node: Node, inputs: Sequence[Tensor]) -> Tensor:
        """Compute the result of a node in float mode; the input node reads the images."""
        return self._result(node, inputs, is_rounded=False)

    def _values(self, images: Tensor, *, is_rounded: bool) -> Iterator[tuple[str, Tensor]]:
        """Yield the name and result of every node, keeping each result only until its last use."""
        return self.graph.results(images, partial(self._result, is_rounded=is_rounded))

    def _result(self, node: Node, inputs: Sequence[Tensor], *, is_rounded: bool) -> Tensor:
        weights = None
        if node.name in self.bits.weights:
            weights = self.rounded_weights(node) if is_rounded else self.real_weights(node.name)
            read = self.rounded_input(node, inputs[0]) if is_rounded else inputs[0]
            inputs = [self.places[node.name](read)]
        result = computed(node, inputs, weights)
        return self.rounded_value(node.name, result) if is_rounded and self._rounds_result(node) else result

    def rounded_input(self, node: Node, value: Tensor) -> Tensor:
        """Return what a node with weights reads of a value in fake mode: values may be rounded by their readers."""
        if self.config.rounded == "values" or self.bits.weights[node.name] is None:
            return value
        return self.rounded_value(self.graph.scale_of(node.inputs[0]), value)

    def _rounds_result(self, node: Node) -> bool:
        """Return whether a node's result is rounded where it is made."""
        is_layer = self.bits.weights.get(node.name) is not None
        return {"values": node.kind not in MOVERS, "inputs": False, "ends": is_layer}[self.config.rounded]

    def rounded_value(self, name: str, value: Tensor) -> Tensor:
        """Round a value with the scale of a node, if that has one."""
        if self.scales is not None:
            return self.scales.rounded(name, value)
        affine = self._affines.get(name)
        return fake_quantise(value, affine) if affine else value

    def rounded_weights(self, node: Node) -> tuple[Tensor, Tensor]:
        """Return the weight and bias of a node in fake mode."""
        weight, bias = self._layer_weights(node.name)
        grid, source = self.layer_grid(node), self._source_scale(node)
        if grid is None:
            return self.places.with_gain(node.name, weight), bias
        rounded, scales = fake_weight(weight, grid), self._scales_of(node, grid).detach()
        return self.places.with_gain(node.name, rounded), bias if source is None else fake_bias(bias, scales * source)

    def _source_scale(self, node: Node) -> float | Tensor | None:
        """Return the scale of what a node with weights reads, if its bias is rounded too; else None."""
        if self.config.rounded != "values":
            return None
        if self.scales is not None:
            return self.scales.scale(self.graph.scale_of(node.inputs[0]))
        source = self.affine_of(node.inputs[0])
        return source.scale if source else None

    def grid(self, node: Node) -> Grid | None:
        """Return the scales and zero points of a node's weight, times its gain; None if it is not quantised."""
        grid = self.layer_grid(node)
        return replace(grid, scales=self._scales_of(node, grid)) if grid is not None else None

    def layer_grid(self, node: Node) -> Grid | None:
        """Return the scales and zero points of the weight of a node's layer; None if it is not quantised."""
        layer, bits = self.graph.layer_of(node.name), self.bits.weights[node.name]
        weight, bias = self.weights(node.name)
        if self.scales is not None:
            return self.scales.grid(layer, inputs=weight[0].numel())
        if bits is None or layer in self._held_grids:
            return self._held_grids.get(layer)
        source = self._source_scale(node)
        assert not isinstance(source, Tensor), "scales that are learnt have grids"
        largest: Tensor = bias
        if source is not None and self.graph.is_shared(layer):
            sources = {use.name: self._source_scale(use) for use in self.graph.uses(layer)}
            largest, source = self.places.largest_bias(sources), 1.0
        return weight_grid(weight, largest, bits=bits, config=self.config, input_scale=source)

    def _scales_of(self, node: Node, grid: Grid) -> Tensor:
        """Return the scales of a node's weight, negative where its gain is."""
        gain = self.places.gain(node.name)
        return grid.scales if gain is None else grid.scales * gain

    def hold_grid_(self, name: str, grid: Grid) -> None:
        """Fix the scales of a layer's weight until bits or settings change; otherwise they follow the weight."""
        self._held_grids[self.graph.layer_of(name)] = grid
        self._prepared = None

    @property
    def held_grids(self) -> Mapping[str, Grid]:
        """Fixed scales, by name of the layer."""
        return dict(self._held_grids)

    def learn_scales_(self, *, learns: bool = True) -> None:
        """Make parameters of all scales, beginning with those of now, until `settle_scales_`.

        A network that is not calibrated gets scales that mean nothing, to be filled by `load_state_dict`.

        Args:
            learns: Whether the scales get gradients; else they are fixed and only part of the state.
        """
        bits = {name: number for name, number in self.bits.values.items() if number is not None}
        affines = {name: self._unclamped(self._affines.get(name), number) for name, number in bits.items()}
        grids = {}
        for name in self.graph.layers:
            grid = self.layer_grid(self.graph.nodes[name])
            if grid is not None:
                grids[name] = grid
        units = {name: _unit(self.weights(name)[0]) for name in self.graph.layers}
        scales = LearntScales(affines, grids, units=units, fixed=(INPUT,)).to(next(self.parameters()).device)
        self._multiply_weights_(lambda name, weight: 1 / scales.unit(name, weight))
        self.scales = scales.requires_grad_(learns)
        self._prepared = None

    @torch.no_grad()
    def _multiply_weights_(self, factor: Callable[[str, Tensor], Tensor]) -> None:
        for name in self.graph.layers:
            weight, _ = self.weights(name)
            weight.mul_(factor(name, weight))

    def _unclamped(self, affine: Affine | None, bits: int) -> Affine:
        """Return an affine with the limits of its bits; those of a clamp depend on the scale."""
        is_signed = self.config.activation_signed or (affine is not None and affine.low < 0)
        low, high = integer_limits(bits, symmetric=self.config.activation_symmetric and is_signed)
        return replace(affine, low=low, high=high) if affine else Affine(scale=1.0, zero_point=0, low=low, high=high)

    def settle_scales_(self) -> None:
        """Fix the scales that were learnt, for all modes."""
        assert self.scales is not None, "no scales are learnt"
        affines, grids = self.scales.settled()
        self._multiply_weights_(self.scales.unit)
        self.scales = None
        nodes = self.graph.nodes
        self._affines = {name: within(affine, *nodes[name].clamp) for name, affine in affines.items()}
        self._held_grids, self._prepared = grids, None

    def affine_of(self, name: str) -> Affine | None:
        """Return the scale and zero point of a node's result; None if it is not quantised."""
        return self._affines.get(self.graph.scale_of(name))

    def to_program(self) -> IntegerProgram:
        """Build the integer program of the network with its current weights.

        Raises:
            QuantizationError: The network is not calibrated, or some weight or value has no bits.
        """
        layers: dict[str, Layer] = {}
        for name in self.graph.weighted:
            node, bits = self.graph.nodes[name], self.bits.weights[name]
            grid = self.layer_grid(node)
            if grid is not None and bits is not None:
                weight, bias = self.weights(name)
                first = layers.get(node.layer)
                integers = weight_integers(weight, grid).long().cpu().numpy() if first is None else first.integers
                own = replace(grid, scales=self._scales_of(node, grid))
                layers[name] = Layer(integers=integers, bias=bias, grid=own, bits=bits)
        missing = [name for name in self.graph.scaled if name not in self._affines]
        missing += [name for name in self.graph.weighted if name not in layers]
        if missing:
            raise QuantizationError(
                f"{missing[0]}: is not quantised; calibrate the network, and set bits for every weight and value"
            )
        dtype = next(self.parameters()).dtype if layers else torch.float32
        return IntegerProgram(
            operations=operations_of(self.graph, affines=self._affines, layers=layers, dtype=dtype),
            outputs=self.graph.outputs,
            fingerprint=self.fingerprint,
            image_shape=self.image_shape,
            size_step=self.graph.size_step,
        )

    @torch.no_grad()
    def _in_integers(self, images: Tensor) -> list[Tensor]:
        # Rebuild the program if a weight has changed: torch counts changes of a tensor in place, and another tensor
        # has another address.
        state = tuple((parameter.data_ptr(), parameter._version) for parameter in self.parameters())
        if self._prepared is None or self._prepared.state != state:
            program, weights = self.to_program(), tuple(parameter.detach() for parameter in self.parameters())
            self._prepared = _Prepared(state=state, weights=weights, program=program, executor=Executor(program))
        return run_program(self._prepared.program, self._prepared.executor, images)


def _unit(weight: Tensor) -> Tensor:
    """Return the largest magnitude of each output channel (O,) of a weight; 1 for channels of zeros."""
    largest = weight.detach().abs().flatten(1).amax(1)
    return torch.where(largest > 0, largest, 1.0)


def quantize(
    model: nn.Module, batches: Iterable[Tensor], *, config: QuantConfig, image_shape: tuple[int, int, int]
) -> QuantizedNetwork:
    """Build a quantised copy of a network, calibrated and in fake mode.

    Args:
        model: Network; it is not changed, see `lowering.lower`.
        batches: Calibration images (B, C, H, W), preprocessed for the network.
        config: Bits and kinds of ranges; with `rounded` not "values", operators without an integer form are allowed.
        image_shape: Shape of an image (C, H, W).

    Raises:
        QuantizationError: The network cannot be traced, or has an operator without an integer form.
        DataError: There are no images, or a value becomes NaN or infinite.
        ConfigError: A pattern of `config.layers` matches no layer.
    """
    network = uncalibrated(model, config=config, image_shape=image_shape)
    network.calibrate(batches)
    network.mode = "fake"
    tell_of_size(network.graph)
    return network


def uncalibrated(
    model: nn.Module, *, config: QuantConfig, image_shape: tuple[int, int, int], bits: BitPlan | None = None
) -> QuantizedNetwork:
    """Build a quantised copy of a network without ranges, in float mode; see `quantize`.

    Args:
        model: Network.
        config: Bits and kinds of ranges.
        image_shape: Shape of an image (C, H, W).
        bits: Bits of each weight and value; by default those of `config`.
    """
    graph = lower(model, image_shape=image_shape, allow_opaque=config.rounded != "values")
    fingerprint = network_fingerprint(model)
    network = QuantizedNetwork(graph, config=config, fingerprint=fingerprint, image_shape=image_shape).eval()
    network.bits = bits or network.bits
    return network
