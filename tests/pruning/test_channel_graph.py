"""What the channel graph says of known networks, counted by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from models.classifiers import DenseNetCifar, LeNet5
from models.detector import build_model
from models.spec import ModelSpec
from pruning.channels.graph import ChannelGraph, id_ranges
from utils.boxes.torchvision_compat import import_torchvision
from utils.errors import PruningError


def graph_of(name: str) -> ChannelGraph:
    with torch.device("meta"):
        return ChannelGraph.of(build_model(ModelSpec.from_yaml(name)))


def classifier(name: str) -> nn.Module:
    with torch.device("meta"):
        model: nn.Module = getattr(import_torchvision().models, name)(weights=None)
    return model


# Per C3 of hidden width h with n shortcuts: h (cv1 and every cv2 inside) + n h + h (cv2) + 2 h (cv3); without
# shortcuts each inner cv2 has its own h.
YOLOV5S = (
    (32 + 64 + 160 + 128 + 448 + 256 + 896 + 512 + 768 + 1536)  # backbone: 0 to 9
    + (256 + 768 + 128 + 384 + 128 + 768 + 256 + 1536)  # head: 10, 13, 14, 17, 18, 20, 21, 23
)


def test_yolov5s_has_as_many_prunable_channels_as_counted_by_hand() -> None:
    graph = graph_of("yolov5s")
    assert len(graph.prunable_ids) == YOLOV5S == 9024
    made = np.unique(np.concatenate([x.output_ids for x in graph.layers.values()]))
    # Three heads stay, in which the 85 numbers of each anchor are tied to those of the other two.
    assert len(made) == 9024 + 3 * 85


@pytest.mark.parametrize(
    ("model", "image_chw", "count"),
    [
        (lambda: LeNet5(), (1, 28, 28), 6 + 16 + 120 + 84),
        # Stem, 36 layers of 12, transitions of 16 + 144 and 16 + 288.
        (lambda: DenseNetCifar(), (3, 32, 32), 16 + 36 * 12 + 160 + 304),
        # Per stage: the sums share one list, and each block has one inside.
        (lambda: classifier("resnet18"), None, 3 * (64 + 128 + 256 + 512)),
        (lambda: classifier("resnet50"), None, 64 + 64 * 10 + 128 * 12 + 256 * 16 + 512 * 10),
        # 58 layers of 128 + 32, three transitions.
        (lambda: classifier("densenet121"), None, 64 + 58 * 160 + 128 + 256 + 512),
        (lambda: classifier("vgg16_bn"), None, 2 * 64 + 2 * 128 + 3 * 256 + 6 * 512 + 2 * 4096),
        # Stem, what the blocks widen to, what they put out, the last convolution.
        (
            lambda: classifier("mobilenet_v2"),
            None,
            32 + 6 * (16 + 24 * 2 + 32 * 3 + 64 * 4 + 96 * 3 + 160 * 3) + (16 + 24 + 32 + 64 + 96 + 160 + 320) + 1280,
        ),
    ],
)
def test_classifier_has_as_many_prunable_channels_as_counted_by_hand(
    model: object, image_chw: tuple[int, int, int] | None, count: int
) -> None:
    graph = ChannelGraph.of(model(), image_chw=image_chw)  # type: ignore[operator]
    assert len(graph.prunable_ids) == count
    assert set(graph.protected.values()) == {"input", "output"}


def test_shortcut_ties_the_entry_of_a_stage_to_the_end_of_every_bottleneck() -> None:
    layers = graph_of("yolov5s").layers
    entry = layers["model.4.cv1.conv"].output_ids
    for number in range(3):
        np.testing.assert_array_equal(layers[f"model.4.m.{number}.cv2.conv"].output_ids, entry)
        np.testing.assert_array_equal(layers[f"model.4.m.{number}.cv2.bn"].output_ids, entry)
        assert not set(layers[f"model.4.m.{number}.cv1.conv"].output_ids) & set(entry)
    # C3 of the head has no shortcuts.
    assert not set(layers["model.13.cv1.conv"].output_ids) & set(layers["model.13.m.0.cv2.conv"].output_ids)


def test_concat_lists_its_inputs_one_after_the_other() -> None:
    layers = graph_of("yolov5s").layers
    expected = np.concatenate([layers["model.10.conv"].output_ids, layers["model.6.cv3.conv"].output_ids])
    np.testing.assert_array_equal(layers["model.13.cv1.conv"].input_ids, expected)
    pooled = layers["model.8.cv1.conv"].output_ids
    np.testing.assert_array_equal(layers["model.8.cv2.conv"].input_ids, np.tile(pooled, 4))


def test_focus_reads_each_colour_four_times() -> None:
    graph = graph_of("yolov5s")
    np.testing.assert_array_equal(graph.layers["model.0.conv.conv"].input_ids, np.tile([0, 1, 2], 4))
    assert [graph.protected[channel] for channel in (0, 1, 2)] == ["input"] * 3


def test_heads_stay_and_what_they_read_does_not() -> None:
    graph = graph_of("yolov5s")
    for number in range(3):
        head = graph.layers[f"model.24.m.{number}"]
        assert not graph.is_prunable(head.output_ids).any()
        assert graph.is_prunable(head.input_ids).all()


def test_gate_depthwise_and_shortcut_share_one_list_in_mobilenet() -> None:
    layers = graph_of("yolov5s-mobilenetv3-small-075").layers
    wide = layers["model.4.expand.conv"].output_ids
    for name in ("depthwise.conv", "depthwise.bn", "se.fc2"):
        np.testing.assert_array_equal(layers[f"model.4.{name}"].output_ids, wide)
    assert layers["model.4.depthwise.conv"].kind == "depthwise"
    assert not set(layers["model.4.se.fc1"].output_ids) & set(wide)


def test_transformer_keeps_what_goes_through_attention_and_says_why() -> None:
    graph = graph_of("yolov5s-transformer")
    kept = graph.layers["model.9.cv1.conv"].output_ids
    reason = graph.protected[int(kept[0])]
    assert reason == "model.9.m.tr.0.ma is attention with a fixed width"
    assert not graph.is_prunable(kept).any()
    assert graph.is_prunable(graph.layers["model.9.cv2.conv"].output_ids).all()


def test_flatten_repeats_each_channel_once_per_position() -> None:
    layers = ChannelGraph.of(LeNet5(), image_chw=(1, 28, 28)).layers
    np.testing.assert_array_equal(layers["classifier.0"].input_ids, np.repeat(layers["features.3"].output_ids, 25))


class Twice(nn.Module):
    """The same convolution on two maps."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1)
        self.shared = nn.Conv2d(4, 5, 1)
        self.last = nn.Conv2d(10, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.cat((self.shared(self.first(x)), self.shared(self.second(x))), 1))


