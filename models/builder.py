"""Builder of the modules that the rows of a layer list describe."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from models.blocks.blocks import C3, SPP, SPPF, Bottleneck, BottleneckCSP, Concat
from models.blocks.conv import Block, Conv, Focus
from models.blocks.head import Detect
from models.blocks.mobilenet import InvertedResidual
from models.blocks.transformer import C3TR
from models.layer_table import MODULE_RULES, LayerSpec
from models.spec import ModelSpec
from models.widths import Width, Widths
from utils.errors import ConfigError


def _conv(cin: Width, c2: int, *args: Any, widths: Widths) -> Conv:
    return Conv(cin, widths.own(c2), *args)


# Modules with convolutions, which set their output width.
BLOCKS: dict[str, Callable[..., Block]] = {
    "Conv": _conv,
    "Focus": Focus,
    "Bottleneck": Bottleneck,
    "BottleneckCSP": BottleneckCSP,
    "C3": C3,
    "C3TR": C3TR,
    "SPP": SPP,
    "SPPF": SPPF,
    "InvertedResidual": InvertedResidual,
}
# Modules without parameters, which pass channels through.
PLAIN: dict[str, Callable[..., nn.Module]] = {
    "Concat": Concat,
    "MaxPool2d": nn.MaxPool2d,
    "Upsample": nn.Upsample,
    "ZeroPad2d": nn.ZeroPad2d,
}


def build_layers(spec: ModelSpec) -> nn.Sequential:
    """Build the modules of `spec` in order; their parameter names follow from their index.

    Raises:
        ConfigError: A module does not take its arguments, widths do not fit together, or a width names a
            convolution that does not exist.
    """
    widths = Widths(spec.widths, path="model")
    outputs: dict[int, Width] = {-1: Width(3, 3)}
    modules: list[nn.Module] = []
    for index, layer in enumerate(spec.layers):
        inputs = [outputs[source] for source in layer.sources(index)]
        try:
            module, outputs[index] = _build(layer, inputs, spec=spec, widths=widths.scope(str(index)))
        except (TypeError, ValueError) as error:
            raise ConfigError(
                f"layer {index} ({layer.module} {list(layer.args)}): {error}; correct its arguments"
            ) from error
        modules.append(module)
    if widths.unused:
        raise ConfigError(
            f"widths name no convolution of this network: {', '.join(widths.unused[:5])}; check the paths"
        )
    return nn.Sequential(*modules)


def _build(layer: LayerSpec, inputs: Sequence[Width], *, spec: ModelSpec, widths: Widths) -> tuple[nn.Module, Width]:
    if layer.module == "Detect":
        channels = [width.actual for width in inputs]
        head = Detect(num_classes=spec.num_classes, anchors=spec.anchors, strides=spec.strides, in_channels=channels)
        return head, Width(0, 0)
    if layer.module in PLAIN:
        return PLAIN[layer.module](*layer.args), sum(inputs[1:], inputs[0])
    return _build_block(layer, inputs[0], widths=widths)


def _build_block(layer: LayerSpec, cin: Width, *, widths: Widths) -> tuple[nn.Module, Width]:
    make = BLOCKS[layer.module]
    if MODULE_RULES[layer.module].takes_number:
        c2, *rest = layer.args
        block = make(cin, c2, layer.number, *rest, widths=widths)
        return block, block.out
    if layer.number == 1:
        block = make(cin, *layer.args, widths=widths)
        return block, block.out
    chain: list[Block] = []
    for copy in range(layer.number):
        chain.append(make(cin, *layer.args, widths=widths.scope(str(copy))))
        cin = chain[-1].out
    return nn.Sequential(*chain), cin
