"""int8 for ncnn: the arithmetic against torch, the files, the ranges, and what stays in floating point."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from exporting import detector_job, export_arguments, export_ncnn, network
from int8_exports import BIN, CPU, HEADS, HW, PARAM, calibration_of, exported, heads_of, int8_layers, pictures
from torch import Tensor, nn

from deploy.calibration import as_input
from deploy.int8.calibration import Int8Calibration, Layers, calibrated
from deploy.ncnn.bin import FLOAT16_TAG, INT8_TAG, Stored, read_bin
from deploy.ncnn.int8 import ARITHMETIC, FloatFolder, write_int8
from deploy.ncnn.param import ParamLayer, read_param, write_param
from deploy.ncnn.runtime import load_ncnn, open_network
from deploy.outputs.metadata import folder_metadata
from deploy.settings import RuntimeOptions
from models.detector import Detector
from models.load import load_model
from models.prepare import ready_for_export
from quantization.rounding.compensation import compensate_
from quantization.runtime_layers import RuntimeLayer
from utils.errors import CheckpointError, ConfigError

ncnn = pytest.importorskip("ncnn", reason="the ncnn package is not installed")
pytest.importorskip("pnnx", reason="the pnnx package is not installed")


@dataclass(frozen=True)
class Known:
    """An fp32 export, and its layers in int8."""

    source: FloatFolder
    calibration: Int8Calibration
    layers: Layers

    @classmethod
    def of(cls, model: Detector, folder: Path, **settings: Any) -> Known:
        source, calibration = calibration_of(model, folder, **settings)
        return cls(source=source, calibration=calibration, layers=calibration.layers())


@pytest.fixture(scope="module")
def known(model: Detector, plain: Path) -> Known:
    return Known.of(model, plain)


def head_errors(heads: Sequence[Tensor], expected: Sequence[Tensor]) -> list[float]:
    """Of each head: norm of the difference over the norm."""
    return [float((head - exact).norm() / exact.norm()) for head, exact in zip(heads, expected, strict=True)]


def blobs_of(folder: Path, names: Sequence[str], image: Tensor) -> list[Tensor]:
    net = open_network(ncnn, folder, options=RuntimeOptions(), keeps_blobs=True)
    with net.create_extractor() as extractor:
        extractor.input("in0", ncnn.Mat(image[0].numpy()))
        return [torch.from_numpy(np.array(extractor.extract(name)[1])) for name in names]


# The arithmetic


def fake_quantized(x: Tensor, layer: RuntimeLayer, **conv: Any) -> Tensor:
    """What ncnn is expected to compute, in float64: rounded inputs and weights, exact sums."""
    assert layer.integers is not None
    scale = np.float32(1 / layer.integers.source.scale)
    scaled = x * torch.tensor(scale)
    inputs = (scaled.sign() * (scaled.abs() + 0.5).floor()).clamp(-127, 127)  # halves away from zero
    factors = torch.from_numpy(1 / layer.integers.scales).double()
    sums = F.conv2d(inputs.double()[None], torch.from_numpy(layer.integers.weight).double(), **conv)[0]
    return sums / (factors * float(scale))[:, None, None] + torch.from_numpy(layer.bias).double()[:, None, None]


def layer_error(known: Known, conv: nn.Module, name: str, *, image: Tensor, folder: Path) -> float:
    """One layer alone in int8: how far its output is from the fake-quantised convolution of its input, relative."""
    assert isinstance(conv, nn.Conv2d)
    write_int8(known.source, folder, {name: known.layers[name]})
    assert int8_layers(folder) == {name}
    layer = next(layer for layer in known.source.layers if layer.name == name)
    x, found = blobs_of(folder, (layer.inputs[0], layer.outputs[0]), image)
    expected = fake_quantized(x, known.layers[name], stride=conv.stride, padding=conv.padding, groups=conv.groups)
    if layer.number(9) == 1:  # ncnn's number for a ReLU inside the layer
        expected = expected.relu()
    return float((found - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("name", ["model.0.conv", "model.3.m.0.cv1.conv", "model.5.m.0.cv2.conv"])
def test_int8_convolution_is_the_fake_quantised_one_of_torch(
    name: str, model: Detector, known: Known, tmp_path: Path
) -> None:
    ready = ready_for_export(model)
    conv = ready.get_submodule(f"detector.{name}")
    # Another picture than those of the calibration, and brighter: values beyond the range are clamped.
    assert layer_error(known, conv, name, image=1.5 * pictures(1)[0], folder=tmp_path) < 1e-5


def test_whole_network_on_ncnn_is_the_one_that_was_calibrated(known: Known, tmp_path: Path) -> None:
    write_int8(known.source, tmp_path, known.layers)
    network = known.calibration.network
    real = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    images = torch.cat(pictures())
    with torch.no_grad():
        compensate_(network, known.calibration.images)
        maps = network(images)
    network.load_state_dict(real)
    known.calibration.keep_(())
    heads = folder_metadata(tmp_path).raw_heads(maps, where="fake mode")  # type: ignore[attr-defined]
    # All else is stored in 16 bits there, which turns some integers by one.
    assert max(head_errors(heads_of(tmp_path, images), heads)) < 5e-3


@pytest.fixture(scope="module")
def mobile(tmp_path_factory: pytest.TempPathFactory) -> tuple[Detector, Known]:
    """A network with depthwise convolutions; one of their channels is all zeros."""
    model = network("yolov5s-mobilenetv3-small-075.yaml")
    with torch.no_grad():
        model.get_submodule("model.2.depthwise.conv").weight[3] = 0  # type: ignore[operator]
    folder = exported(model, tmp_path_factory.mktemp("mobile") / "mobile_ncnn_model")
    return model, Known.of(model, folder, images=pictures(1))


@pytest.mark.parametrize("name", ["model.2.depthwise.conv", "model.5.depthwise.conv"])
def test_depthwise_int8_convolution_has_a_scale_per_channel(
    name: str, mobile: tuple[Detector, Known], tmp_path: Path
) -> None:
    model, known = mobile
    conv = ready_for_export(model).get_submodule(f"detector.{name}")
    assert isinstance(conv, nn.Conv2d)
    assert conv.groups == conv.out_channels > 1
    # On x86, ncnn's depthwise kernels take the reciprocal of the scales to 12 bits.
    assert layer_error(known, conv, name, image=pictures(1)[0], folder=tmp_path) < 4e-4


def test_a_network_with_depthwise_layers_and_gates_is_close_in_int8(
    mobile: tuple[Detector, Known], tmp_path: Path
) -> None:
    _, known = mobile
    write_int8(known.source, tmp_path, known.layers)
    images = pictures(1)[0]
    for half in (False, True):
        assert max(head_errors(heads_of(tmp_path, images, half=half), heads_of(known.source.folder, images))) < 0.3


# Ranges


def test_minmax_ranges_are_the_largest_inputs_that_torch_sees(model: Detector, plain: Path) -> None:
    known = Known.of(model, plain, calib_method="minmax")
    ready = ready_for_export(model)
    convs = {
        name.removeprefix("detector."): conv for name, conv in ready.named_modules() if isinstance(conv, nn.Conv2d)
    }
    largest: dict[str, float] = dict.fromkeys(convs, 0.0)

    def noting(name: str) -> Callable[..., None]:
        def note(_module: nn.Module, inputs: tuple[Tensor]) -> None:
            largest[name] = max(largest[name], float(inputs[0].abs().max()))

        return note

    for name, conv in convs.items():
        conv.register_forward_pre_hook(noting(name))
    for image in pictures():
        ready(image)
    found = {name: 127 * layer.integers.source.scale for name, layer in known.layers.items() if layer.integers}
    assert found.keys() == convs.keys() - HEADS
    # A pooling reads what is before it, whose range is that of all its values.
    assert all(found[name] >= largest[name] * (1 - 1e-4) for name in found)
    equal = [name for name in found if found[name] == pytest.approx(largest[name], rel=1e-4)]
    assert len(equal) > len(found) / 2


@pytest.mark.parametrize("method", ["mse", "kl"])
def test_other_ranges_are_within_the_minmax_ones(method: str, model: Detector, plain: Path) -> None:
    def scales(method: str) -> dict[str, float]:
        known = Known.of(model, plain, calib_method=method)
        return {name: layer.integers.source.scale for name, layer in known.layers.items() if layer.integers}

    narrow, full = scales(method), scales("minmax")
    assert narrow.keys() == full.keys()
    assert all(0 < narrow[name] <= full[name] * (1 + 1e-6) for name in full)
    assert narrow != full


# Files


def test_convolutions_are_named_by_their_module_paths_in_every_precision(
    model: Detector, plain: Path, tmp_path: Path
) -> None:
    half = exported(model, tmp_path / "half_ncnn_model", precision="fp16")
    paths = [name for name, module in ready_for_export(model).named_modules() if isinstance(module, nn.Conv2d)]
    for folder in (plain, half):
        names = {layer.name for layer in read_param(folder / PARAM) if layer.kind == "Convolution"}
        assert {f"detector.{name}" for name in names} == set(paths)


def test_bin_holds_the_weights_of_the_fused_network_by_name(model: Detector, plain: Path) -> None:
    arrays = read_bin(plain / BIN, read_param(plain / PARAM))
    for name, module in ready_for_export(model).named_modules():
        if isinstance(module, nn.Conv2d) and module.bias is not None:
            weight, bias = arrays[name.removeprefix("detector.")]
            assert np.array_equal(weight.values, module.weight.flatten().numpy())
            assert np.array_equal(bias.values, module.bias.numpy())


def test_param_reads_back_as_written(plain: Path, tmp_path: Path) -> None:
    layers = read_param(plain / PARAM)
    write_param(tmp_path / PARAM, layers)
    assert read_param(tmp_path / PARAM) == layers


def test_int8_layer_is_stored_as_tag_weights_bias_and_scales(known: Known, tmp_path: Path) -> None:
    write_int8(known.source, tmp_path, known.layers)
    data = (tmp_path / BIN).read_bytes()
    integers = known.layers["model.0.conv"].integers
    assert integers is not None
    # model.0.conv: 8 filters of 3 x 3 x 3.
    assert struct.unpack("<I", data[:4]) == (INT8_TAG,)
    assert np.array_equal(np.frombuffer(data, np.int8, count=216, offset=4), integers.weight.ravel())
    input_scale = np.frombuffer(data, "<f4", count=1, offset=4 + 216 + 32 + 32)[0]
    assert input_scale == pytest.approx(1 / integers.source.scale)


def test_int8_export_is_close_small_and_says_what_it_is(model: Detector, plain: Path, tmp_path: Path) -> None:
    folder = exported(model, tmp_path / "best_ncnn_model", precision="int8")
    assert {path.name for path in folder.iterdir()} == {PARAM, BIN, "SHA256SUMS", "metadata.json", "README.md"}
    assert folder_metadata(folder).precision == "int8"
    assert "int8 weights" in (folder / "README.md").read_text()
    assert (plain / BIN).stat().st_size > 3 * (folder / BIN).stat().st_size
    images = torch.cat(pictures())
    assert max(head_errors(heads_of(folder, images), heads_of(plain, images))) < 0.1


def test_half_leaves_int8_layers_int8(known: Known, tmp_path: Path) -> None:
    write_int8(known.source, tmp_path, known.layers)
    runtime = load_ncnn(tmp_path, device=CPU, options=RuntimeOptions(half=True))
    assert runtime.precision == "int8"
    images = torch.cat(pictures())
    assert max(head_errors(runtime(images), heads_of(known.source.folder, images))) < 0.1


def test_skipped_layers_and_the_head_are_stored_in_16_bits(model: Detector, tmp_path: Path) -> None:
    skip = ("model.0.conv", "model.3.m*")
    folder = exported(model, tmp_path / "best_ncnn_model", precision="int8", int8_skip=skip)
    names = {layer.name for layer in read_param(folder / PARAM) if layer.kind == "Convolution"}
    bottlenecks = {f"model.3.m.0.cv{index}.conv" for index in (1, 2)}
    assert names - int8_layers(folder) == {"model.0.conv", *bottlenecks, *HEADS}
    assert struct.unpack("<I", (folder / BIN).read_bytes()[:4]) == (FLOAT16_TAG,)


def test_with_every_layer_skipped_the_heads_are_those_of_fp16(known: Known, tmp_path: Path) -> None:
    write_int8(known.source, tmp_path, known.calibration.layers(skip=known.calibration.choosable))
    images = torch.cat(pictures())
    assert int8_layers(tmp_path) == set()
    assert max(head_errors(heads_of(tmp_path, images), heads_of(known.source.folder, images))) < 2e-3


def test_a_layer_without_bias_gets_one() -> None:
    layer = ParamLayer(kind="Convolution", name="c", inputs=("a",), outputs=("b",), settings=("0=4", "5=0", "6=8"))
    assert layer.with_number(5, 1).settings == ("0=4", "6=8", "5=1")


def test_a_layer_whose_weight_the_export_has_otherwise_stays_as_it_is(
    model: Detector, plain: Path, caplog: pytest.LogCaptureFixture
) -> None:
    job = detector_job(model, calibration=pictures(), **export_arguments(model, image_hw=HW))
    stored = {**FloatFolder.read(plain).stored}
    stored["model.0.conv"] = stored["model.0.conv"] + np.float32(1)
    del stored["model.1.conv"]
    calibration = calibrated(job, ARITHMETIC, metadata=folder_metadata(plain), stored=stored)
    assert {"model.0.conv", "model.1.conv"} <= calibration.fixed <= calibration.floats
    assert "since the artefact has another weight: model.0.conv" in caplog.text
    weight = calibration.network.weights("model.0.conv")[0].clone()
    layers = calibration.layers()
    assert not {"model.0.conv", "model.1.conv"} & layers.keys()
    assert torch.equal(calibration.network.weights("model.0.conv")[0], weight)


def test_weights_beyond_16_bits_stay_in_32() -> None:
    large = Stored(values=np.array([1e6, 1.0], dtype=np.float32), has_tag=True)
    assert large.as_bytes == struct.pack("<Iff", 0, 1e6, 1.0)
    small = Stored(values=np.array([2.0, 1.0, 0.5], dtype=np.float32), has_tag=True)
    assert small.as_bytes == struct.pack("<Ieee", FLOAT16_TAG, 2.0, 1.0, 0.5) + bytes(2)


# Bad input


def test_int8_without_images_and_unknown_patterns_leave_nothing_behind(model: Detector, tmp_path: Path) -> None:
    folder = tmp_path / "best_ncnn_model"
    with pytest.raises(ConfigError, match=r"int8 needs images to calibrate on; give --data"):
        export_ncnn(model, folder, **export_arguments(model, image_hw=HW, precision="int8"))
    with pytest.raises(ConfigError, match=r"--int8-skip model\.77\* matches no convolution; .*model\.0\.conv"):
        exported(model, folder, precision="int8", int8_skip=("model.77*",))
    assert list(tmp_path.iterdir()) == []


def test_bins_that_are_cut_off_not_fp32_or_of_unknown_layers_are_refused(
    model: Detector, plain: Path, tmp_path: Path
) -> None:
    layers = read_param(plain / PARAM)
    data = (plain / BIN).read_bytes()
    (tmp_path / BIN).write_bytes(data[:-4])
    with pytest.raises(CheckpointError, match=r"is truncated at layer model\.9\.m\.1"):
        read_bin(tmp_path / BIN, layers)
    (tmp_path / BIN).write_bytes(data + bytes(8))
    with pytest.raises(ConfigError, match=r"8 bytes belong to layers whose storage is not known, among .*Swish"):
        read_bin(tmp_path / BIN, layers)
    half = exported(model, tmp_path / "half_ncnn_model", precision="fp16")
    with pytest.raises(CheckpointError, match=r"layer model\.0\.conv is not stored in fp32"):
        FloatFolder.read(half)


def test_layer_settings_are_read_as_ncnn_reads_them() -> None:
    layer = ParamLayer(kind="Gemm", name="g", inputs=("a",), outputs=("b",), settings=("10=-1", "1=7"))
    assert (layer.number(10), layer.number(1), layer.number(0), layer.number(7, 3)) == (-1, 7, 0, 3)
    assert layer.as_line().split() == ["Gemm", "g", "1", "1", "a", "b", "10=-1", "1=7"]


# Layers that stay as they are


MIXED_YAML = """\
nc: 3
depth_multiple: 1.0
width_multiple: 0.25
anchors: [[10, 13, 16, 30, 33, 23]]
backbone:
  - [-1, 1, Conv, [64, 3, 2]]
  - [-1, 1, BottleneckCSP, [64]]
  - [-1, 1, Conv, [64, 3, 2]]
  - [-1, 1, C3TR, [64]]
