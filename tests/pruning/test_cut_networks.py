"""The cut of every network we ship or promise, against the masked network."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from cut_oracle import check_cut_of
from test_masking import NAMES, narrow
from torch import nn

from models.classifiers import DenseNetCifar, LeNet5
from models.detector import build_model
from models.load import load_model
from models.spec import ModelSpec
from pruning.channels.graph import ChannelGraph
from utils.boxes.torchvision_compat import import_torchvision


@pytest.mark.parametrize("name", NAMES)
def test_every_shipped_network_cut_equals_it_masked(name: str, tmp_path: Path) -> None:
    pruned = check_cut_of(narrow(name))
    # The spec alone rebuilds it, also by way of a YAML.
    pruned.spec.to_yaml(tmp_path / "pruned.yaml")
    with torch.device("meta"):
        again = build_model(ModelSpec.from_yaml(tmp_path / "pruned.yaml"))
    shapes = {key: tensor.shape for key, tensor in pruned.state_dict().items()}
    assert {key: tensor.shape for key, tensor in again.state_dict().items()} == shapes


@pytest.mark.parametrize("name", ["yolov5n", "yolov5s-mobilenetv3-small-075"])
def test_a_cut_network_can_be_cut_again(name: str) -> None:
    once = check_cut_of(narrow(name))
    twice = check_cut_of(once)
    sizes = [sum(p.numel() for p in network.parameters()) for network in (narrow(name), once, twice)]
    assert sizes[0] > sizes[1] > sizes[2]


@pytest.mark.parametrize("name", ["yolov5s_v5_h2b_2classes", "yolov5n_v6_coco"])
def test_official_checkpoint_cut_equals_it_masked(name: str, shared: Path) -> None:
    check_cut_of(load_model(shared / f"weights/{name}.pt").model)


@pytest.mark.parametrize(
    "name",
    ["resnet18", "resnet50", "densenet121", "mobilenet_v2", "mobilenet_v3_large", "mobilenet_v3_small",
     "efficientnet_b0", "mnasnet0_5", "squeezenet1_1", "regnet_y_400mf",
     "resnext50_32x4d"],
)  # fmt: skip
def test_classifier_of_torchvision_keeps_its_class_and_equals_it_masked(name: str) -> None:
    model = getattr(import_torchvision().models, name)(weights=None)
    pruned = check_cut_of(model)
    assert type(pruned) is type(model)


def test_network_of_branches_cut_equals_it_masked() -> None:
    check_cut_of(import_torchvision().models.googlenet(weights=None, aux_logits=False, init_weights=False))


def test_network_of_vectors_at_every_position_is_left_whole_and_says_why() -> None:
    graph = ChannelGraph.of(import_torchvision().models.convnext_tiny(weights=None))
    assert len(graph.prunable_ids) == 0
    assert "torch.permute in features.7.0.block.1: it moves channels to another dimension" in graph.protected.values()


def test_vgg_cut_equals_it_masked() -> None:
    vgg = import_torchvision().models.vgg16_bn(weights=None, init_weights=False)
    # Its linear layers hold 120 million numbers; narrower ones test the same.
    vgg.classifier = nn.Sequential(nn.Linear(512 * 49, 64), nn.ReLU(), nn.Dropout(), nn.Linear(64, 10))
    pruned = check_cut_of(vgg, image_chw=(3, 32, 32))
    assert pruned.classifier[0].in_features == 49 * pruned.features[-4].out_channels


def test_shuffling_network_that_splits_channels_equals_it_masked() -> None:
    check_cut_of(import_torchvision().models.shufflenet_v2_x0_5(weights=None))


def test_small_classifiers_cut_equal_themselves_masked() -> None:
    check_cut_of(LeNet5(), image_chw=(1, 28, 28))
    check_cut_of(DenseNetCifar(), image_chw=(3, 32, 32))
