"""Export to ncnn and back: the heads of the network, the files in the folder, and damage in one line each."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from exporting import export_ncnn
from tiny import TINY_CFG

from deploy.formats import load_runtime
from deploy.ncnn.runtime import load_ncnn
from deploy.outputs.heads import ExportMetadata
from deploy.settings import ExportSettings, RuntimeOptions
from models.detector import Detector, build_model
from models.fuse import fuse
from models.load import load_model
from models.spec import ModelSpec
from pruning.channels.graph import ChannelGraph
from pruning.surgery.cut import cut
from utils.errors import CheckpointError, ConfigError

pytest.importorskip("ncnn", reason="the ncnn package is not installed")
pytest.importorskip("pnnx", reason="the pnnx package is not installed")

CPU = torch.device("cpu")


def with_lively_norms(model: Detector) -> Detector:
    """Batch norms as training leaves them, so that wrong folding shows."""
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            for values, low in ((module.weight, 0.5), (module.running_var, 0.5), (module.bias, -0.5)):
                values.data = low + torch.rand(values.shape, generator=generator)
    return model.eval()


def detector(cfg: str = TINY_CFG) -> Detector:
    torch.manual_seed(0)
    return with_lively_norms(build_model(ModelSpec.from_yaml(cfg, num_classes=3)))


def pruned_detector() -> Detector:
    """With widths that are no multiple of anything."""
    model = detector()
    graph = ChannelGraph.of(model)
    pruned = cut(model, graph, graph.prunable_ids[::3])
    assert isinstance(pruned, Detector)
    return pruned.eval()


def exported(
    model: Detector, folder: Path, *, hw: tuple[int, int] = (64, 64), half: bool = False, dynamic: bool = False
) -> ExportMetadata:
    names = tuple(f"class {index}" for index in range(model.spec.num_classes))
    settings = ExportSettings(image_hw=hw, dynamic=dynamic, precision="fp16" if half else "fp32")
    return export_ncnn(model, folder, names=names, source_sha256="0" * 64, settings=settings)


def relative_errors(model: Detector, folder: Path, images: torch.Tensor, *, half: bool = False) -> list[float]:
    """Of each head: largest difference over largest value of the fused float32 network."""
    with torch.inference_mode():
        expected = fuse(model)(images)
    heads = load_ncnn(folder, device=CPU, options=RuntimeOptions(half=half))(images)
    assert [head.shape for head in heads] == [head.shape for head in expected]
    pairs = zip(heads, expected, strict=True)
    return [float((head - reference).abs().max() / reference.abs().max()) for head, reference in pairs]


@pytest.fixture(scope="module")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The dense tiny detector, exported once; not to be changed."""
    folder = tmp_path_factory.mktemp("ncnn") / "tiny_ncnn_model"
    exported(detector(), folder)
    return folder


@pytest.fixture
def copied(tiny_folder: Path, tmp_path: Path) -> Path:
    """A copy of the exported folder, to be damaged."""
    return Path(shutil.copytree(tiny_folder, tmp_path / "tiny_ncnn_model"))


def test_heads_of_a_dense_network_are_those_of_the_fused_one_at_any_size(tiny_folder: Path) -> None:
    for hw in ((64, 64), (48, 80)):
        assert max(relative_errors(detector(), tiny_folder, torch.rand(2, 3, *hw))) <= 1e-4


def test_heads_of_a_pruned_network_are_those_of_the_fused_one(tmp_path: Path) -> None:
    model = pruned_detector()
    exported(model, tmp_path / "pruned_ncnn_model")
    assert max(relative_errors(model, tmp_path / "pruned_ncnn_model", torch.rand(1, 3, 64, 64))) <= 1e-4


def test_heads_of_yolov5n_agree(tmp_path: Path) -> None:
    model = detector("yolov5n.yaml")
    exported(model, tmp_path / "n_ncnn_model", hw=(96, 64))
    assert max(relative_errors(model, tmp_path / "n_ncnn_model", torch.rand(1, 3, 96, 64))) <= 1e-4


