"""Metadata: what was written is read back, and anything else is one line."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import exporting
import pytest
import torch
from exporting import network

from deploy.outputs.detector import DetectorSource
from deploy.outputs.heads import ExportMetadata
from deploy.outputs.metadata import check_is_of, read_metadata
from models.detector import Detector
from utils.errors import CheckpointError, ConfigError


@pytest.fixture(scope="module")
def model() -> Detector:
    return network("tiny")


def metadata_of(model: Detector, **settings: Any) -> ExportMetadata:
    return exporting.metadata_of(model, format=".onnx", versions={"onnx": "1"}, **settings)


def test_json_is_read_back_unchanged(model: Detector) -> None:
    metadata = metadata_of(model, dynamic=True)
    assert read_metadata(metadata.to_json(), where="a.onnx") == metadata


def test_metadata_of_a_network_hold_its_anchors_strides_and_names(model: Detector) -> None:
    metadata = metadata_of(model, image_hw=(64, 96))
    assert metadata.anchors[0] == (10, 13, 16, 30, 33, 23)
    assert torch.equal(metadata.anchor_tensor, model.anchors)
    assert (metadata.strides, metadata.num_classes, len(metadata.names)) == ((8, 16), 3, 3)
    assert metadata.versions == {"torch": torch.__version__, "onnx": "1"}


def test_input_size_is_fixed_unless_the_export_is_dynamic(model: Detector) -> None:
    assert metadata_of(model, image_hw=(64, 96)).input_hw == (64, 96)
    assert metadata_of(model, dynamic=True).input_hw is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"image_hw": (64, 100)}, "got 100, expected a multiple of the stride 16"),
        ({"image_hw": (0, 64)}, "got 0, expected a multiple"),
        ({"batch_size": 0}, "batch size: got 0"),
        ({"precision": "fp8"}, "known: fp32, fp16, bf16, int8"),
    ],
)
def test_settings_that_cannot_be_are_refused(model: Detector, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        metadata_of(model, **settings)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"names": ["a"]}, "names: got 1, expected 3"),
        ({"anchors": [[10.0, 13.0]]}, "expected one row w, h, w, h"),
        ({"strides": "8"}, "strides: got '8', expected a list"),
        ({"batch_size": True}, "batch_size: got True, expected a int"),
        ({"spec_fingerprint": None}, "spec_fingerprint: got None, expected a str"),
    ],
)
def test_field_of_another_kind_is_named_with_the_artefact(
    model: Detector, change: dict[str, Any], message: str
) -> None:
    values = {**json.loads(metadata_of(model).to_json()), **change}
    with pytest.raises(CheckpointError, match=f"metadata of a.onnx: .*{message}"):
        read_metadata(json.dumps(values), where="a.onnx")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "contains no metadata"),
        ("[]", r"got \[\], expected names and values"),
        ('{"format": ".on', "not JSON, or is truncated"),
    ],
)
def test_text_that_is_no_metadata_is_one_line(text: str, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        read_metadata(text, where="a.onnx")


def test_artefact_of_another_network_or_other_weights_is_refused(model: Detector) -> None:
    metadata = metadata_of(model)
    source = DetectorSource(model=model, names="abc", sha256="0" * 64)
    check_is_of(metadata, source, where="a.onnx")
    with pytest.raises(CheckpointError, match="exported from other weights"):
        check_is_of(metadata, replace(source, sha256="1" * 64), where="a.onnx")
    with pytest.raises(CheckpointError, match="exported from another network"):
        check_is_of(metadata, replace(source, model=network("pruned tiny")), where="a.onnx")


def test_maps_become_heads_in_the_order_of_the_detector(model: Detector) -> None:
    maps = [torch.arange(24.0).view(1, 24, 1, 1), torch.zeros(1, 24, 2, 1)]
    heads = metadata_of(model).raw_heads(maps, where="a.onnx")
    assert [tuple(head.shape) for head in heads] == [(1, 3, 1, 1, 8), (1, 3, 2, 1, 8)]
    assert heads[0][0, 1, 0, 0].tolist() == [8, 9, 10, 11, 12, 13, 14, 15]


def test_maps_of_another_class_count_are_refused(model: Detector) -> None:
    metadata = replace(metadata_of(model), names=("a",), num_classes=1)
    with pytest.raises(CheckpointError, match=r"maps of \[24, 24\] channels, its metadata expects \[18, 18\]"):
        metadata.raw_heads([torch.zeros(1, 24, 1, 1)] * 2, where="a.onnx")
