"""A network calibrated for the arithmetic of a runtime; `quantization` learns its ranges and rounds its weights."""

from __future__ import annotations

import copy
import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from deploy.calibration import skipped_layers
from deploy.job import ExportJob
from deploy.outputs.metadata import Metadata
from quantization.layer_errors import LayerError, layer_errors
from quantization.lowering.graph import INPUT, Graph
from quantization.network import QuantizedNetwork, quantize, uncalibrated
from quantization.ranges.bits import BitPlan
from quantization.ranges.config import QuantConfig
from quantization.rounding.compensation import compensate_
from quantization.runtime_layers import RuntimeLayer, runtime_layers
from utils.datasets.spread import spread
from utils.errors import ConfigError

logger = logging.getLogger(__name__)

Layers: TypeAlias = Mapping[str, RuntimeLayer]

# Images on which weights are fitted and rounded, which takes seconds for each; ranges are of all. 64 lowered the
# error of a yolov5n's heads by a twentieth (BCCD, 224 px).
_MOST_IMAGES = 32
# Two conversions of one network fold batch norms in another order.
_TOLERANCE = 1e-3


@dataclass(frozen=True, kw_only=True)
class Arithmetic:
    """How a runtime computes in int8.

    Attributes:
        rounding: Which values it rounds, and to which integers.
        keeps_first: Whether the layers that read the images stay in floating point.
    """

    rounding: QuantConfig
    keeps_first: bool = False


@dataclass(frozen=True, kw_only=True, eq=False)
class Int8Calibration:
    """A network with the ranges of its values, whose weights can be rounded with any layers left in floating point.

    Attributes:
        network: Calibrated network with its real weights.
        images: Images that weights are fitted on.
        floats: Layers that stay in floating point in any case.
        fixed: Those among them whose weights stay as they are.
    """

    network: QuantizedNetwork
    images: Sequence[Tensor]
    floats: frozenset[str]
    fixed: frozenset[str]

    @property
    def choosable(self) -> tuple[str, ...]:
        """Layers that can be in int8, in execution order."""
        return tuple(name for name in self.network.graph.weighted if name not in self.floats)

    def layers(self, *, skip: Collection[str] = ()) -> Layers:
        """Fit and round the weights, with further layers in floating point; return all but those that stay fixed."""
        weights = {name: tensor.clone() for name, tensor in self.network.state_dict().items()}
        self.keep_(skip)
        if set(self.choosable) - set(skip):
            compensate_(self.network, self.images, fixed=self.fixed)
        found = self.nearest()
        self.network.load_state_dict(weights)
        self.keep_(())
        return found

    def nearest(self) -> Layers:
        """Round the weights as they are to the nearest, which takes no time; return all layers but the fixed ones."""
        return {name: layer for name, layer in runtime_layers(self.network).items() if name not in self.fixed}

    @torch.no_grad()
    def errors(self, layers: Layers) -> list[LayerError]:
        """Measure what each layer loses that `layers` has in integers."""
        network, reals = copy.deepcopy(self.network), self.network
        keep_floats_(network, {name for name in network.graph.weighted if not _is_rounded(layers.get(name))})
        for name, layer in layers.items():
            for own, new in zip(network.weights(name), (layer.weight, layer.bias), strict=True):
                own.copy_(torch.from_numpy(new))
            if layer.integers is not None:
                network.hold_grid_(name, layer.integers.grid)
        return layer_errors(network, reals, self.images)

    def keep_(self, skip: Collection[str]) -> None:
        """Leave further layers in floating point, with all weights as they are."""
        keep_floats_(self.network, {*self.floats, *skip})


