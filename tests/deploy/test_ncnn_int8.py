"""int8 for ncnn: the arithmetic against torch, the files, the ranges, and what stays in floating point."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from exporting import export_arguments, export_ncnn, network
from int8_exports import BIN, CPU, HEADS, HW, PARAM, exported, heads_of, int8_layers, pictures
from torch import Tensor, nn

from deploy.calibration import as_input
from deploy.ncnn.bin import FLOAT16_TAG, INT8_TAG, Stored, read_bin
from deploy.ncnn.int8 import Calibrated, Int8Settings, calibrate, quantized_weights, write_int8
from deploy.ncnn.param import ParamLayer, read_param, write_param
from deploy.ncnn.ranges import NUM_BINS, kl_range
from deploy.ncnn.runtime import load_ncnn, open_network
from deploy.outputs.metadata import folder_metadata
from deploy.settings import RuntimeOptions
from models.detector import Detector
from models.load import load_model
from models.prepare import ready_for_export
from utils.errors import CheckpointError, ConfigError

ncnn = pytest.importorskip("ncnn", reason="the ncnn package is not installed")
pytest.importorskip("pnnx", reason="the pnnx package is not installed")


@pytest.fixture(scope="module")
def model() -> Detector:
    return network("tiny")


@pytest.fixture(scope="module")
def plain(model: Detector, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny detector in fp32, not to be changed."""
    return exported(model, tmp_path_factory.mktemp("fp32") / "tiny_ncnn_model")


@pytest.fixture(scope="module")
def calibrated(plain: Path) -> Calibrated:
    return calibrate(plain, images=pictures(), method="minmax")


def head_errors(heads: Sequence[Tensor], expected: Sequence[Tensor]) -> list[float]:
    """Of each head: norm of the difference over the norm."""
    return [float((head - exact).norm() / exact.norm()) for head, exact in zip(heads, expected, strict=True)]


def blobs_of(folder: Path, names: Sequence[str], image: Tensor) -> list[Tensor]:
    net = open_network(ncnn, folder, options=RuntimeOptions(), keeps_blobs=True)
    with net.create_extractor() as extractor:
        extractor.input("in0", ncnn.Mat(image[0].numpy()))
        return [torch.from_numpy(np.array(extractor.extract(name)[1])) for name in names]


# The arithmetic


def test_largest_weight_of_each_channel_becomes_127_and_zeros_keep_a_finite_scale() -> None:
    weights = np.array([[1.0, -2.0, 0.5], [0.0, 0.0, 0.0]], dtype=np.float32)
    quantized, scales = quantized_weights(weights)
    assert quantized.tolist() == [[64, -127, 32], [0, 0, 0]]
    assert scales.tolist() == [63.5, 1.0]


def fake_quantized(x: Tensor, weight: Tensor, bias: Tensor, *, input_range: float, **conv: Any) -> Tensor:
    """What ncnn is expected to compute, in float64: rounded inputs and weights, exact sums."""
    input_scale = np.float32(127 / input_range)
    scaled = x * torch.tensor(input_scale)
    inputs = (scaled.sign() * (scaled.abs() + 0.5).floor()).clamp(-127, 127)  # halves away from zero
    weight_scales = 127 / weight.flatten(1).abs().amax(1)
    weights = (weight * weight_scales[:, None, None, None]).round()
    sums = F.conv2d(inputs.double()[None], weights.double(), **conv)[0]
    return sums / (weight_scales.double() * float(input_scale))[:, None, None] + bias.double()[:, None, None]


