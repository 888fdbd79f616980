"""The classifiers of the papers on pruning have the sizes those papers give."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from models.classifiers import DenseNetCifar, LeNet5


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def test_lenet5_has_its_known_size() -> None:
    # 6 * 26 + 16 * 151 + 120 * 401 + 84 * 121 + 10 * 85
    assert count(LeNet5()) == 61_706
    assert LeNet5()(torch.rand(2, 1, 28, 28)).shape == (2, 10)


def test_densenet40_has_the_million_parameters_of_the_paper() -> None:
    model = DenseNetCifar(num_classes=100)
    # Table 2 of the paper: 1.0 million; the last map has 16 + 36 * 12 channels.
    assert 1.0e6 < count(model) < 1.1e6
    assert model.classifier.in_features == 448
    assert model(torch.rand(2, 3, 32, 32)).shape == (2, 100)
    assert sum(isinstance(module, nn.Conv2d | nn.Linear) for module in model.modules()) == 40


@pytest.mark.parametrize("depth", [4, 38])
def test_depth_that_three_equal_blocks_cannot_have_is_refused(depth: int) -> None:
    with pytest.raises(ValueError, match=r"expected 3 n \+ 4"):
        DenseNetCifar(depth=depth)
