"""The classifiers of the papers on pruning have the sizes those papers give."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from models.classifiers import (
    CLASSIFIERS,
    DenseNetCifar,
    LeNet5,
    PreResNetCifar,
    ResNetCifar,
    VggCifar,
    build_classifier,
)
from pruning.channels.graph import ChannelGraph
from utils.errors import ConfigError


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


def test_vgg19_is_the_network_of_the_slimming_paper() -> None:
    model = VggCifar(depth=19)
    # 20.04 million in the paper's table; of its 17 layers with weights 16 are convolutions.
    assert count(model) == 20_035_018
    assert sum(isinstance(module, nn.Conv2d) for module in model.modules()) == 16
    assert model(torch.rand(2, 3, 32, 32)).shape == (2, 10)


def test_vgg16_has_thirteen_convolutions_and_takes_digits_too() -> None:
    model = build_classifier("vgg16", in_channels=1)
    assert sum(isinstance(module, nn.Conv2d) for module in model.modules()) == 13
    assert model(torch.rand(2, 1, 28, 28)).shape == (2, 10)


def test_resnets_have_the_sizes_of_their_papers_and_two_convolutions_more() -> None:
    # Table 6 of the paper: 0.27 and 0.85 million; ours adds 16 * 32 + 32 * 64 weights of shortcuts and their norms.
    assert count(ResNetCifar(depth=20)) == 269_722 + 16 * 32 + 32 * 64 + 2 * (32 + 64)
    assert count(ResNetCifar(depth=56)) == 853_018 + 16 * 32 + 32 * 64 + 2 * (32 + 64)
    # 1.70 million in the slimming paper.
    assert 1.70e6 < count(PreResNetCifar(depth=164)) < 1.71e6


def test_vanilla_network_has_three_layers_of_32_filters() -> None:
    model = build_classifier("vanilla")
    # 27 * 32 and twice 288 * 32 weights, three norms, 512 * 10 + 10.
    assert count(model) == 864 + 2 * 9216 + 3 * 64 + 5130
    assert model(torch.rand(2, 3, 32, 32)).shape == (2, 10)


@pytest.mark.parametrize("name", [name for name in CLASSIFIERS if name not in ("resnet110", "preresnet164")])
def test_every_named_network_shows_its_channels(name: str) -> None:
    # The two deepest ones are more of the same blocks.
    image_chw = (1, 28, 28) if name == "lenet5" else (3, 32, 32)
    model = build_classifier(name, num_classes=7, in_channels=image_chw[0])
    graph = ChannelGraph.of(model, image_chw=image_chw)
    weighted = [path for path, module in model.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    assert {layer.name for layer in graph.layers.values() if not layer.is_norm} == set(weighted)
    # All but images and logits can be pruned.
    assert set(graph.protected.values()) == {"input", "output"}
    outputs = [channel for channel, reason in graph.protected.items() if reason == "output"]
    assert sorted(outputs) == sorted(graph.layers[weighted[-1]].output_ids.tolist())
    assert len(outputs) == 7


def test_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"'vgg17': no such classifier; close: vgg19, .*; known: lenet5, vanilla"):
        build_classifier("vgg17")


@pytest.mark.parametrize(
    ("network", "depth", "expected"),
    [(VggCifar, 12, "one of 11, 13, 16, 19"), (ResNetCifar, 21, "6 n [+] 2"), (PreResNetCifar, 21, "9 n [+] 2")],
)
def test_depth_that_a_network_cannot_have_is_refused(network: type[nn.Module], depth: int, expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        network(depth=depth)


@pytest.mark.parametrize("depth", [4, 38])
def test_depth_that_three_equal_blocks_cannot_have_is_refused(depth: int) -> None:
    with pytest.raises(ValueError, match=r"expected 3 n \+ 4"):
        DenseNetCifar(depth=depth)
