"""Lower layers with weights and elementwise arithmetic."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from quantization.lowering.building import Builder, Call, Ref, addresses, constant, constant_or_zeros
from quantization.lowering.graph import Function, Node
from quantization.program.program import Kind, Setting


def conv(build: Builder, call: Call) -> Ref:
    """Lower a 2D convolution with zero padding."""
    weight = call.get("weight")
    if call.get("padding_mode", "zeros") != "zeros":
        raise call.refusal(f"pads with {call.get('padding_mode')!r}")
    dilation = call.pair("dilation", 1)
    settings: dict[str, Setting] = {
        "stride": call.pair("stride", 1),
        "padding": _conv_padding(call, weight, dilation),
        "dilation": dilation,
        "groups": int(call.get("groups", 1)),
    }
    bias = constant_or_zeros(call.get("bias"), len(weight), weight)
    node = Node(
        name=call.name,
        kind="conv",
        inputs=(call.source.name,),
        settings=settings,
        weight=constant(weight),
        bias=bias,
        origin=addresses(weight, call.get("bias")),
    )
    return build.add(node, call.shape)


def _conv_padding(call: Call, weight: Tensor, dilation: tuple[int, int]) -> tuple[int, int]:
    given = call.get("padding", 0)
    if given == "valid":
        return 0, 0
    if given != "same":
        return call.pair("padding", 0)
    totals = [step * (side - 1) for step, side in zip(dilation, weight.shape[2:], strict=True)]
    if any(total % 2 for total in totals):
        raise call.refusal("with padding 'same' has borders of unequal width")
    return totals[0] // 2, totals[1] // 2


def linear(build: Builder, call: Call) -> Ref:
    """Lower a linear layer from (B, I) to (B, O)."""
    if len(call.source.shape) != 2:
        raise call.refusal(f"works on {len(call.source.shape)} dimensions")
    weight = call.get("weight")
    bias = constant_or_zeros(call.get("bias"), len(weight), weight)
    node = Node(
        name=call.name,
        kind="linear",
        inputs=(call.source.name,),
        weight=constant(weight),
        bias=bias,
        origin=addresses(weight, call.get("bias")),
    )
    return build.add(node, call.shape)


def batch_norm(build: Builder, call: Call) -> Ref:
    """Lower a batch norm to a scale and shift per channel, merged later into the layer before it if possible."""
    mean, variance = call.get("running_mean"), call.get("running_var")
    if mean is None or variance is None:
        raise call.refusal("has no running statistics")
    # In float64, since later stages see only the folded weights.
    scale = (variance.double() + call.get("eps", 1e-5)).rsqrt()
    if call.get("weight") is not None:
        scale = scale * call.get("weight").double()
    shift = -mean.double() * scale
    if call.get("bias") is not None:
        shift = shift + call.get("bias").double()
    tensors = [call.get(name) for name in ("running_var", "running_mean", "weight", "bias")]
    return _per_channel(build, call, scale.detach(), shift.detach(), origin=addresses(*tensors))


def _per_channel(build: Builder, call: Call, scale: Tensor, shift: Tensor, *, origin: tuple[int, ...] = ()) -> Ref:
    """Add scale * x + shift, (C,) each, as a depthwise 1x1 convolution or a diagonal linear layer."""
    if len(call.source.shape) == 4:
        kind: Kind = "conv"
        weight = scale.view(-1, 1, 1, 1)
        settings: dict[str, Setting] = {"stride": (1, 1), "padding": (0, 0), "dilation": (1, 1), "groups": len(scale)}
    elif len(call.source.shape) == 2:
        kind, weight, settings = "linear", torch.diag(scale), {}
    else:
        raise call.refusal(f"works on {len(call.source.shape)} dimensions")
    node = Node(
        name=call.name,
        kind=kind,
        inputs=(call.source.name,),
        settings=settings,
        weight=weight.float(),
        bias=shift.float(),
        origin=origin,
    )
    return build.add(node, call.shape)


def table(build: Builder, call: Call) -> Ref:
    """Lower an elementwise function of one tensor to a lookup table."""
    if any(
        isinstance(other, Ref) or (isinstance(other, Tensor) and other.numel() > 1)
        for other in call.get("others", ())
    ):
        raise call.refusal("has another argument that is a tensor")
    return _looked_up(build, call, call.arguments["function"])


def prelu(build: Builder, call: Call) -> Ref:
    """Lower a PReLU; with a slope per channel, negative values are scaled separately and added."""
    slopes = constant(call.get("weight"))
    if slopes.numel() == 1:
        slope = float(slopes)
        return _looked_up(build, call, lambda x: F.leaky_relu(x, slope))
    source = call.source
    negative = _clamped(build, call.part("negative", source), (-math.inf, 0.0))
    factors, zeros = slopes.double(), torch.zeros_like(slopes).double()
    scaled = _per_channel(build, call.part("slopes", negative), factors, zeros, origin=addresses(slopes))
    positive = _clamped(build, call.part("positive", source), (0.0, math.inf))
    return build.add(Node(name=call.name, kind="add", inputs=(positive.name, scaled.name)), call.shape)


def _looked_up(build: Builder, call: Call, function: Function) -> Ref:
    node = Node(name=call.name, kind="lookup", inputs=(call.source.name,), function=function)
    return build.add(node, call.shape)


def clamp(build: Builder, call: Call) -> Ref:
    """Lower a clamp, merged later into the node before it if possible."""
    low, high = call.get("min"), call.get("max")
    if isinstance(low, Tensor | Ref) or isinstance(high, Tensor | Ref):
        raise call.refusal("has limits that are tensors")
    limits = (-math.inf if low is None else float(low), math.inf if high is None else float(high))
    if not limits[0] <= 0 <= limits[1]:
        # Padding needs an integer for zero, so limits that exclude zero cannot limit the integers.
        return _looked_up(build, call, lambda x: x.clamp(*limits))
    return _clamped(build, call, limits)


def _clamped(build: Builder, call: Call, limits: tuple[float, float]) -> Ref:
    return build.add(Node(name=call.name, kind="rescale", inputs=(call.source.name,), clamp=limits), call.shape)


def add(build: Builder, call: Call) -> Ref:
    """Lower a sum of two tensors of one shape, or of a tensor and a constant."""
    if call.get("alpha", 1) != 1:
        raise call.refusal("has a factor alpha")
    one, other = _operands(call)
    if not isinstance(other, Ref):
        return _with_constant(build, call, one, other, is_product=False)
    if one.shape != other.shape:
        raise call.refusal(f"adds shapes {one.shape} and {other.shape}")
    return build.add(Node(name=call.name, kind="add", inputs=(one.name, other.name)), call.shape)


def multiply(build: Builder, call: Call) -> Ref:
    """Lower a product of a map and a gate per channel, of two maps, or of a tensor and a constant."""
    one, other = _operands(call)
    if not isinstance(other, Ref):
        return _with_constant(build, call, one, other, is_product=True)
    if other.shape == call.shape:
        one, other = other, one
    if one.shape != call.shape or other.shape not in (one.shape, (*one.shape[:2], 1, 1)):
        raise call.refusal(f"multiplies shapes {one.shape} and {other.shape}")
    return build.add(Node(name=call.name, kind="multiply", inputs=(one.name, other.name)), call.shape)


def subtract(build: Builder, call: Call) -> Ref:
    """Lower a difference of two tensors of one shape, or of a tensor and a constant."""
    if call.get("alpha", 1) != 1:
        raise call.refusal("has a factor alpha")
    one, other = call.get("input"), call.get("other")
    if not isinstance(other, Ref):
        return _with_constant(build, call, call.source, -other, is_product=False)
    if isinstance(one, Ref) and one.shape != other.shape:
        raise call.refusal(f"subtracts shapes {one.shape} and {other.shape}")
    negative = _looked_up(build, call.part("negative", other), torch.neg)
    if not isinstance(one, Ref):
        return _with_constant(build, call, negative, one, is_product=False)
    return build.add(Node(name=call.name, kind="add", inputs=(one.name, negative.name)), call.shape)


def divide(build: Builder, call: Call) -> Ref:
    """Lower a tensor divided by a constant."""
    other = call.get("other")
    if isinstance(other, Ref):
        raise call.refusal("divides by a result of the network")
    if call.get("rounding_mode") is not None:
        raise call.refusal("rounds the quotient")
    if not torch.as_tensor(other).all():
        raise call.refusal("divides by zero")
    return _with_constant(build, call, call.source, 1 / other, is_product=True)


def _operands(call: Call) -> tuple[Ref, Any]:
    """Return both operands, a tensor of the network first."""
    one, other = call.get("input"), call.get("other")
    if not isinstance(one, Ref):
        one, other = other, one
    if not isinstance(one, Ref):
        raise call.refusal("works on no result of the network")
    return one, other


def _with_constant(build: Builder, call: Call, source: Ref, value: Any, *, is_product: bool) -> Ref:
    """Lower arithmetic with a constant: a table for a scalar, a scale or shift per channel for (1, C, 1, 1)."""
    call = replace(call, arguments={**call.arguments, "input": source})
    if isinstance(value, Tensor) and value.numel() > 1:
        channels = source.shape[1]
        # Broadcast from the last dimension, as in torch.
        is_per_channel = tuple(value.shape[-len(source.shape) + 1 :]) == (channels, *(1 for _ in source.shape[2:]))
        if value.numel() != channels or not is_per_channel:
            raise call.refusal(f"has a constant of shape {tuple(value.shape)}")
        vector = constant(value).double().view(-1)
        zeros, ones = torch.zeros_like(vector), torch.ones_like(vector)
        return _per_channel(build, call, vector if is_product else ones, zeros if is_product else vector)
    number = float(value.detach() if isinstance(value, Tensor) else value)
    return _looked_up(build, call, (lambda x: x * number) if is_product else (lambda x: x + number))
