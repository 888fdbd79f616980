"""int8 ONNX: 8 bits inside, float32 at the ends, close to the network, and one line for what is wrong."""

from __future__ import annotations

import json
from collections import Counter, OrderedDict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from exporting import classifier_job, export_arguments, export_onnx, head_error, images_of, network
from tiny import ROOT
from torch import Tensor, nn

from deploy.artefact.metadata import METADATA_NAME
from deploy.export import export
from deploy.int8.calibration import Arithmetic
from deploy.onnx.graph import GraphSettings, trace_onnx
from deploy.onnx.int8 import FOR_ONNXRUNTIME, FOR_OPENVINO, FOR_TENSORRT, as_int8, stored_weights
from deploy.onnx.network import load_onnx
from deploy.settings import RuntimeOptions
from models.classifiers import LeNet5
from models.detector import Detector
from quantization.network import QuantizedNetwork, quantize
from quantization.runtime_layers import runtime_layers
from utils.errors import ConfigError, UserError

onnx = pytest.importorskip("onnx", reason="onnx is not installed; see requirements-export.txt")
pytest.importorskip("onnxruntime", reason="onnxruntime is not installed; see requirements-export.txt")

CPU = torch.device("cpu")
HW = (32, 48)
INT8, UINT8 = onnx.TensorProto.INT8, onnx.TensorProto.UINT8


@pytest.fixture(scope="module")
def tiny() -> Detector:
    return network("tiny")


def calibration(count: int = 4) -> list[Tensor]:
    return list(images_of(HW, count=count).split(1))


def exported(model: Detector, path: Path, **settings: Any) -> Any:
    """The file, written in int8 and read as a graph."""
    export_onnx(model, path, **export_arguments(model, precision="int8", **settings), calibration=calibration())
    return onnx.load(path)


@pytest.fixture(scope="module")
def tiny_file(tiny: Detector, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The dense tiny detector in int8, exported once; not to be changed."""
    path = tmp_path_factory.mktemp("int8") / "best.onnx"
    exported(tiny, path)
    return path


class Three(nn.Module):
    """x to x, to 3 x, to 6 x, each in two channels."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.three = (nn.Conv2d(2, 2, 1) for _ in range(3))
        for layer, factor in ((self.one, 1), (self.two, 3), (self.three, 2)):
            with torch.no_grad():
                layer.weight.copy_(factor * torch.eye(2)[..., None, None])
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.three(self.two(self.one(x)))
        return result


def three_convolutions() -> tuple[nn.Module, Any]:
    """The network, and its graph, in which layers are found by their paths below a wrapper."""
    layers = Three().eval()
    wrapped = nn.Sequential(OrderedDict(network=layers))
    return layers, trace_onnx(wrapped, [torch.zeros(1, 2, 1, 4)], GraphSettings(inputs=["images"], outputs=["y"]))


def in_int8(arithmetic: Arithmetic, images: Sequence[Tensor]) -> tuple[QuantizedNetwork, Any]:
    """The three convolutions with the second in 8 bits: calibrated, and as a graph."""
    layers, graph = three_convolutions()
    network = quantize(layers, images, config=arithmetic.rounding, image_shape=(2, 1, 4))
    network.set_bits_(replace(network.bits, weights={"one": None, "two": 8, "three": None}))
    ends = arithmetic.rounding.rounded == "ends"
    return network, as_int8(graph, runtime_layers(network), rounds_results=ends)


def row(*values: float) -> Tensor:
    """An image (1, 2, 1, 4) with the same values in both channels."""
    return torch.tensor(values).expand(1, 2, 1, 4)


def output_of(graph: Any, image: Tensor) -> list[float]:
    """What the first channel gives."""
    import onnxruntime

    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"images": image.numpy()})[0][0, 0].ravel().tolist()


def scales_of(graph: Any) -> set[float]:
    """Every single scale of the graph."""
    names = {node.input[1] for node in graph.graph.node if node.op_type == "QuantizeLinear"}
    tensors = [onnx.numpy_helper.to_array(item) for item in graph.graph.initializer if item.name in names]
    return {round(float(value), 6) for value in tensors}