def calibrated(
    job: ExportJob,
    arithmetic: Arithmetic,
    *,
    metadata: Metadata,
    stored: Mapping[str, NDArray[Any]],
    floats: Collection[str] = (),
) -> Int8Calibration:
    """Measure the ranges of a network; see `deploy.int8.layers.int8_layers`."""
    images = job.calibration
    if not images:
        raise ConfigError("int8 needs images to calibrate on; give --data")
    for image in images:
        if tuple(image.shape[1:]) != metadata.image_chw:
            raise ConfigError(f"calibration image: got shape {tuple(image.shape[1:])}, expected {metadata.image_chw}")
    rounding = replace(arithmetic.rounding, observer=job.special.calib_method)
    network = quantize(job.source.model, images, config=rounding, image_shape=metadata.image_chw)
    fixed = _unlike(network, stored)
    skipped = skipped_layers([name for name in network.graph.weighted if name not in fixed], job.special.int8_skip)
    calibration = Int8Calibration(
        network=network,
        images=spread(images, _MOST_IMAGES),
        floats=frozenset({*floats, *skipped, *kept_floats(network.graph, arithmetic), *fixed}),
        fixed=frozenset(fixed),
    )
    calibration.keep_(())
    return calibration


def kept_floats(graph: Graph, arithmetic: Arithmetic) -> set[str]:
    """Return the layers that stay in floating point in any network of a runtime."""
    first = {node.name for node in graph.nodes.values() if arithmetic.keeps_first and INPUT in node.inputs}
    # The last layers have a few thousandths of the weights, and no later one evens out their rounding.
    return first | set(graph.outputs)


def keep_floats_(network: QuantizedNetwork, names: Collection[str]) -> None:
    """Leave layers in floating point, and round the weights of all others to 8 bits."""
    network.set_bits_(bits_with_floats(network, names))


def bits_with_floats(network: QuantizedNetwork, names: Collection[str]) -> BitPlan:
    """Return the bits of a network with some layers in floating point, and the weights of all others in 8 bits."""
    weights = {name: None if name in names else 8 for name in network.graph.weighted}
    return replace(network.bits, weights=weights)


def trained_layers(
    rounded: QuantizedNetwork,
    model: nn.Module,
    *,
    stored: Mapping[str, NDArray[Any]],
    floats: Collection[str],
) -> Layers:
    """Return the layers of a network that was trained with simulated rounding.

    Args:
        rounded: Trained network, its scales fixed.
        model: Network in floating point that it was made from.
        stored: Weight of each layer that can be replaced, as the artefact of `model` has it.
        floats: Layers that the runtime has in floating point alone: they get the values of their integers.
    """
    dense = uncalibrated(model, config=rounded.config, image_shape=rounded.image_shape)
    fixed = _unlike(dense, stored)
    layers = {name: layer for name, layer in runtime_layers(rounded).items() if name not in fixed}
    return {name: replace(layer, integers=None) if name in floats else layer for name, layer in layers.items()}


def _is_rounded(layer: RuntimeLayer | None) -> bool:
    return layer is not None and layer.integers is not None


def _unlike(network: QuantizedNetwork, stored: Mapping[str, NDArray[Any]]) -> set[str]:
    """Return the layers that an artefact does not have under their name with their weight, and say so."""
    unlike = {name for name in network.graph.weighted if not _is_like(network, name, stored.get(name))}
    named = sorted(unlike & stored.keys())
    if named:
        logger.warning("kept in floating point, since the artefact has another weight: %s", ", ".join(named))
    # An artefact has the uses of a layer under names of its own; all of them compute alike.
    uses = {use.name for name in unlike for use in network.graph.uses(name)}
    several = sorted((uses - unlike) & stored.keys())
    if several:
        logger.warning("kept in floating point, since they are used several times: %s", ", ".join(several))
    return unlike | uses


def _is_like(network: QuantizedNetwork, name: str, stored: NDArray[Any] | None) -> bool:
    weight = network.real_weights(name)[0].detach().numpy()
    if stored is None or stored.size != weight.size:
        return False
    distance = np.abs(stored.ravel() - weight.ravel()).max(initial=0)
    return bool(distance <= _TOLERANCE * np.abs(weight).max(initial=0))
