"""Criteria: hand-computed importance, ties, and numbers that are none."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from models.classifiers import DenseNetCifar, LeNet5
from models.detector import build_model
from models.spec import ModelSpec
from pruning.channels.graph import ChannelGraph
from pruning.choices import MEASURED_CRITERIA
from pruning.importance.criteria import (
    CRITERIA,
    CRITERION_NAMES,
    bn_gamma,
    fpgm,
    kernel_l1,
    kernel_l2,
    num_ids,
    random_order,
)
from utils.errors import PruningError

IMAGE = (1, 8, 8)


class Residual(nn.Module):
    """Two convolutions whose outputs of two channels are added, then a third that puts out."""

    def __init__(self, *, has_norms: bool = True) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 2, 1, bias=False), nn.Conv2d(2, 2, 1, bias=False)
        self.norm1, self.norm2 = (nn.BatchNorm2d(2) if has_norms else nn.Identity() for _ in range(2))
        self.last = nn.Conv2d(2, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.norm1(self.first(x)))
        result: Tensor = self.last(y + self.norm2(self.second(y)))
        return result


def fill_(parameter: Tensor, values: list[float]) -> None:
    with torch.no_grad():
        parameter.copy_(torch.tensor(values).view_as(parameter))


def of_layer(importance: np.ndarray, graph: ChannelGraph, name: str) -> list[float]:
    return [float(value) for value in importance[graph.layers[name].output_ids]]


def test_gamma_is_the_mean_absolute_scale_over_joined_layers() -> None:
    model = Residual()
    fill_(model.norm1.weight, [1.0, -2.0])
    fill_(model.norm2.weight, [-3.0, 4.0])
    graph = ChannelGraph.of(model, image_chw=IMAGE)
    assert of_layer(bn_gamma(model, graph), graph, "first") == [2.0, 3.0]


def test_channels_that_pass_no_batch_norm_have_no_gamma() -> None:
    model = Residual()
    graph = ChannelGraph.of(model, image_chw=IMAGE)
    importance = bn_gamma(model, graph)
    assert np.isnan(of_layer(importance, graph, "last")).all()
    assert np.isnan(importance[graph.layers["first"].input_ids]).all()
    assert importance.shape == (num_ids(graph),)
    assert importance.dtype == np.float64


def test_batch_norm_without_scales_tells_nothing() -> None:
    model = Residual()
    model.norm2 = nn.BatchNorm2d(2, affine=False)
    fill_(model.norm1.weight, [1.0, -2.0])
    graph = ChannelGraph.of(model, image_chw=IMAGE)
    assert of_layer(bn_gamma(model, graph), graph, "first") == [1.0, 2.0]


def test_kernel_norms_are_relative_to_the_mean_of_the_layer() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, (1, 2)), nn.Conv2d(2, 1, 1))
    fill_(model[0].weight, [3.0, -4.0, 6.0, 8.0])
    graph = ChannelGraph.of(model, image_chw=IMAGE)
    # L1: 7 and 14, mean 10.5; L2: 5 and 10, mean 7.5.
    np.testing.assert_allclose(of_layer(kernel_l1(model, graph), graph, "0"), [2 / 3, 4 / 3])
    np.testing.assert_allclose(of_layer(kernel_l2(model, graph), graph, "0"), [2 / 3, 4 / 3])


def test_kernel_norms_of_joined_layers_are_averaged() -> None:
    model = Residual(has_norms=False)
    fill_(model.first.weight, [1.0, 3.0])  # 1 and 3, mean 2: .5 and 1.5
    fill_(model.second.weight, [30.0, 0.0, 0.0, -10.0])  # 30 and 10, mean 20: 1.5 and .5
    graph = ChannelGraph.of(model, image_chw=IMAGE)
    assert of_layer(kernel_l1(model, graph), graph, "first") == [1.0, 1.0]


def test_depthwise_filters_count_for_the_channels_they_filter() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Conv2d(2, 2, 1, groups=2), nn.Conv2d(2, 1, 1))
    fill_(model[0].weight, [1.0, 3.0])  # .5 and 1.5
    fill_(model[1].weight, [7.0, 1.0])  # 1.75 and .25
    graph = ChannelGraph.of(model, image_chw=IMAGE)
    assert of_layer(kernel_l1(model, graph), graph, "0") == [1.125, 0.875]


def test_fpgm_sums_distances_to_all_other_filters() -> None:
    model = nn.Sequential(nn.Conv2d(1, 3, 1), nn.Conv2d(3, 1, 1))
    fill_(model[0].weight, [0.0, 1.0, 3.0])
    graph = ChannelGraph.of(model, image_chw=IMAGE)
    # 1 + 3, 1 + 2, 3 + 2, mean 4: the one in the middle goes first, the zero one does not.
    np.testing.assert_allclose(of_layer(fpgm(model, graph), graph, "0"), [1.0, 0.75, 1.25])


def test_fpgm_equals_distances_computed_one_by_one() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 20, 5), nn.Conv2d(20, 1, 1))
    with torch.no_grad():
        model[0].weight[3] = model[0].weight[7]  # a distance of exactly zero
    graph = ChannelGraph.of(model, image_chw=IMAGE)
    filters = model[0].weight.detach().double().flatten(1).numpy()
    expected = np.linalg.norm(filters[:, None] - filters[None], axis=2).sum(1)
    np.testing.assert_allclose(of_layer(fpgm(model, graph), graph, "0"), expected / expected.mean(), rtol=1e-7)


def test_layer_of_zeros_has_importance_zero() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Conv2d(2, 1, 1))
    fill_(model[0].weight, [0.0, 0.0])
    graph = ChannelGraph.of(model, image_chw=IMAGE)
    for criterion in (kernel_l1, kernel_l2, fpgm):
        assert of_layer(criterion(model, graph), graph, "0") == [0.0, 0.0]


def test_random_order_depends_on_the_seed_alone() -> None:
    model = LeNet5()
    graph = ChannelGraph.of(model, image_chw=(1, 28, 28))
    first = random_order(model, graph, seed=3)
    np.testing.assert_array_equal(first, random_order(LeNet5(), graph, seed=3))
    assert (first[graph.prunable_ids] != random_order(model, graph, seed=4)[graph.prunable_ids]).all()


@pytest.mark.parametrize("name", CRITERIA)
def test_every_criterion_scores_every_prunable_channel_of_a_detector(name: str) -> None:
    model = build_model(ModelSpec.from_yaml("yolov5n"))
    graph = ChannelGraph.of(model)
    importance = CRITERIA[name](model, graph)
    assert np.isfinite(importance[graph.prunable_ids]).all()
    assert importance.shape == (num_ids(graph),)


@pytest.mark.parametrize("name", ["kernel_l1", "fpgm", "random"])
def test_filters_score_linear_layers_too(name: str) -> None:
    model = LeNet5()
    graph = ChannelGraph.of(model, image_chw=(1, 28, 28))
    assert np.isfinite(CRITERIA[name](model, graph)[graph.prunable_ids]).all()


def test_channel_of_a_dense_network_has_the_mean_of_all_norms_it_passes() -> None:
    model = DenseNetCifar(depth=7, growth=2)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for value, norm in enumerate(norms, 1):
        nn.init.constant_(norm.weight, float(value))
    graph = ChannelGraph.of(model, image_chw=(3, 32, 32))
    # The stem's channels pass the norm of the only layer of block 1 and that of the transition.
    assert of_layer(bn_gamma(model, graph), graph, "features.0") == [1.5] * 16


def test_names_for_the_command_line_are_the_criteria_of_weights_and_of_data() -> None:
    assert {*CRITERIA, *MEASURED_CRITERIA} == set(CRITERION_NAMES)


def test_gamma_of_a_network_without_batch_norm_is_refused() -> None:
    model = LeNet5()
    graph = ChannelGraph.of(model, image_chw=(1, 28, 28))
    with pytest.raises(PruningError, match="LeNet5 has no batch norm .*; use another criterion, such as kernel_l1"):
        bn_gamma(model, graph)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_scale_that_is_no_number_names_its_layer(value: float) -> None:
    model = Residual()
    fill_(model.norm2.weight, [1.0, value])
    graph = ChannelGraph.of(model, image_chw=IMAGE)
    with pytest.raises(PruningError, match=r"layer norm2: .* 1 of 2 channels .*channel 1\); .*--sr"):
        bn_gamma(model, graph)


@pytest.mark.parametrize("criterion", [kernel_l1, kernel_l2, fpgm])
def test_weight_that_is_no_number_names_its_layer(criterion: object) -> None:
    model = Residual()
    fill_(model.second.weight, [1.0, float("nan"), 2.0, 3.0])
    graph = ChannelGraph.of(model, image_chw=IMAGE)
    with pytest.raises(PruningError, match="layer second: weights .* NaN or infinite"):
        criterion(model, graph)  # type: ignore[operator]