def test_range_of_the_images_becomes_the_scale_before_and_behind_a_layer() -> None:
    image = row(0.0, 0.5, 1.0, 2.0)
    _, graph = in_int8(FOR_ONNXRUNTIME, [image, image / 2])
    # What the second layer takes is 0 to 2 and what it gives 0 to 6, in 255 steps.
    assert scales_of(graph) == {round(2 / 255, 6), round(6 / 255, 6)}
    # Half a step of the input is 6 * .0039 at the output, half a step of the inner tensor 2 * .0118.
    assert output_of(graph, image) == pytest.approx([0, 3, 6, 12], abs=0.047)
    # What lies outside is cut off.
    assert output_of(graph, 100 * image)[-1] == pytest.approx(12, abs=1e-4)


def test_results_of_layers_are_rounded_for_onnxruntime_alone() -> None:
    image = row(0.0, 0.5, 1.0, 2.0)
    _, graph = in_int8(FOR_OPENVINO, [image])
    assert scales_of(graph) == {round(2 / 255, 6)}


def test_activations_for_tensorrt_are_signed_without_zero_point_and_biases_float() -> None:
    image = row(0.0, 0.5, 1.0, 2.0)
    _, graph = in_int8(FOR_TENSORRT, [image])
    assert scales_of(graph) == {round(2 / 127, 6)}
    zeros = {node.input[2] for node in graph.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")}
    tensors = [item for item in graph.graph.initializer if item.name in zeros]
    assert {item.data_type for item in tensors} == {INT8}
    assert not any(onnx.numpy_helper.to_array(item).any() for item in tensors)


@pytest.mark.parametrize("arithmetic", [FOR_ONNXRUNTIME, FOR_OPENVINO, FOR_TENSORRT])
def test_onnxruntime_computes_what_fake_mode_does(arithmetic: Arithmetic) -> None:
    image = row(0.1, 0.53, 1.07, 2.0)
    network, graph = in_int8(arithmetic, [image])
    with torch.no_grad():
        expected = network(image / 3)
    assert isinstance(expected, Tensor)
    assert output_of(graph, image / 3) == pytest.approx(expected[0, 0].ravel().tolist(), abs=1e-5)


def test_graph_given_is_not_touched() -> None:
    layers, graph = three_convolutions()
    before = graph.SerializeToString()
    network = quantize(layers, [torch.rand(1, 2, 1, 4)], config=FOR_OPENVINO.rounding, image_shape=(2, 1, 4))
    as_int8(graph, runtime_layers(network), rounds_results=False)
    assert graph.SerializeToString() == before


def test_layer_that_stays_in_floating_point_gets_its_new_weight() -> None:
    layers, graph = three_convolutions()
    assert {path: weight.ravel().tolist() for path, weight in stored_weights(graph).items()} == {
        "one": [1, 0, 0, 1],
        "two": [3, 0, 0, 3],
        "three": [2, 0, 0, 2],
    }
    network = quantize(layers, [torch.rand(1, 2, 1, 4)], config=FOR_OPENVINO.rounding, image_shape=(2, 1, 4))
    network.set_bits_(replace(network.bits, weights=dict.fromkeys(network.bits.weights)))
    with torch.no_grad():
        network.weights("three")[0].mul_(3.5)
        network.weights("three")[1].fill_(5)
    new = as_int8(graph, runtime_layers(network), rounds_results=False)
    assert output_of(new, row(0.0, 1.0, 2.0, 3.0)) == pytest.approx([5, 26, 47, 68])


@pytest.mark.parametrize("kind", ["tiny", "pruned tiny", "narrow yolov3-tiny"])
def test_heads_are_near_those_of_the_fused_model(kind: str, tmp_path: Path) -> None:
    if kind.startswith("narrow"):  # fitting the weights of layers of 1024 channels takes a while
        text = Path(ROOT, "models/yolov3-tiny.yaml").read_text()
        assert "width_multiple: 1.0" in text
        kind = str(tmp_path / "narrow.yaml")
        Path(kind).write_text(text.replace("width_multiple: 1.0", "width_multiple: 0.125"))
    model = network(kind)
    arguments = export_arguments(model, precision="int8")
    hw = arguments["settings"].image_hw
    images = images_of(hw, count=4)
    metadata = export_onnx(model, tmp_path / "best.onnx", **arguments, calibration=list(images.split(1)))
    runtime = load_onnx(tmp_path / "best.onnx", device=CPU, options=RuntimeOptions())
    assert (metadata.precision, runtime.precision) == ("int8", "int8")
    assert 1e-4 < head_error(runtime(images), model, images) < 0.1


def test_all_convolutions_but_first_and_last_have_eight_bit_weights(tiny: Detector, tiny_file: Path) -> None:
    graph = onnx.load(tiny_file).graph
    kinds = Counter(item.data_type for item in graph.initializer if len(item.dims) == 4)
    convolutions = sum(isinstance(module, nn.Conv2d) for module in tiny.modules())
    assert kinds == {INT8: convolutions - 3, onnx.TensorProto.FLOAT: 3}
    made = {output: node for node in graph.node for output in node.output}
    weights = {node.input[1] for node in graph.node if node.op_type == "Conv" and "head" in node.output[0]}
    assert not any(name in made for name in weights)
    zero_points = [item.data_type for item in graph.initializer if item.dims == [] and item.data_type != 1]
    assert UINT8 in zero_points


def test_layers_are_left_in_float_by_their_paths(tiny: Detector, tiny_file: Path, tmp_path: Path) -> None:
    def count_float(path: Path) -> int:
        return sum(item.data_type == 1 and len(item.dims) == 4 for item in onnx.load(path).graph.initializer)

    path = tmp_path / "skipped.onnx"
    inside = next(name for name, module in tiny.named_modules() if isinstance(module, nn.Conv2d) and ".m." in name)
    arguments = export_arguments(tiny, precision="int8")
    export_onnx(tiny, path, **arguments, calibration=calibration(), int8_skip=[inside])
    assert count_float(path) == count_float(tiny_file) + 1
    with pytest.raises(
        ConfigError, match=r"--int8-skip model\.99\* matches no convolution; examples of their names:"
    ):
        export_onnx(tiny, path, **arguments, calibration=calibration(), int8_skip=["model.99*"])


def test_scales_of_weights_are_one_per_channel(tiny_file: Path) -> None:
    graph = onnx.load(tiny_file).graph
    tensors = {item.name: item for item in graph.initializer}
    for node in graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] in tensors:
            weight, scale = (onnx.numpy_helper.to_array(tensors[name]) for name in node.input[:2])
            assert scale.shape == weight.shape[:1]
            # The largest of each channel takes one of the last steps: rounding makes up for other weights.
            assert (np.abs(weight.astype(int)).reshape(len(weight), -1).max(1) >= 120).all()


