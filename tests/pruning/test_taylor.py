"""Taylor importance: hand-computed numbers, what it leaves behind, and the oracle."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import TINY_CFG, tiny_config
from torch import Tensor, nn

from benchmarks.taylor_oracle import classification_task, spearman
from commands.train_config import TrainConfig
from commands.train_recipe import read_hyp
from models.classifiers import DenseNetCifar, LeNet5
from models.detector import Detector, build_model
from models.spec import ModelSpec
from pruning.channels.graph import ChannelGraph
from pruning.channels.ids import FloatArray
from pruning.importance.masking import masked, oracle_importance
from pruning.importance.products import ProductRecorder, measured_layers
from pruning.importance.taylor import taylor_importance
from tasks.choose import DETECTION
from tasks.short_training import short_training
from tasks.task import Network
from utils.datasets.classes.pictures import read_picture_file
from utils.errors import ConfigError, DataError, PruningError

IMAGE = (1, 2, 1)


def summed(model: nn.Module, images: Tensor) -> Tensor:
    return torch.as_tensor(model(images)).sum()


def two_channels(weights: list[float], readers: list[float]) -> nn.Sequential:
    """Two 1x1 filters without bias, and one that adds what they make, weighted."""
    model = nn.Sequential(nn.Conv2d(1, 2, 1, bias=False), nn.Conv2d(2, 1, 1, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor(weights).view(2, 1, 1, 1))
        model[1].weight.copy_(torch.tensor(readers).view(1, 2, 1, 1))
    return model


def test_importance_is_the_mean_over_samples_of_the_absolute_mean_over_positions() -> None:
    model = two_channels([2.0, 1.0], [3.0, -5.0])
    graph = ChannelGraph.of(model, image_chw=IMAGE)
    # Positions 1 and -3, then 2 and 4. Activation times gradient of channel 0 is 2 x 3 x pixel: means -6 and 18;
    # of channel 1, -5 x pixel: means 5 and -15.
    batches = [torch.tensor([1.0, -3.0]).view(1, 1, 2, 1), torch.tensor([2.0, 4.0]).view(1, 1, 2, 1)]
    found = taylor_importance(model, graph, batches, loss_fn=summed, is_normalised=False)
    np.testing.assert_allclose(found[graph.layers["0"].output_ids], [12.0, 10.0])
    joined = taylor_importance(model, graph, [torch.cat(batches)], loss_fn=summed, is_normalised=False)
    np.testing.assert_allclose(joined, found)


def test_normalised_importance_of_a_layer_has_length_one() -> None:
    model = two_channels([2.0, 1.0], [2.0, 3.0])
    graph = ChannelGraph.of(model, image_chw=IMAGE)
    found = taylor_importance(model, graph, [torch.ones(1, 1, 2, 1)], loss_fn=summed)
    np.testing.assert_allclose(found[graph.layers["0"].output_ids], [4 / 5, 3 / 5])


def test_channels_of_layers_that_stay_are_not_measured() -> None:
    model = two_channels([2.0, 1.0], [2.0, 3.0])
    graph = ChannelGraph.of(model, image_chw=IMAGE)
    found = taylor_importance(model, graph, [torch.ones(1, 1, 2, 1)], loss_fn=summed)
    assert measured_layers(graph) == ("0",)
    assert np.isnan(found[graph.layers["1"].output_ids]).all()


class Added(nn.Module):
    """Two convolutions of the image, added in place, and the sum of all channels."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 2, 1, bias=False), nn.Conv2d(1, 2, 1, bias=False)
        self.last = nn.Conv2d(2, 1, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        y += self.second(x)
        result: Tensor = self.last(y)
        return result


def test_joined_channels_get_the_sum_of_their_layers_also_when_added_in_place() -> None:
    model = Added()
    with torch.no_grad():
        for layer, values in ((model.first, [3.0, 4.0]), (model.second, [12.0, 5.0]), (model.last, [1.0, 1.0])):
            layer.weight.copy_(torch.tensor(values).view_as(layer.weight))
    graph = ChannelGraph.of(model, image_chw=IMAGE)
    found = taylor_importance(model, graph, [torch.ones(1, 1, 2, 1)], loss_fn=summed)
    # Lengths of (3, 4) and (12, 5): 5 and 13.
    np.testing.assert_allclose(found[graph.layers["first"].output_ids], [3 / 5 + 12 / 13, 4 / 5 + 5 / 13], rtol=1e-6)


def convolutions(activation: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(4)
    nn.init.normal_(norm.bias)
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), norm, activation, nn.Conv2d(4, 3, 3))