def test_module_that_is_used_twice_reads_and_makes_the_same_channels_both_times() -> None:
    graph = ChannelGraph.of(Twice())
    assert list(graph.layers) == ["first", "shared", "second", "last"]
    np.testing.assert_array_equal(graph.layers["first"].output_ids, graph.layers["second"].output_ids)
    np.testing.assert_array_equal(graph.layers["last"].input_ids, np.tile(graph.layers["shared"].output_ids, 2))
    assert len(graph.prunable_ids) == 4 + 5


def test_groups_and_owners_say_who_makes_scales_and_reads_a_channel() -> None:
    graph = graph_of("yolov5n")
    inner = graph.layers["model.2.m.0.cv2.conv"].output_ids
    group = next(group for group in graph.groups if inner[3] in group.ids)
    np.testing.assert_array_equal(group.ids, inner)
    assert group.producers == ("model.2.cv1.conv", "model.2.m.0.cv2.conv")
    assert group.norms == ("model.2.cv1.bn", "model.2.m.0.cv2.bn")
    assert group.consumers == ("model.2.m.0.cv1.conv", "model.2.cv3.conv")
    assert graph.owners(int(inner[3])) == tuple(
        (f"model.2.{name}", 3) for name in ("cv1.conv", "cv1.bn", "m.0.cv2.conv", "m.0.cv2.bn")
    )


def test_text_shows_sharing_and_reasons_in_ranges() -> None:
    assert ChannelGraph.of(Twice()).as_text().splitlines() == [
        "4 layers produce 11 channels; 9 can be pruned",
        "4 channels 3-6: first, second -> shared",
        "5 channels 7-11: shared -> last",
        "2 channels 21-22 (kept): last -> no layer",
        "kept 0-2: input",
        "kept 21-22: output",
    ]
    assert id_ranges(np.array([9, 3, 4, 5, 5, 12])) == "3-5,9,12"


def test_tracing_leaves_the_network_as_it_was() -> None:
    model = build_model(ModelSpec.from_yaml("yolov5n", num_classes=2)).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    ChannelGraph.of(model)
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_image_that_the_network_cannot_take_is_one_clear_line() -> None:
    with pytest.raises(PruningError, match=r"LeNet5 cannot be traced on images of 1 x 64 x 64 .*give the size"):
        ChannelGraph.of(LeNet5(), image_chw=(1, 64, 64))