def test_ends_and_metadata_are_those_of_a_float_file(tiny_file: Path) -> None:
    graph = onnx.load(tiny_file)
    assert [item.name for item in (*graph.graph.input, *graph.graph.output)] == ["images", "head0", "head1"]
    assert {item.type.tensor_type.elem_type for item in graph.graph.output} == {onnx.TensorProto.FLOAT}
    properties = {item.key: item.value for item in graph.metadata_props}
    assert set(properties) == {METADATA_NAME}
    assert json.loads(properties[METADATA_NAME])["precision"] == "int8"
    assert [path.name for path in tiny_file.parent.iterdir()] == ["best.onnx"]


def test_file_of_a_real_network_is_a_quarter(tmp_path: Path) -> None:
    model = network("yolov5n")
    images = list(images_of((64, 96), count=1).split(1))
    size = {}
    for precision in ("fp32", "int8"):
        arguments = export_arguments(model, precision=precision)
        export_onnx(model, tmp_path / "best.onnx", **arguments, calibration=images)
        size[precision] = (tmp_path / "best.onnx").stat().st_size
    assert size["fp32"] > 3.5 * size["int8"]


@pytest.mark.parametrize("settings", [{"dynamic": True}, {"batch_size": 2}])
def test_free_and_fixed_batches_are_calibrated_image_by_image(
    settings: dict[str, Any], tiny: Detector, tmp_path: Path
) -> None:
    exported(tiny, tmp_path / "best.onnx", **settings)
    images = images_of(HW, count=3)
    runtime = load_onnx(tmp_path / "best.onnx", device=CPU, options=RuntimeOptions())
    assert head_error(runtime(images), tiny, images) < 0.1


