"""Fisher importance: hand-computed numbers, joined channels, and what it predicts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pruning.channels.graph import ChannelGraph
from pruning.importance.fisher import fisher_importance
from utils.errors import DataError, PruningError

IMAGE = (1, 2, 1)


def summed(model: nn.Module, images: Tensor) -> Tensor:
    return torch.as_tensor(model(images)).sum()


def pointwise(*filters: list[list[float]]) -> nn.Sequential:
    """1x1 convolutions without bias in a row."""
    layers = []
    for values in filters:
        weight = torch.tensor(values)
        layers.append(nn.Conv2d(weight.shape[1], weight.shape[0], 1, bias=False))
        layers[-1].weight = nn.Parameter(weight[..., None, None])
    return nn.Sequential(*layers)


def test_importance_is_the_mean_over_samples_of_the_squared_sum_over_positions() -> None:
    model = pointwise([[2.0], [1.0]], [[3.0, -5.0]])
    graph = ChannelGraph.of(model, image_chw=IMAGE)
    # Activation times gradient of channel 0 is 2 x 3 x pixel: its sums over positions 1, -3 and 2, 4 are -12 and 36;
    # of channel 1, -5 x pixel: 10 and -30.
    batches = [torch.tensor([1.0, -3.0]).view(1, 1, 2, 1), torch.tensor([2.0, 4.0]).view(1, 1, 2, 1)]
    found = fisher_importance(model, graph, batches, loss_fn=summed)
    np.testing.assert_allclose(found[graph.layers["0"].output_ids], [(144 + 1296) / 2, (100 + 900) / 2])
    joined = fisher_importance(model, graph, [torch.cat(batches)], loss_fn=summed)
    np.testing.assert_allclose(joined, found)
    assert np.isnan(found[graph.layers["1"].output_ids]).all()


class Added(nn.Module):
    """The sum of two convolutions, and the sum of all its channels."""

    def __init__(self, first: list[float], second: list[float]) -> None:
        super().__init__()
        self.first = pointwise([[value] for value in first])[0]
        self.second = pointwise([[value] for value in second])[0]
        self.last = pointwise([[1.0, 1.0]])[0]

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.last(self.first(x) + self.second(x))
        return result


def test_layers_that_share_a_channel_are_added_before_squaring() -> None:
    model = Added([3.0, 4.0], [-3.0, 5.0])
    graph = ChannelGraph.of(model, image_chw=IMAGE)
    found = fisher_importance(model, graph, [torch.ones(1, 1, 2, 1)], loss_fn=summed)
    # What the first layer adds to channel 0 the second takes away, so cutting it changes nothing.
    np.testing.assert_allclose(found[graph.layers["first"].output_ids], [0.0, (2 * 9.0) ** 2])


def test_importance_is_in_the_unit_of_the_loss_in_every_layer() -> None:
    """Without normalisation a layer whose channels matter less is rated less."""
    model = pointwise([[1.0], [1.0]], [[1.0, 1.0], [0.1, 0.1]], [[1.0, 1.0]])
    graph = ChannelGraph.of(model, image_chw=IMAGE)
    found = fisher_importance(model, graph, [torch.ones(1, 1, 2, 1)], loss_fn=summed)
    # Channels of layer 0: 2 x (1 + .1) each; of layer 1: 2 x 2 and 2 x .2.
    np.testing.assert_allclose(found[graph.layers["0"].output_ids], [2.2**2, 2.2**2], rtol=1e-5)
    np.testing.assert_allclose(found[graph.layers["1"].output_ids], [4.0**2, 0.4**2], rtol=1e-5)


def test_no_batches_are_refused() -> None:
    model = pointwise([[1.0], [1.0]], [[1.0, 1.0]])
    graph = ChannelGraph.of(model, image_chw=IMAGE)
    with pytest.raises(DataError, match="there are no batches to measure importance on"):
        fisher_importance(model, graph, [], loss_fn=summed)


def test_broken_weights_are_refused_by_layer() -> None:
    model = pointwise([[1.0], [float("nan")]], [[1.0, 1.0]])
    graph = ChannelGraph.of(model, image_chw=IMAGE)
    with pytest.raises(PruningError, match="layer 0: activation x gradient of 1 of 2 channels are NaN or infinite"):
        fisher_importance(model, graph, [torch.ones(1, 1, 2, 1)], loss_fn=summed)
