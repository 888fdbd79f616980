"""Networks whose convolutions are narrower than their layer list says."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from models.detector import build_model
from models.spec import ModelSpec
from models.widths import Width, Widths
from utils.errors import ConfigError

SPEC = ModelSpec.from_yaml("yolov5n", num_classes=2)


def run(spec: ModelSpec) -> list[torch.Tensor]:
    model = build_model(spec).eval()
    with torch.no_grad():
        return model(torch.rand(1, 3, 64, 64))


def test_width_look_up_falls_back_to_the_nominal_count() -> None:
    widths = Widths({"model.4.cv1": 5}, path="model.4")
    assert widths.conv("cv1", 8) == Width(8, 5)
    assert widths.conv("cv2", 8) == Width(8, 8)
    assert widths.unused == ()


def test_any_convolution_can_be_narrower() -> None:
    widths = {
        "model.0.conv": 13,
        "model.1": 27,
        "model.2.cv2": 3,
        "model.2.cv3": 30,
        "model.8.cv1": 1,
        "model.9.m.0.cv1": 7,
        "model.10": 100,
        "model.13.m.0.cv2": 11,
        "model.23.cv3": 200,
    }
    spec = replace(SPEC, widths=widths)
    model = build_model(spec)
    assert model.get_submodule("model.0.conv.conv").weight.shape == (13, 12, 3, 3)
    assert model.get_submodule("model.1.conv").weight.shape == (27, 13, 3, 3)
    # Three pooled maps and the map itself, one channel each.
    assert model.get_submodule("model.8.cv2.conv").weight.shape[1] == 4
    assert model.get_submodule("model.24.m.2").weight.shape[1] == 200
    assert [head.shape[2] for head in run(spec)] == [8, 4, 2]


def test_pruned_network_is_rebuilt_strictly_from_its_spec_alone() -> None:
    spec = replace(
        SPEC, widths={"model.4.cv1": 20, "model.4.m.0.cv2": 20, "model.4.m.1.cv2": 20, "model.4.m.2.cv2": 20}
    )
    first = build_model(spec)
    second = build_model(ModelSpec.from_dict(first.spec.to_dict()))
    assert second.load_state_dict(first.state_dict(), strict=True).missing_keys == []


def test_shortcut_between_unequal_widths_is_refused_by_layer() -> None:
    with pytest.raises(ConfigError, match=r"layer 2 \(C3.*a shortcut adds 5 to 16 channels"):
        build_model(replace(SPEC, widths={"model.2.cv1": 5}))


def test_block_without_shortcut_never_gains_one_by_pruning() -> None:
    rows = list(SPEC.layers)
    rows[2] = replace(rows[2], module="Bottleneck", number=1, args=(24,))
    # 32 channels come in and 24 are declared; pruned to 32 both ends agree by chance.
    model = build_model(replace(SPEC, layers=tuple(rows), widths={"model.2.cv2": 32}))
    assert model.get_submodule("model.2").add is False


def test_c3_without_bottlenecks_joins_its_two_convolutions() -> None:
    rows = list(SPEC.layers)
    rows[2] = replace(rows[2], number=0)
    block = build_model(replace(SPEC, layers=tuple(rows))).get_submodule("model.2").eval()
    x = torch.rand(1, 32, 8, 8)
    expected = block.cv3(torch.cat((block.cv1(x), block.cv2(x)), 1))
    torch.testing.assert_close(block(x), expected, rtol=0, atol=0)


def test_depthwise_convolution_follows_its_input() -> None:
    spec = ModelSpec.from_yaml("yolov5s-mobilenetv3-small-075", num_classes=2)
    spec = replace(spec, widths={"model.4.expand": 50, "model.4.se.fc1": 9})
    block = build_model(spec).get_submodule("model.4")
    assert block.depthwise.conv.weight.shape == (50, 1, 5, 5)
    assert block.se.fc2.weight.shape == (50, 9, 1, 1)


def test_every_block_kind_takes_narrower_widths() -> None:
    run(replace(ModelSpec.from_yaml("yolov5n-v6", num_classes=2), widths={"model.9.cv1": 3, "model.0": 9}))
    transformer = ModelSpec.from_yaml("yolov5s-transformer", num_classes=2)
    heads = run(replace(transformer, widths={"model.9.cv1": 8, "model.9.cv2": 3}))
    assert heads[2].shape == (1, 3, 2, 2, 7)


def test_transformer_width_must_suit_its_heads() -> None:
    spec = ModelSpec.from_yaml("yolov5s-transformer", num_classes=2)
    with pytest.raises(ConfigError, match="cv1 has 7 channels, expected a multiple of 4"):
        build_model(replace(spec, widths={"model.9.cv1": 7}))


def test_width_of_no_convolution_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"no convolution of this network: model\.4\.cv9"):
        build_model(replace(SPEC, widths={"model.4.cv9": 4}))


def test_wrong_arguments_name_the_layer() -> None:
    rows = list(SPEC.layers)
    rows[1] = replace(rows[1], args=(32, 3, 2, 1, 1, "swoosh"))
    with pytest.raises(ConfigError, match=r"layer 1 \(Conv.*unknown activation 'swoosh'"):
        build_model(replace(SPEC, layers=tuple(rows)))
