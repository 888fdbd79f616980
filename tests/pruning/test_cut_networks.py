"""The cut of every network we ship or promise, against the masked network."""

from __future__ import annotations

from pathlib import Path

import numpy as np
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


def share_of_channels(graph: ChannelGraph) -> float:
    """Share of the output channels of all layers that can be pruned."""
    made = np.concatenate([layer.output_ids for layer in graph.layers.values() if not layer.is_norm])
    return float(graph.is_prunable(made).mean())


@pytest.mark.parametrize(
    ("name", "share"), [("convnext_tiny", 0.6), ("regnet_x_400mf", 0.6), ("resnext50_32x4d", 0.6)]
)
def test_most_channels_of_networks_of_groups_and_of_vectors_can_be_pruned(name: str, share: float) -> None:
    assert share_of_channels(ChannelGraph.of(getattr(import_torchvision().models, name)(weights=None))) > share


def test_network_of_vectors_at_every_position_equals_it_masked() -> None:
    convnext = import_torchvision().models.convnext
    stages = [convnext.CNBlockConfig(8, 16, 2), convnext.CNBlockConfig(16, None, 1)]
    check_cut_of(convnext.ConvNeXt(stages, layer_scale=1.0, num_classes=5))


def test_frozen_norms_are_cut_with_the_layers_before_them() -> None:
    models = import_torchvision().models
    model = models.resnet18(weights=None, norm_layer=import_torchvision().ops.misc.FrozenBatchNorm2d)
    pruned = check_cut_of(model)
    assert share_of_channels(ChannelGraph.of(model)) > 0.8
    assert len(pruned.layer1[0].bn1.running_mean) == pruned.layer1[0].conv1.out_channels < 64


@pytest.mark.parametrize("name", ["repvgg_a0", "vit_tiny_patch16_224", "xception41"])
def test_network_of_timm_equals_it_masked(name: str) -> None:
    import_torchvision()
    timm = pytest.importorskip("timm")
    side = 224 if name.startswith("vit") else 64
    model = timm.create_model(name, num_classes=10)
    check_cut_of(model, image_chw=(3, side, side))
    assert share_of_channels(ChannelGraph.of(model.eval(), image_chw=(3, side, side))) > 0.7


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