def test_openvino_reads_the_file(tiny_file: Path) -> None:
    openvino = pytest.importorskip("openvino", reason="openvino is not installed; see requirements-export.txt")
    images = images_of(HW)
    compiled = openvino.Core().compile_model(str(tiny_file), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    found = compiled(images.numpy())
    expected = load_onnx(tiny_file, device=CPU, options=RuntimeOptions())
    for level, head in enumerate(expected(images)):
        maps = head.permute(0, 1, 4, 2, 3).flatten(1, 2)  # (B, A * (5 + nc), H, W)
        difference = np.abs(found[level] - maps.numpy()).max() / float(maps.abs().max())
        assert difference < 0.05


def test_classifier_in_int8_keeps_its_logits(tmp_path: Path) -> None:
    torch.manual_seed(0)
    job = classifier_job(LeNet5(), precision="int8", calibration=torch.randn(8, 1, 28, 28).split(1))
    metadata = export(job, tmp_path / "lenet.onnx")
    assert metadata.precision == "int8"
    assert (tmp_path / "lenet.onnx").stat().st_size < 80_000  # 61 706 parameters


@pytest.mark.parametrize(
    ("images", "finding"),
    [
        ([], r"int8 needs images to calibrate on; give --data"),
        ([torch.zeros(1, 3, 64, 64)], r"calibration image: got shape \(3, 64, 64\), expected \(3, 32, 48\)"),
        (
            [torch.zeros(1, 3, 32, 48), torch.full((1, 3, 32, 48), torch.nan)],
            r"input: calibration images lead to NaN or infinite values here",
        ),
    ],
)
def test_calibration_that_does_not_fit_is_one_line_and_leaves_no_file(
    images: list[Tensor], finding: str, tiny: Detector, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=finding):
        export_onnx(tiny, tmp_path / "best.onnx", **export_arguments(tiny, precision="int8"), calibration=images)
    assert list(tmp_path.iterdir()) == []


def test_layer_that_is_used_several_times_stays_in_floating_point(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The file has its uses under names of their own, of which only the first is its path."""

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.again = nn.Conv2d(1, 4, 3, 2, 1), nn.Conv2d(4, 4, 3, padding=1)
            self.inner, self.fc = nn.Conv2d(4, 4, 3, 4), nn.Linear(4 * 9, 10)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.relu(self.again(torch.relu(self.again(self.stem(x)))))
            result: Tensor = self.fc(torch.relu(self.inner(x)).flatten(1))
            return result

    torch.manual_seed(0)
    model, images = Twice().eval(), torch.rand(8, 1, 28, 28)
    export(classifier_job(model, precision="int8", calibration=images.split(1)), tmp_path / "twice.onnx")
    assert "kept in floating point, since they are used several times: again" in caplog.text
    graph = onnx.load(tmp_path / "twice.onnx").graph
    kinds = [item.data_type for item in graph.initializer if len(item.dims) == 4]
    assert kinds.count(INT8) == 1  # inner; the first and the last layer are never rounded
    with torch.no_grad():
        expected = model(images)
    found = load_onnx(tmp_path / "twice.onnx", device=CPU, options=RuntimeOptions())(images)
    assert (found - expected).square().mean().sqrt() < 0.05 * expected.std()