def test_activations_in_place_change_nothing() -> None:
    images = torch.randn(3, 1, 6, 6)
    found = []
    for inplace in (False, True):
        model = convolutions(nn.Hardswish(inplace=inplace))
        graph = ChannelGraph.of(model, image_chw=(1, 6, 6))
        found.append(taylor_importance(model, graph, [images], loss_fn=summed))
    np.testing.assert_array_equal(found[0], found[1])


def test_before_relu_is_the_same_number_as_after_it() -> None:
    model, images = convolutions(nn.ReLU()).eval(), torch.randn(3, 1, 6, 6)
    graph = ChannelGraph.of(model, image_chw=(1, 6, 6))
    found = taylor_importance(model, graph, [images], loss_fn=summed, is_normalised=False)
    maps = model[:3](images).detach().requires_grad_()
    (gradient,) = torch.autograd.grad(model[3](maps).sum(), maps)
    expected = (maps * gradient).mean((2, 3)).abs().mean(0)
    np.testing.assert_allclose(found[graph.layers["0"].output_ids], expected.detach(), rtol=1e-5)


def test_taylor_expansion_of_a_linear_network_is_the_oracle() -> None:
    model, images = two_channels([2.0, 1.0], [3.0, -5.0]), torch.ones(4, 1, 2, 1)
    graph = ChannelGraph.of(model, image_chw=IMAGE)

    def loss_fn(network: nn.Module, batch: Tensor) -> Tensor:
        return torch.as_tensor(network(batch)).mean((1, 2, 3)).sum() * 2

    taylor = taylor_importance(model, graph, [images], loss_fn=loss_fn, is_normalised=False)
    oracle = oracle_importance(model, graph, [images], loss_fn=loss_fn, ids=graph.prunable_ids)
    # Over 4 samples and 2 positions the oracle adds up what Taylor averages.
    np.testing.assert_allclose(taylor[graph.prunable_ids] * 8, oracle[graph.prunable_ids])
    np.testing.assert_allclose(oracle[graph.prunable_ids], [48.0, 40.0])


def test_measuring_leaves_no_trace() -> None:
    model = convolutions(nn.SiLU()).train()
    model[1].eval()
    model[0].requires_grad_(False)
    model[3].weight.grad = torch.ones_like(model[3].weight)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    graph = ChannelGraph.of(model, image_chw=(1, 6, 6))
    images = torch.randn(2, 1, 6, 6)
    taylor_importance(model, graph, [images], loss_fn=summed)
    oracle_importance(model, graph, [images], loss_fn=summed, ids=graph.prunable_ids)
    assert [module.training for module in model] == [True, False, True, True]
    assert [parameter.requires_grad for parameter in model[0].parameters()] == [False, False]
    assert model[3].weight.requires_grad
    assert torch.equal(model[3].weight.grad, torch.ones_like(model[3].weight))
    assert model[3].bias.grad is None
    assert not any(module._forward_hooks for module in model.modules())
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_an_error_within_leaves_no_trace_either() -> None:
    model = convolutions(nn.SiLU()).train()
    graph = ChannelGraph.of(model, image_chw=(1, 6, 6))
    before = model[1].weight.detach().clone()

    def fail() -> None:
        assert not model.training
        assert not model[1].weight.any()
        raise ZeroDivisionError

    recorder = ProductRecorder(model, graph, lambda layer, products: None)
    with pytest.raises(ZeroDivisionError), recorder, masked(model, graph, graph.prunable_ids):
        fail()
    assert model.training
    assert model[0].weight.requires_grad
    assert torch.equal(model[1].weight, before)
    assert not model[1]._forward_hooks


def test_masked_channels_are_zero_behind_their_norm() -> None:
    model, images = convolutions(nn.SiLU()).eval(), torch.randn(2, 1, 6, 6)
    graph = ChannelGraph.of(model, image_chw=(1, 6, 6))
    with masked(model, graph, graph.layers["0"].output_ids[1:3]):
        silent = model[:3](images).flatten(2).any(2)
    assert silent.tolist() == [[True, False, False, True]] * 2


def test_detector_is_measured_at_its_batch_norms() -> None:
    layers = measured_layers(ChannelGraph.of(build_model(ModelSpec.from_yaml("yolov5n"))))
    assert all(name.endswith(".bn") for name in layers)
    assert len(layers) == 59


