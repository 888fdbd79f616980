"""Sizes of networks, counted by hand or published."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from models.classifiers import LeNet5
from models.complexity import count_macs, count_parameters, weight_uses
from models.detector import build_model
from models.spec import ModelSpec
from utils.boxes.torchvision_compat import import_torchvision


def test_lenet_is_as_large_as_counted_by_hand() -> None:
    model = LeNet5()
    assert count_parameters(model) == (25 * 6 + 6) + (150 * 16 + 16) + (400 * 120 + 120) + (120 * 84 + 84) + 850
    # Outputs of 28 x 28 and 10 x 10, then three products.
    assert count_macs(model, (1, 28, 28)) == 25 * 6 * 784 + 150 * 16 * 100 + 400 * 120 + 120 * 84 + 840


def test_resnet18_is_as_large_as_published() -> None:
    model = import_torchvision().models.resnet18(weights=None)
    assert count_parameters(model) == 11_689_512
    assert count_macs(model, (3, 224, 224)) == 1_814_073_344


def test_yolov5s_is_as_large_as_published() -> None:
    with torch.device("meta"):
        model = build_model(ModelSpec.from_yaml("yolov5s"))
    # 7.3 million parameters and 17.0 GFLOP of two operations per multiply-add, norms included.
    assert count_parameters(model) == pytest.approx(7.3e6, rel=0.01)
    assert 2 * count_macs(model, (3, 640, 640)) == pytest.approx(17.0e9, rel=0.01)


@pytest.mark.parametrize(
    ("layer", "macs"),
    [
        (nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2), 6 * 2 * 9 * 16),
        (nn.ConvTranspose2d(4, 6, 2, stride=2), 4 * 6 * 4 * 64),
        (nn.Linear(8, 5), 8 * 5 * 4 * 8),
        (nn.BatchNorm2d(4), 0),
    ],
)
def test_layer_multiplies_as_often_as_counted_by_hand(layer: nn.Module, macs: int) -> None:
    assert count_macs(layer, (4, 8, 8)) == macs


def test_layer_that_runs_twice_counts_twice() -> None:
    layer = nn.Conv2d(3, 3, 1)
    model = nn.Sequential(layer, nn.ReLU(), layer)
    assert weight_uses(model, (3, 4, 4)) == {"0": 32}
    assert count_macs(model, (3, 4, 4)) == 2 * 9 * 16
    assert count_parameters(model) == 9 + 3


class Branch(nn.Module):
    """Asks for numbers, which the meta device does not have."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return y if y.sum() > 0 else -y


def test_network_that_branches_on_data_is_counted_by_running_it() -> None:
    assert count_macs(Branch(), (3, 4, 4)) == 6 * 16


def test_counting_leaves_a_network_as_it_was() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).train().double()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    count_macs(model, (3, 8, 8))
    assert model.training
    assert not any(module._forward_hooks for module in model.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
