"""Model YAMLs and specs: round trips, scaling, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from models.spec import ModelSpec
from utils.errors import ConfigError

TINY = {
    "nc": 2,
    "anchors": [[10, 13, 16, 30], [30, 61, 62, 45]],
    "backbone": [[-1, 1, "Conv", [16, 3, 2]], [-1, 3, "C3", [32]], [-1, 1, "Conv", [32, 3, 2]]],
    "head": [[[1, 2], 1, "Detect", ["nc", "anchors"]]],
}


def tiny(**changes: object) -> ModelSpec:
    return ModelSpec.from_yaml_dict({**TINY, **changes}, where="test")


def test_name_of_a_shipped_yaml_is_found_with_and_without_suffix() -> None:
    assert ModelSpec.from_yaml("yolov5s.yaml") == ModelSpec.from_yaml("yolov5s")


def test_depth_and_width_multiples_scale_repeats_and_channels() -> None:
    spec = tiny(depth_multiple=0.67, width_multiple=0.75)
    assert spec.layers[1].number == 2  # round(3 * 0.67)
    assert spec.layers[0].args == (16, 3, 2)  # 12 to the next multiple of 8
    assert spec.layers[1].args == (24,)


def test_strides_follow_from_the_layer_list() -> None:
    assert tiny().strides == (2, 4)
    assert ModelSpec.from_yaml("yolov5-p7").strides == (8, 16, 32, 64, 128)


def test_class_count_and_anchors_can_be_replaced() -> None:
    anchors = [[1, 2, 3, 4], [5, 6, 7, 8]]
    spec = ModelSpec.from_yaml_dict(TINY, where="test", num_classes=7, anchors=anchors)
    assert spec.num_classes == 7
    assert spec.anchors == ((1.0, 2.0, 3.0, 4.0), (5.0, 6.0, 7.0, 8.0))


def test_anchor_count_gives_a_ladder_of_squares() -> None:
    spec = tiny(anchors=2)
    assert spec.anchors == ((4.0, 4.0, 5.66, 5.66), (8.0, 8.0, 11.31, 11.31))


@pytest.mark.parametrize("name", ["yolov5s", "yolov3-tiny", "yolov5s-mobilenetv3-small-075", "yolov5-p2"])
def test_yaml_round_trip_keeps_spec_and_widths(name: str, tmp_path: Path) -> None:
    spec = replace(ModelSpec.from_yaml(name), widths={"model.4.cv1": 5})
    spec.to_yaml(tmp_path / "pruned.yaml")
    assert ModelSpec.from_yaml(tmp_path / "pruned.yaml") == spec


def test_c3_without_bottlenecks_survives_the_yaml(tmp_path: Path) -> None:
    layers = list(tiny().layers)
    layers[1] = replace(layers[1], number=0)
    spec = replace(tiny(), layers=tuple(layers))
    spec.to_yaml(tmp_path / "m.yaml")
    assert ModelSpec.from_yaml(tmp_path / "m.yaml").layers[1].number == 0


def test_json_round_trip_keeps_the_spec_and_its_fingerprint() -> None:
    spec = tiny(widths={"model.1.m.0.cv2": 9})
    again = ModelSpec.from_dict(json.loads(json.dumps(spec.to_dict())))
    assert again == spec
    assert again.fingerprint() == spec.fingerprint()


def test_fingerprint_tells_widths_apart() -> None:
    assert tiny().fingerprint() != tiny(widths={"model.0": 15}).fingerprint()


@pytest.mark.parametrize(
    ("changes", "finding"),
    [
        ({"nc": 0}, "nc is 0"),
        ({"activation": "x"}, "unknown key activation"),
        ({"ch": 1}, "3 channels"),
        ({"width_multiple": 0}, "width_multiple is 0"),
        ({"backbone": None}, "backbone is missing"),
        ({"anchors": [[1, 2]]}, "1 rows; Detect reads 2"),
        ({"anchors": [[1, 2], [1, 2, 3]]}, "same number of w,h pairs"),
        ({"anchors": [[1, -2], [1, 2]]}, "got -2, expected sizes in pixels"),
        ({"anchors": None}, "expected one row"),
        ({"strides": [8, 16]}, "the layers give [2, 4]"),
        ({"widths": {"model.0": 0}}, "model.0 is 0"),
        ({"widths": [1]}, "widths is not a mapping"),
        ({"head": []}, "last layer must be Detect"),
        ({"head": [[[1, 9], 1, "Detect", []]]}, "layer 3: Detect: 'from' (1, 9) names no earlier layer"),
        ({"head": [[[0, 2], 1, "Concat", [1]], [[-1], 1, "Detect", []]]}, "different sizes: 1/2, 1/4"),
        ({"head": [[-1, 1, "C7", [8]], [[1, 2], 1, "Detect", []]]}, "layer 3: unknown module 'C7'"),
        ({"head": [[-1, 1, "Conv"], [[1, 2], 1, "Detect", []]]}, "expected [from, number, module"),
        ({"head": [[-1, 0, "Conv", [8]], [[1, 2], 1, "Detect", []]]}, "number is 0"),
        ({"head": [[[0, 1], 1, "Conv", [8]], [[1, 2], 1, "Detect", []]]}, "reads one layer"),
        ({"head": [[-1, 1, "Conv", ["a"]], [[1, 2], 1, "Detect", []]]}, "do not start with output channels"),
        ({"head": [[-1, 1, "Upsample", [None]], [[1, 2], 1, "Detect", []]]}, "give no stride"),
    ],
)
def test_mistake_in_a_yaml_is_named_with_file_and_place(
    changes: dict[str, object], finding: str, tmp_path: Path
) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(yaml.safe_dump({**TINY, **changes}))
    with pytest.raises(ConfigError) as caught:
        ModelSpec.from_yaml(file)
    assert finding in str(caught.value)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_yaml_lists_the_shipped_ones() -> None:
    with pytest.raises(ConfigError, match=r"yolov9\.yaml does not exist.*yolov5s"):
        ModelSpec.from_yaml("yolov9.yaml")


def test_description_with_a_missing_key_is_refused() -> None:
    with pytest.raises(ConfigError, match="here: not a network description"):
        ModelSpec.from_dict({"num_classes": 2}, where="here")