def test_channel_of_a_dense_network_is_measured_at_every_norm_it_passes() -> None:
    graph = ChannelGraph.of(DenseNetCifar(depth=7, growth=2), image_chw=(3, 32, 32))
    norms = tuple(name for name, layer in graph.layers.items() if layer.is_norm)
    assert measured_layers(graph) == norms
    assert len(norms) == 6


def detector_taylor(model: Detector, graph: ChannelGraph, *, config: TrainConfig, batches: int) -> FloatArray:
    """Importance on the augmented batches that train.py would take."""
    names = ("RBC", "WBC", "Platelets")[: model.spec.num_classes]
    network = Network(model=model, spec=model.spec, names=names)
    hyp = read_hyp(config, DETECTION.recipe)
    task = short_training(DETECTION, config, network, hyp=hyp, device=torch.device("cpu"))
    return taylor_importance(model, graph, islice(task.batches(0), batches), loss_fn=task.loss_of)


def test_detector_taylor_scores_every_channel_and_repeats_itself(tmp_path: Path) -> None:
    config = tiny_config(tmp_path)
    torch.manual_seed(0)
    model = build_model(ModelSpec.from_yaml(TINY_CFG, num_classes=3))
    graph = ChannelGraph.of(model)
    first, again = (detector_taylor(model, graph, config=config, batches=3) for _ in range(2))
    assert (first[graph.prunable_ids] > 0).all()
    np.testing.assert_array_equal(first, again)


def test_detector_of_other_classes_than_the_data_is_refused(tmp_path: Path) -> None:
    model = build_model(ModelSpec.from_yaml(TINY_CFG, num_classes=2))
    with pytest.raises(ConfigError, match="has 3 classes, the network 2"):
        detector_taylor(model, ChannelGraph.of(model), config=tiny_config(tmp_path), batches=1)


def test_taylor_ranks_channels_of_a_network_trained_on_mnist_as_the_oracle_does(shared: Path) -> None:
    pictures = read_picture_file(shared / "data/classification/mnist.npz").train
    torch.manual_seed(0)
    model = LeNet5()
    task = classification_task(pictures, batch_size=96)
    task.train_(model, updates=150, lr=0.05)
    graph = ChannelGraph.of(model, image_chw=(1, 28, 28))
    batches = list(islice(task.batches(1), 2))
    taylor = taylor_importance(model, graph, batches, loss_fn=task.loss_of)
    oracle = oracle_importance(model, graph, batches, loss_fn=task.loss_of, ids=graph.prunable_ids)
    assert spearman(taylor[graph.prunable_ids], oracle[graph.prunable_ids]) > 0.7


def test_rank_correlation_of_known_lists() -> None:
    assert spearman(np.array([1.0, 2.0, 3.0]), np.array([10.0, 100.0, 1000.0])) == pytest.approx(1.0)
    assert spearman(np.array([1.0, 2.0, 3.0]), np.array([3.0, 2.0, 1.0])) == pytest.approx(-1.0)
    # Ranks 1.5, 1.5, 3 against 1, 2, 3.
    assert spearman(np.array([0.0, 0.0, 5.0]), np.array([1.0, 2.0, 3.0])) == pytest.approx(0.75**0.5)


def test_no_batches_are_refused() -> None:
    model = two_channels([2.0, 1.0], [2.0, 3.0])
    graph = ChannelGraph.of(model, image_chw=IMAGE)
    with pytest.raises(DataError, match="no batches"):
        taylor_importance(model, graph, [], loss_fn=summed)
    with pytest.raises(DataError, match="no batches"):
        oracle_importance(model, graph, [], loss_fn=summed, ids=graph.prunable_ids)


def test_loss_that_is_no_number_names_a_layer() -> None:
    model = two_channels([2.0, float("nan")], [2.0, 3.0])
    graph = ChannelGraph.of(model, image_chw=IMAGE)
    with pytest.raises(PruningError, match="layer 0: activation x gradient of 1 of 2 channels"):
        taylor_importance(model, graph, [torch.ones(1, 1, 2, 1)], loss_fn=summed)


def test_network_of_which_nothing_can_be_pruned_is_refused() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 1))
    graph = ChannelGraph.of(model, image_chw=IMAGE)
    with pytest.raises(PruningError, match="no channel can be pruned"):
        taylor_importance(model, graph, [torch.ones(1, 1, 2, 1)], loss_fn=summed)