def test_attention_agrees_and_binds_the_export_to_its_size(tmp_path: Path) -> None:
    model = detector("yolov5s-transformer.yaml")
    assert exported(model, tmp_path / "t_ncnn_model", hw=(96, 64)).input_hw == (96, 64)
    assert max(relative_errors(model, tmp_path / "t_ncnn_model", torch.rand(1, 3, 96, 64))) <= 1e-4
    with pytest.raises(ConfigError, match=r"t_ncnn_model takes images of .*64.* only"):
        load_ncnn(tmp_path / "t_ncnn_model", device=CPU, options=RuntimeOptions())(torch.rand(1, 3, 96, 96))
    with pytest.raises(ConfigError, match=r"takes one image size only; export without --dynamic"):
        exported(model, tmp_path / "t_ncnn_model", hw=(64, 64), dynamic=True)


def test_heads_of_trained_weights_agree(shared: Path, tmp_path: Path) -> None:
    model = load_model(shared / "weights/yolov5n_v6_coco.pt").model
    exported(model, tmp_path / "n_ncnn_model", hw=(160, 160))
    assert max(relative_errors(model, tmp_path / "n_ncnn_model", torch.rand(1, 3, 160, 160))) <= 1e-4


def test_half_files_are_half_as_big_and_close(tiny_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "half_ncnn_model"
    metadata = exported(detector(), folder, half=True)
    assert metadata.precision == "fp16"
    sizes = [(path / "model.ncnn.bin").stat().st_size for path in (folder, tiny_folder)]
    assert sizes[0] < 0.6 * sizes[1]
    assert max(relative_errors(detector(), folder, torch.rand(1, 3, 64, 64))) <= 1e-2


def test_sixteen_bit_arithmetic_is_told_and_close(tiny_folder: Path) -> None:
    assert load_ncnn(tiny_folder, device=CPU, options=RuntimeOptions(half=True)).precision in ("fp16", "bf16")
    assert max(relative_errors(detector(), tiny_folder, torch.rand(1, 3, 64, 64), half=True)) <= 0.1


def test_folder_holds_five_files_and_its_readme_names_blobs_and_anchors(tiny_folder: Path) -> None:
    files = {path.name for path in tiny_folder.iterdir()}
    assert files == {"model.ncnn.param", "model.ncnn.bin", "SHA256SUMS", "metadata.json", "README.md"}
    assert [path.name for path in tiny_folder.parent.iterdir()] == [tiny_folder.name]
    readme = (tiny_folder / "README.md").read_text()
    assert "| `out0` | 8 | 10 x 13, 16 x 30, 33 x 23 |" in readme
    assert 'load_param("tiny_ncnn_model/model.ncnn.param")' in readme


@pytest.mark.parametrize("name", ["model_v2", "model.v2.onnx", "best_openvino_model"])
def test_renamed_folder_still_loads(name: str, copied: Path) -> None:
    images = torch.rand(1, 3, 64, 64)
    expected = load_runtime(copied, device=CPU)(images)
    runtime = load_runtime(copied.rename(copied.with_name(name)), device=CPU)
    assert runtime.format == "_ncnn_model"
    assert all(torch.equal(head, other) for head, other in zip(runtime(images), expected, strict=True))


def test_renamed_folder_without_its_metadata_is_one_line(copied: Path) -> None:
    (copied / "metadata.json").unlink()
    with pytest.raises(CheckpointError, match=r"model_v2 contains no readable metadata\.json; export it again"):
        load_runtime(copied.rename(copied.with_name("model_v2")), device=CPU)


def test_runtime_tells_what_the_contract_asks(tiny_folder: Path) -> None:
    runtime = load_runtime(tiny_folder, device=CPU)
    assert (runtime.format, runtime.precision, runtime.num_classes) == ("_ncnn_model", "fp32", 3)
    assert (runtime.strides, runtime.input_hw) == ((8, 16), None)
    assert runtime.anchors[0].tolist() == [[10, 13], [16, 30], [33, 23]]


def test_export_again_replaces_an_export_and_nothing_else(copied: Path, tmp_path: Path) -> None:
    exported(pruned_detector(), copied)
    assert max(relative_errors(pruned_detector(), copied, torch.rand(1, 3, 64, 64))) <= 1e-4
    (tmp_path / "mine_ncnn_model").mkdir()
    with pytest.raises(ConfigError, match=r"exists and contains no model\.ncnn\.param; move it away"):
        exported(detector(), tmp_path / "mine_ncnn_model")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine_ncnn_model", "tiny_ncnn_model"]


def test_images_that_do_not_fit_the_stride_are_refused(tiny_folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"40x64 pixels, expected multiples of the stride 16"):
        load_ncnn(tiny_folder, device=CPU, options=RuntimeOptions())(torch.rand(1, 3, 40, 64))


def cut_bin(folder: Path) -> None:
    path = folder / "model.ncnn.bin"
    path.write_bytes(path.read_bytes()[:-4])


def cut_bin_without_sums(folder: Path) -> None:
    cut_bin(folder)
    (folder / "SHA256SUMS").unlink()


def other_kernel(folder: Path) -> None:
    """By hand, a larger kernel than the weights have: ncnn would read beyond them."""
    path = folder / "model.ncnn.param"
    text = path.read_text()
    assert " 1=3 " in text
    path.write_text(text.replace(" 1=3 ", " 1=9 ", 1))


def spoilt_sums(folder: Path) -> None:
    (folder / "SHA256SUMS").write_text("nothing")


def without_bin(folder: Path) -> None:
    (folder / "model.ncnn.bin").unlink()


def without_metadata(folder: Path) -> None:
    (folder / "metadata.json").unlink()


def renamed_head(folder: Path) -> None:
    path = folder / "model.ncnn.param"
    path.write_text(path.read_text().replace(" out1 ", " other "))


def more_classes(folder: Path) -> None:
    path = folder / "metadata.json"
    text = path.read_text().replace('"num_classes": 3', '"num_classes": 4')
    path.write_text(text.replace('"class 2"', '"class 2", "class 3"'))


@pytest.mark.parametrize(
    ("damage", "finding"),
    [
        (cut_bin, r"model\.ncnn\.bin is truncated, damaged or from another artefact \(its SHA-256 check failed\)"),
        (cut_bin_without_sums, r"model\.ncnn\.bin is truncated or damaged \(.*failed"),
        (
            other_kernel,
            r"model\.ncnn\.param is truncated, damaged or from another artefact .* or delete SHA256SUMS beside it",
        ),
        (spoilt_sums, r"SHA256SUMS is damaged; write the artefact again, or delete it"),
        (without_bin, r"contains no model\.ncnn\.bin"),
        (without_metadata, r"contains no readable metadata\.json"),
        (renamed_head, r"inputs and outputs are in0, other, out0, expected in0, out0, out1|in0, out0, other"),
        (more_classes, r"it belongs to another model"),
    ],
)
def test_damage_is_one_line(
    damage: Callable[[Path], None], finding: str, copied: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    damage(copied)
    with pytest.raises(CheckpointError, match=finding) as caught:
        load_ncnn(copied, device=CPU, options=RuntimeOptions())(torch.rand(1, 3, 64, 64))
    assert "\n" not in str(caught.value)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("settings", [{"threads": 0}, {"powersave": 3}])
def test_options_out_of_range_are_refused(settings: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=r"\d: expected"):
        RuntimeOptions(**settings)


def test_folder_name_and_precision_are_checked_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"expected a name that ends in _ncnn_model"):
        exported(detector(), tmp_path / "best")
    with pytest.raises(ConfigError, match=r"ncnn in bf16 is not supported; expected fp32, fp16 or int8"):
        export_ncnn(
            detector(),
            tmp_path / "best_ncnn_model",
            names=("a", "b", "c"),
            source_sha256="",
            settings=ExportSettings(precision="bf16"),
        )
    assert list(tmp_path.iterdir()) == []
