"""int8 ONNX: 8 bits inside, float32 at the ends, close to the network, and one line for what is wrong."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from exporting import classifier_job, export_arguments, export_onnx, head_error, images_of, network
from torch import Tensor, nn

from deploy.artefact.metadata import METADATA_NAME
from deploy.export import export
from deploy.onnx.graph import GraphSettings, trace_onnx
from deploy.onnx.int8 import as_int8
from deploy.onnx.network import load_onnx
from deploy.settings import RuntimeOptions
from models.classifiers import LeNet5
from models.detector import Detector
from models.prepare import ready_for_export
from utils.errors import ConfigError

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


def three_convolutions() -> Any:
    """x to x, to 3 x, to 9 x: the second in 8 bits, the others in float."""
    layers = nn.Sequential(*(nn.Conv2d(1, 1, 1, bias=False) for _ in range(3)))
    for layer, factor in zip(layers, (1, 3, 3), strict=True):
        nn.init.constant_(layer.weight, factor)  # type: ignore[arg-type]
    return trace_onnx(layers.eval(), [torch.zeros(1, 1, 1, 4)], GraphSettings(inputs=["images"], outputs=["y"]))


def output_of(graph: Any, image: Tensor) -> list[float]:
    import onnxruntime

    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"images": image.numpy()})[0].ravel().tolist()


def scales_of(graph: Any) -> set[float]:
    """Every single scale of the graph."""
    names = {node.input[1] for node in graph.graph.node if node.op_type == "QuantizeLinear"}
    tensors = [onnx.numpy_helper.to_array(item) for item in graph.graph.initializer if item.name in names]
    return {round(float(value), 6) for value in tensors}


def test_range_of_the_images_becomes_the_scale() -> None:
    image = torch.tensor([[[[0.0, 0.5, 1.0, 2.0]]]])
    graph = as_int8(three_convolutions(), [image, image / 2])
    # What the second layer takes is 0 to 2 and what it gives 0 to 6, in 255 steps.
    assert scales_of(graph) == {round(2 / 255, 6), round(6 / 255, 6)}
    # Half a step of the input is 9 * .0039 at the output, half a step of the inner tensor 3 * .0118.
    assert output_of(graph, image) == pytest.approx([0, 4.5, 9, 18], abs=0.071)
    # What lies outside is cut off.
    assert output_of(graph, 100 * image)[-1] == pytest.approx(18, abs=1e-4)


def test_activations_for_tensorrt_are_signed_without_zero_point_and_biases_float() -> None:
    image = torch.tensor([[[[-1.0, 0.5, 1.0, 2.0]]]])
    graph = as_int8(three_convolutions(), [image], for_tensorrt=True)
    assert scales_of(graph) == {round(2 / 127, 6), round(6 / 127, 6)}
    zeros = {node.input[2] for node in graph.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")}
    tensors = [item for item in graph.graph.initializer if item.name in zeros]
    assert {item.data_type for item in tensors} == {INT8}
    assert not any(onnx.numpy_helper.to_array(item).any() for item in tensors)


def test_graph_given_is_not_touched(tiny: Detector) -> None:
    settings = GraphSettings(inputs=["images"], outputs=["head0", "head1"])
    graph = trace_onnx(ready_for_export(tiny), [torch.zeros(1, 3, *HW)], settings)
    before = graph.SerializeToString()
    as_int8(graph, calibration(1))
    assert graph.SerializeToString() == before


@pytest.mark.parametrize("kind", ["tiny", "pruned tiny", "yolov3-tiny"])
def test_heads_are_near_those_of_the_fused_model(kind: str, tmp_path: Path) -> None:
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
            # The largest of each channel takes the last step.
            assert (np.abs(weight.astype(int)).reshape(len(weight), -1).max(1) == 127).all()


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
        ([torch.zeros(1, 3, 64, 64)], r"calibration image: got shape \(1, 3, 64, 64\), expected \(1, 3, 32, 48\)"),
        ([torch.zeros(2, 3, *HW)], r"got shape \(2, 3, 32, 48\), expected \(1, 3, 32, 48\)"),
    ],
)
def test_calibration_that_does_not_fit_is_one_line_and_leaves_no_file(
    images: list[Tensor], finding: str, tiny: Detector, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=finding):
        export_onnx(tiny, tmp_path / "best.onnx", **export_arguments(tiny, precision="int8"), calibration=images)
    assert list(tmp_path.iterdir()) == []


def test_package_does_not_advise_our_users(tiny: Detector, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    exported(tiny, tmp_path / "best.onnx")
    assert caplog.text == ""