def layer_error(source: Calibrated, conv: nn.Module, name: str, *, image: Tensor, folder: Path) -> float:
    """One layer alone in int8: how far its output is from the fake-quantised convolution of its input, relative."""
    assert isinstance(conv, nn.Conv2d)
    assert conv.bias is not None
    write_int8(source, folder, skip=set(source.convolutions) - {name})
    layer = next(layer for layer in source.layers if layer.name == name)
    x, found = blobs_of(folder, (layer.inputs[0], layer.outputs[0]), image)
    expected = fake_quantized(
        x,
        conv.weight,
        conv.bias,
        input_range=source.ranges[name],
        stride=conv.stride,
        padding=conv.padding,
        groups=conv.groups,
    )
    if layer.number(9) == 1:  # ncnn's number for a ReLU inside the layer
        expected = expected.relu()
    return float((found - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("name", ["model.0.conv", "model.3.m.0.cv1.conv", "model.5.m.0.cv2.conv", "model.9.m.1"])
def test_int8_convolution_is_the_fake_quantised_one_of_torch(
    name: str, model: Detector, calibrated: Calibrated, tmp_path: Path
) -> None:
    ready = ready_for_export(model)
    conv = ready.get_submodule(f"detector.{name}")
    # Another picture than those of the calibration, and brighter: values beyond the range are clamped.
    assert layer_error(calibrated, conv, name, image=1.5 * pictures(1)[0], folder=tmp_path) < 1e-5


@pytest.fixture(scope="module")
def mobile(tmp_path_factory: pytest.TempPathFactory) -> tuple[Detector, Calibrated]:
    """A network with depthwise convolutions; one of their channels is all zeros."""
    model = network("yolov5s-mobilenetv3-small-075.yaml")
    with torch.no_grad():
        model.get_submodule("model.2.depthwise.conv").weight[3] = 0  # type: ignore[operator]
    folder = exported(model, tmp_path_factory.mktemp("mobile") / "mobile_ncnn_model")
    return model, calibrate(folder, images=pictures(1), method="minmax")


@pytest.mark.parametrize("name", ["model.2.depthwise.conv", "model.5.depthwise.conv"])
def test_depthwise_int8_convolution_has_a_scale_per_channel(
    name: str, mobile: tuple[Detector, Calibrated], tmp_path: Path
) -> None:
    model, source = mobile
    conv = ready_for_export(model).get_submodule(f"detector.{name}")
    assert isinstance(conv, nn.Conv2d)
    assert conv.groups == conv.out_channels > 1
    with torch.no_grad():  # a channel of zeros has any scale; torch's must only be finite
        conv.weight[conv.weight.flatten(1).abs().amax(1) == 0] = 1e-30
    # On x86, ncnn's depthwise kernels take the reciprocal of the scales to 12 bits.
    assert layer_error(source, conv, name, image=pictures(1)[0], folder=tmp_path) < 4e-4


def test_a_network_with_depthwise_layers_and_gates_is_close_in_int8(
    mobile: tuple[Detector, Calibrated], tmp_path: Path
) -> None:
    _, source = mobile
    write_int8(source, tmp_path)
    images = pictures(1)[0]
    for half in (False, True):
        assert max(head_errors(heads_of(tmp_path, images, half=half), heads_of(source.folder, images))) < 0.3


# Ranges


def test_minmax_ranges_are_the_largest_inputs_that_torch_sees(model: Detector, calibrated: Calibrated) -> None:
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
    assert calibrated.ranges == pytest.approx(largest, rel=1e-4)


def test_ranges_do_not_depend_on_the_memory_format_of_images(plain: Path, calibrated: Calibrated) -> None:
    images = [image.contiguous(memory_format=torch.channels_last) for image in pictures()]
    assert calibrate(plain, images=images, method="minmax").ranges == calibrated.ranges


def test_kl_keeps_a_full_range_and_cuts_off_a_rare_outlier() -> None:
    even = np.full(NUM_BINS, 100.0)
    assert kl_range(even, 8.0) == 8.0
    lone = np.zeros(NUM_BINS)
    lone[:256] = 10_000 - 30 * np.arange(256)
    lone[-1] = 1
    assert kl_range(lone, 8.0) == pytest.approx(1.0, abs=0.1)


def test_kl_ranges_are_within_the_minmax_ones(plain: Path, calibrated: Calibrated) -> None:
    ranges = calibrate(plain, images=pictures(), method="kl").ranges
    assert ranges.keys() == calibrated.ranges.keys()
    assert all(0 < ranges[name] <= calibrated.ranges[name] for name in ranges)
    assert ranges != calibrated.ranges


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


def test_int8_layer_is_stored_as_tag_weights_bias_and_scales(calibrated: Calibrated, tmp_path: Path) -> None:
    write_int8(calibrated, tmp_path)
    data = (tmp_path / BIN).read_bytes()
    # model.0.conv: 8 filters of 3 x 3 x 3.
    assert struct.unpack("<I", data[:4]) == (INT8_TAG,)
    quantized = np.frombuffer(data, np.int8, count=216, offset=4).reshape(8, 27)
    assert np.abs(quantized).max(1).tolist() == [127] * 8
    input_scale = np.frombuffer(data, "<f4", count=1, offset=4 + 216 + 32 + 32)[0]
    assert input_scale == pytest.approx(127 / calibrated.ranges["model.0.conv"])


def test_int8_export_is_close_small_and_says_what_it_is(model: Detector, plain: Path, tmp_path: Path) -> None:
    folder = exported(model, tmp_path / "best_ncnn_model", precision="int8", int8=Int8Settings(method="minmax"))
    assert {path.name for path in folder.iterdir()} == {PARAM, BIN, "SHA256SUMS", "metadata.json", "README.md"}
    assert folder_metadata(folder).precision == "int8"
    assert "int8 weights" in (folder / "README.md").read_text()
    assert (plain / BIN).stat().st_size > 3 * (folder / BIN).stat().st_size
    images = torch.cat(pictures())
    assert max(head_errors(heads_of(folder, images), heads_of(plain, images))) < 0.1


def test_half_leaves_int8_layers_int8(calibrated: Calibrated, tmp_path: Path) -> None:
    write_int8(calibrated, tmp_path)
    runtime = load_ncnn(tmp_path, device=CPU, options=RuntimeOptions(half=True))
    assert runtime.precision == "int8"
    images = torch.cat(pictures())
    assert max(head_errors(runtime(images), heads_of(calibrated.folder, images))) < 0.1


def test_skipped_layers_and_the_head_are_stored_in_16_bits(model: Detector, plain: Path, tmp_path: Path) -> None:
    settings = Int8Settings(skip=("model.0.conv", "model.3.m*"))
    folder = exported(model, tmp_path / "best_ncnn_model", precision="int8", int8=settings)
    names = {layer.name for layer in read_param(folder / PARAM) if layer.kind == "Convolution"}
    bottlenecks = {f"model.3.m.0.cv{index}.conv" for index in (1, 2)}
    assert names - int8_layers(folder) == {"model.0.conv", *bottlenecks, *HEADS}
    assert struct.unpack("<I", (folder / BIN).read_bytes()[:4]) == (FLOAT16_TAG,)
    assert Int8Settings(head=True).skipped(read_param(plain / PARAM)) == set()


def test_with_every_layer_skipped_the_heads_are_those_of_fp16(calibrated: Calibrated, tmp_path: Path) -> None:
    write_int8(calibrated, tmp_path, skip=calibrated.convolutions)
    images = torch.cat(pictures())
    assert int8_layers(tmp_path) == set()
    assert max(head_errors(heads_of(tmp_path, images), heads_of(calibrated.folder, images))) < 2e-3


def test_weights_beyond_16_bits_stay_in_32() -> None:
    large = Stored(values=np.array([1e6, 1.0], dtype=np.float32), has_tag=True)
    assert large.as_bytes == struct.pack("<Iff", 0, 1e6, 1.0)
    small = Stored(values=np.array([2.0, 1.0, 0.5], dtype=np.float32), has_tag=True)
    assert small.as_bytes == struct.pack("<Ieee", FLOAT16_TAG, 2.0, 1.0, 0.5) + bytes(2)


# Bad input


def test_int8_without_images_and_unknown_patterns_leave_nothing_behind(model: Detector, tmp_path: Path) -> None:
    folder = tmp_path / "best_ncnn_model"
    with pytest.raises(ConfigError, match=r"needs images to calibrate with, got none; give --data"):
        export_ncnn(model, folder, **export_arguments(model, image_hw=HW, precision="int8"))
    with pytest.raises(ConfigError, match=r"--int8-skip model\.77\* matches no convolution; .*model\.0\.conv"):
        exported(model, folder, precision="int8", int8=Int8Settings(skip=("model.77*",)))
    with pytest.raises(ConfigError, match=r"--calib-method best: expected one of kl, minmax"):
        Int8Settings(method="best")  # type: ignore[arg-type]
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
        calibrate(half, images=pictures(1), method="minmax")


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
    write_int8(calibrate(folder, images=pictures(1), method="minmax"), tmp_path)
    images = pictures(1)[0]
    assert max(head_errors(heads_of(tmp_path, images), heads_of(folder, images))) < 0.1


# Trained weights


def test_trained_weights_in_int8_are_close_on_real_photographs(shared: Path, tmp_path: Path) -> None:
    model = load_model(shared / "weights/yolov5n_v6_coco.pt").model
    photos = sorted((shared / "data/coco128_val/images").glob("*.jpg"))[:9]
    images = [as_input(str(path), HW) for path in photos]
    folder = exported(model, tmp_path / "fp32_ncnn_model")
    source = calibrate(folder, images=images[:8], method="minmax")
    write_int8(source, tmp_path, skip=Int8Settings().skipped(source.layers))
    assert (folder / BIN).stat().st_size / (tmp_path / BIN).stat().st_size > 3.5
    assert max(head_errors(heads_of(tmp_path, images[8]), heads_of(folder, images[8]))) < 0.15
