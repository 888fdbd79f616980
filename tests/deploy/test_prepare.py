"""The network that is exported: the numbers of the fused one, made of what every runtime knows."""

from __future__ import annotations

import pytest
import torch
from exporting import images_of, network
from mask_oracle import lively
from test_masking import narrow
from torch import nn

from models.blocks.conv import Focus
from models.fuse import fuse
from models.prepare import HalfNetwork, fold_focus, ready_for_export
from models.spec import MODELS_FOLDER
from models.widths import Width, Widths

FOCUS_YAMLS = sorted(path.stem for path in MODELS_FOLDER.glob("*.yaml") if "Focus" in path.read_text())


def as_maps(heads: list[torch.Tensor]) -> list[torch.Tensor]:
    return [head.permute(0, 1, 4, 2, 3).flatten(1, 2) for head in heads]  # (B, A * (5 + nc), H, W)


def test_weight_of_focus_lands_where_its_pixel_is() -> None:
    focus = Focus(Width(1, 1), 8, 3, widths=Widths({}, path="stem"))
    focus.conv.bn = nn.Identity()
    with torch.no_grad():
        focus.conv.conv.weight.zero_()
        # Group 1 is row 1, column 0; its centre weight looks at pixel (2y + 1, 2x).
        focus.conv.conv.weight[0, 1, 1, 1] = 5
    folded = fold_focus(focus)[0]
    assert (folded.kernel_size, folded.stride, folded.padding) == ((6, 6), (2, 2), (2, 2))
    assert folded.weight[0, 0].nonzero().tolist() == [[3, 2]]


@pytest.mark.parametrize("kernel", [1, 3, 5])
@torch.no_grad()
def test_focus_of_any_odd_kernel_is_folded(kernel: int) -> None:
    focus = Focus(Width(3, 3), 8, kernel, widths=Widths({}, path="stem"))
    focus.conv.bn = nn.Identity()
    images = images_of((8, 12))
    torch.testing.assert_close(fold_focus(focus)(images), focus(images))


@pytest.mark.parametrize("name", FOCUS_YAMLS)
@torch.no_grad()
def test_every_network_with_focus_keeps_its_numbers(name: str) -> None:
    torch.manual_seed(0)
    model = lively(narrow(name)).float()
    ready, images = ready_for_export(model), images_of((model.max_stride, 2 * model.max_stride))
    assert not any(isinstance(module, Focus) for module in ready.modules())
    for found, expected in zip(ready(images), as_maps(fuse(model)(images)), strict=True):
        assert float((found - expected).abs().max() / expected.abs().max()) < 1e-5


@torch.no_grad()
def test_pruned_network_with_focus_keeps_its_numbers() -> None:
    model = network("pruned yolov5n")
    images = images_of((64, 96))
    for found, expected in zip(ready_for_export(model)(images), as_maps(fuse(model)(images)), strict=True):
        assert float((found - expected).abs().max() / expected.abs().max()) < 1e-5


def test_network_to_export_is_a_copy_without_batch_norms_and_gradients() -> None:
    model = network("tiny").train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    ready = ready_for_export(model)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(isinstance(module, nn.BatchNorm2d) or module.training for module in ready.modules())
    assert not any(parameter.requires_grad for parameter in ready.parameters())


@torch.no_grad()
def test_half_network_takes_and_gives_float32() -> None:
    ready = ready_for_export(network("tiny"))
    half, images = HalfNetwork(ready), images_of((32, 32))
    assert next(half.parameters()).dtype == torch.float16
    for found, expected in zip(half(images), ready(images), strict=True):
        assert found.dtype == torch.float32
        assert float((found - expected).abs().max() / expected.abs().max()) < 2e-2
