"""Networks and helpers for tests of quantisation."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from quantization.execution.executor import Executor
from quantization.network import QuantizedNetwork, quantize
from quantization.ranges.affine import quantise
from quantization.ranges.config import QuantConfig


def made(model: nn.Module, images: Tensor, **settings: object) -> QuantizedNetwork:
    """The network quantised by these settings, calibrated on these images, in fake mode."""
    _, channels, height, width = images.shape
    config = QuantConfig(**settings)  # type: ignore[arg-type]
    return quantize(model.eval(), [images], config=config, image_shape=(channels, height, width))


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def settled(model: nn.Module, images: Tensor) -> nn.Module:
    """The network in evaluation mode with the batch norms' statistics of these images: numbers stay in range."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        model.train()(images)
    return model.eval()


def worst_differences(network: QuantizedNetwork, images: Tensor) -> Iterator[tuple[str, int]]:
    """For each operation, by how many quanta fake mode and integers differ most, given the same inputs.

    Fake mode computes each operation anew from the integers that go into it.
    """
    program = network.to_program()
    affines = {operation.name: operation.output for operation in program.operations}
    dtype = next(network.parameters()).dtype
    real: dict[str, Tensor] = {}
    for name, integers in Executor(program).values(quantise(images, affines["input"])):
        node = network.graph.nodes[name]
        inputs = [real[source] for source in node.inputs] or [images]
        with torch.no_grad():
            fake = quantise(network.rounded(node, inputs), affines[name])
        real[name] = (integers - affines[name].zero_point).to(dtype) * affines[name].scale
        yield name, int((fake - integers).abs().max())