head:
  - [[-1], 1, Detect, [nc, anchors]]
"""


def test_attention_and_norms_behind_joins_survive_the_copy_to_int8(tmp_path: Path) -> None:
    (tmp_path / "mixed.yaml").write_text(MIXED_YAML)
    model = network(str(tmp_path / "mixed.yaml"))
    folder = exported(model, tmp_path / "mixed_ncnn_model")
    kinds = {layer.kind for layer in read_param(folder / PARAM)}
    assert {"BatchNorm", "Gemm", "MultiHeadAttention"} <= kinds
    known = Known.of(model, folder, images=pictures(1))
    assert any(layer.integers for layer in known.layers.values())
    write_int8(known.source, tmp_path, known.layers)
    images = pictures(1)[0]
    assert max(head_errors(heads_of(tmp_path, images), heads_of(folder, images))) < 0.1


# Trained weights


def test_trained_weights_in_int8_are_close_on_real_photographs(shared: Path, tmp_path: Path) -> None:
    model = load_model(shared / "weights/yolov5n_v6_coco.pt").model
    photos = sorted((shared / "data/coco128_val/images").glob("*.jpg"))[:9]
    images = [as_input(str(path), HW) for path in photos]
    folder = exported(model, tmp_path / "fp32_ncnn_model")
    known = Known.of(model, folder, images=images[:8])
    write_int8(known.source, tmp_path, known.layers)
    assert (folder / BIN).stat().st_size / (tmp_path / BIN).stat().st_size > 3.5
    assert max(head_errors(heads_of(tmp_path, images[8]), heads_of(folder, images[8]))) < 0.15
