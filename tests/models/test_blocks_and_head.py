"""Single blocks against hand-made references, the head's start values, and fusing."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from models.blocks.blocks import SPP
from models.blocks.conv import Conv, Focus
from models.detector import Detector, build_model
from models.fuse import fuse
from models.spec import ModelSpec
from models.widths import Width, Widths

FREE = Widths({}, path="model.0")


def with_random_norms(name: str) -> Detector:
    """A small network whose batch norms are far from their start, so that fusing has something to do."""
    torch.manual_seed(0)
    model = build_model(ModelSpec.from_yaml(name, num_classes=2)).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for value, low, high in ((module.weight, 0.5, 1.5), (module.running_var, 0.5, 2.0)):
                nn.init.uniform_(value, low, high)
            for value in (module.bias, module.running_mean):
                nn.init.normal_(value, std=0.2)
    return model


def test_focus_puts_rows_before_columns() -> None:
    focus = Focus(Width(1, 1), 4, widths=FREE)
    focus.conv = nn.Identity()
    image = torch.tensor([[0.0, 1.0], [2.0, 3.0]])[None, None]
    assert focus(image).flatten().tolist() == [0, 2, 1, 3]


def test_pooling_pyramid_equals_separate_windows() -> None:
    spp = SPP(Width(8, 8), 8, (3, 5, 9), widths=FREE)
    x = torch.randn(1, 4, 12, 11)
    chained = [x]
    for pool in spp.m:
        chained.append(pool(chained[-1]))
    for size, got in zip((3, 5, 9), chained[1:], strict=True):
        assert torch.equal(got, functional.max_pool2d(x, size, stride=1, padding=size // 2))


def test_convolution_keeps_the_size_for_odd_kernels() -> None:
    assert Conv(Width(3, 3), Width(8, 8), 3)(torch.zeros(1, 3, 9, 7)).shape == (1, 8, 9, 7)


def test_head_starts_with_few_objects_and_unlikely_classes() -> None:
    torch.manual_seed(0)
    model = build_model(ModelSpec.from_yaml("yolov5n", num_classes=20))
    for conv, stride in zip(model.head.m, model.strides, strict=True):
        bias = conv.bias.detach().view(3, 25)
        # torch starts biases within 1 / sqrt(inputs) of 0.
        spread = 1 / math.sqrt(conv.in_channels)
        assert (bias[:, 4] - math.log(8 / (640 / stride) ** 2)).abs().max() <= spread
        assert (bias[:, 5:] - math.log(0.6 / 19.01)).abs().max() <= spread


def test_head_orders_outputs_by_anchor_row_column() -> None:
    model = build_model(ModelSpec.from_yaml("yolov5n", num_classes=1))
    conv = model.head.m[0]
    features = [torch.randn(1, c.in_channels, 3, 4) for c in model.head.m]
    flat = conv(features[0])
    assert torch.equal(model.head(features)[0][0, 2, 1, 3], flat[0, 12:18, 1, 3])


def test_anchors_are_pixels_outside_and_cells_inside() -> None:
    model = build_model(ModelSpec.from_yaml("yolov5n"))
    assert model.head.anchors[0, 0].tolist() == [1.25, 1.625]
    assert model.anchors[2, 2].tolist() == [373.0, 326.0]


def test_new_anchors_change_buffer_and_spec() -> None:
    model = build_model(ModelSpec.from_yaml("yolov5n"))
    model.set_anchors_(torch.arange(1.0, 19.0).view(3, 3, 2))
    assert model.spec.anchors[1] == (7.0, 8.0, 9.0, 10.0, 11.0, 12.0)
    assert model.head.anchors[1, 0].tolist() == [7 / 16, 8 / 16]
    assert torch.equal(build_model(model.spec).anchors, model.anchors)


def test_anchors_of_another_shape_are_refused() -> None:
    with pytest.raises(ValueError, match="expected"):
        build_model(ModelSpec.from_yaml("yolov5n")).set_anchors_(torch.ones(3, 2, 2))


@pytest.mark.parametrize("name", ["yolov5n", "yolov5n-v6", "yolov3-tiny", "yolov5s-mobilenetv3-small-075"])
def test_fused_network_gives_the_same_numbers(name: str) -> None:
    model = with_random_norms(name)
    fused = fuse(model)
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        for got, expected in zip(fused(images), model(images), strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in fused.modules())


def test_fusing_leaves_the_original_as_it_was() -> None:
    model = with_random_norms("yolov5n").train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    fused = fuse(model)
    assert not fused.training
    assert model.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
