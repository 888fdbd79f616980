"""The channel graph of every network we ship or promise, against the masking oracle."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from mask_oracle import deviation, some_ids
from torch import nn

from models.classifiers import DenseNetCifar, LeNet5
from models.detector import Detector, build_model
from models.load import load_model
from models.spec import MODELS_FOLDER, ModelSpec
from pruning.channels.graph import ChannelGraph, LayerChannels
from utils.boxes.torchvision_compat import import_torchvision
from utils.storage.files import read_yaml

NAMES = sorted(path.stem for path in MODELS_FOLDER.glob("*.yaml"))
TOLERANCE = 1e-10


def narrow(name: str) -> Detector:
    """A shipped network at an eighth of its full width: all its layers, few channels."""
    values = read_yaml(MODELS_FOLDER / f"{name}.yaml", what="model")
    # Which blocks of MobileNet widen depends on its widths, and they are small.
    width = values["width_multiple"] if "mobilenet" in name else 0.125
    return build_model(ModelSpec.from_yaml_dict({**values, "width_multiple": width}, where=name, num_classes=2))


def check_masking(model: nn.Module, *, image_chw: tuple[int, int, int] | None = None) -> None:
    torch.manual_seed(0)
    graph = ChannelGraph.of(model, image_chw=image_chw)
    side = max(64, model.max_stride) if isinstance(model, Detector) else 64
    images = torch.rand(1, *(image_chw or (3, side, side)), dtype=torch.float64)
    assert deviation(model, graph, images, some_ids(graph, seed=1)) < TOLERANCE


@pytest.mark.parametrize("name", NAMES)
def test_readers_of_masked_channels_do_not_matter_in_any_shipped_network(name: str) -> None:
    check_masking(narrow(name))


@pytest.mark.parametrize("name", NAMES)
def test_full_width_shares_channels_between_the_same_layers(name: str) -> None:
    with torch.device("meta"):
        full = ChannelGraph.of(build_model(ModelSpec.from_yaml(name)))
    small = ChannelGraph.of(narrow(name))
    assert [group.producers for group in full.groups] == [group.producers for group in small.groups]
    assert [group.consumers for group in full.groups] == [group.consumers for group in small.groups]


@pytest.mark.parametrize("name", ["resnet18", "densenet121", "mobilenet_v2", "mobilenet_v3_small", "efficientnet_b0"])
def test_readers_of_masked_channels_do_not_matter_in_torchvision_classifiers(name: str) -> None:
    check_masking(getattr(import_torchvision().models, name)(weights=None))


def test_readers_of_masked_channels_do_not_matter_in_vgg() -> None:
    vgg = import_torchvision().models.vgg16_bn(weights=None, init_weights=False)
    # Its linear layers hold 120 million numbers; narrower ones test the same.
    vgg.classifier = nn.Sequential(nn.Linear(512 * 49, 64), nn.ReLU(), nn.Dropout(), nn.Linear(64, 10))
    check_masking(vgg, image_chw=(3, 32, 32))


def test_readers_of_masked_channels_do_not_matter_in_small_classifiers() -> None:
    check_masking(LeNet5(), image_chw=(1, 28, 28))
    check_masking(DenseNetCifar(), image_chw=(3, 32, 32))


def test_pruned_network_can_be_followed_again() -> None:
    widths = {"model.1": 27, "model.2.cv2": 3, "model.2.cv3": 30, "model.8.cv1": 1, "model.9.m.0.cv1": 7}
    check_masking(build_model(replace(ModelSpec.from_yaml("yolov5n", num_classes=2), widths=widths)))
    mobile = ModelSpec.from_yaml("yolov5s-mobilenetv3-small-075", num_classes=2)
    check_masking(build_model(replace(mobile, widths={"model.4.expand": 50, "model.4.se.fc1": 9})))


@pytest.mark.parametrize("name", ["yolov5s_v5_h2b_2classes", "yolov5n_v6_coco"])
def test_readers_of_masked_channels_do_not_matter_in_official_checkpoints(name: str, shared: Path) -> None:
    check_masking(load_model(shared / f"weights/{name}.pt").model)


@pytest.mark.parametrize("victim", ["model.1.conv", "model.6.m.2.cv1.conv", "model.23.cv3.conv"])
def test_oracle_notices_a_layer_whose_inputs_are_off_by_one(victim: str) -> None:
    torch.manual_seed(0)
    model = narrow("yolov5s")
    graph = ChannelGraph.of(model)
    layer = graph.layers[victim]
    wrong = LayerChannels(
        name=victim, kind=layer.kind, input_ids=np.roll(layer.input_ids, 1), output_ids=layer.output_ids
    )
    planted = replace(graph, layers={**graph.layers, victim: wrong})
    images = torch.rand(1, 3, 64, 64, dtype=torch.float64)
    assert deviation(model, planted, images, layer.input_ids[:3]) > 1e-6
    assert deviation(model, graph, images, layer.input_ids[:3]) < TOLERANCE
