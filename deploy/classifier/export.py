"""Classifiers, dense or pruned, as ONNX, TorchScript or ncnn; each file is run and compared before it is kept.

A classifier is any network from images (B, C, H, W) to logits (B, classes). OpenVINO reads the ONNX file as it is.
"""

from __future__ import annotations

import copy
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from deploy.artefact_folder import replaced_folder
from deploy.checksums import write_checksums
from deploy.classifier.metadata import ClassifierMetadata, ClassifierSettings
from deploy.classifier.readme import classifier_readme
from deploy.classifier.runtime import ClassifierRuntime, load_classifier
from deploy.metadata import METADATA_NAME
from deploy.ncnn.pnnx import convert_to_ncnn
from deploy.ncnn.runtime import BIN_NAME, PARAM_NAME
from deploy.ncnn.runtime import FORMAT as NCNN_FORMAT
from deploy.onnx.detector import FORMAT as ONNX_FORMAT
from deploy.onnx.detector import INPUT_NAME
from deploy.onnx.graph import GraphSettings, save_onnx, trace_onnx
from deploy.onnx.int8 import as_int8
from deploy.packages import optional_package
from deploy.runtime import Precision
from deploy.torchscript import FORMAT as TORCHSCRIPT_FORMAT
from deploy.torchscript import write_torchscript
from models.prepare import HalfNetwork
from utils.errors import ConfigError
from utils.files import atomic_write

# Largest difference of logits over the largest logit.
TOLERANCES: dict[Precision, float] = {"fp32": 1e-4, "fp16": 2e-2, "int8": 0.25}
OUTPUT_NAME = "logits"
_NUM_RANDOM = 2


class Logits(nn.Module):
    """A classifier as exporters want it: a frozen float32 copy in evaluation mode that gives a tuple."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = copy.deepcopy(model).float().cpu()
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> tuple[Tensor]:
        """Images (B, C, H, W) to a tuple of the logits (B, classes)."""
        return (self.model(images),)


def export_classifier(
    model: nn.Module,
    path: str | Path,
    *,
    settings: ClassifierSettings,
    images: Tensor | None = None,
    calibration: Sequence[Tensor] = (),
) -> ClassifierMetadata:
    """Write a classifier in the format that the name asks for, with its metadata, and compare it with the network.

    Args:
        model: Dense or pruned; not touched.
        path: Ends in .onnx, .torchscript or _ncnn_model.
        settings: What its images are like, and the precision.
        images: (N, C, H, W) normalised, to compare on besides random ones.
        calibration: Images (1, C, H, W), normalised, for int8 (ONNX only).

    Raises:
        ConfigError: A format, precision or network that cannot be had, a missing package, an unwritable folder, or
            logits that are not those of the network: then nothing is written.
    """
    path = Path(path)
    ending = check_format(path, settings.precision)
    kind = _FORMATS[ending]
    network = Logits(model)
    metadata = ClassifierMetadata.of(
        model,
        format=ending,
        num_classes=_num_classes(network, settings),
        settings=settings,
        versions={name: str(optional_package(name, purpose="this export").__version__) for name in kind.packages},
    )
    with tempfile.TemporaryDirectory() as scratch:
        written = Path(scratch, path.name)
        kind.write(_Job(network=network, metadata=metadata, opset=settings.opset, calibration=calibration), written)
        _compare(load_classifier(written), network, images, path=path)
        _put(written, path)
    return metadata


def check_format(path: Path, precision: Precision) -> str:
    """The end of a name that says which format is asked for, where that can be had in the precision.

    Raises:
        ConfigError: It is none of ours, or not in this precision.
    """
    ending = next((ending for ending in _FORMATS if path.name.endswith(ending)), None)
    if ending is None:
        raise ConfigError(
            f"classifier {path}: unsupported format; known: {', '.join(_FORMATS)} (OpenVINO and TensorRT read .onnx)"
        )
    known = _FORMATS[ending].precisions
    if precision not in known:
        raise ConfigError(f"{ending} classifier in {precision} is not supported; expected {', '.join(known)}")
    return ending


def logits_error(runtime: ClassifierRuntime, network: Logits, images: Tensor) -> float:
    """Largest difference of logits over the largest logit of the network.

    Args:
        runtime: What was exported.
        network: What it was exported from.
        images: (N, C, H, W), normalised.
    """
    with torch.inference_mode():
        expected = network(images.float().cpu())[0]
    return float((runtime(images) - expected).abs().max() / expected.abs().max().clamp(min=1e-12))


@dataclass(frozen=True, kw_only=True)
class _Job:
    """What is written: the network, what will be said of it, and what only ONNX needs."""

    network: Logits
    metadata: ClassifierMetadata
    opset: int
    calibration: Sequence[Tensor]

    @property
    def example(self) -> Tensor:
        """One black image (1, C, H, W)."""
        return torch.zeros(1, *self.metadata.image_chw)


def _write_onnx(job: _Job, path: Path) -> None:
    """Input `images` with any batch, output `logits`."""
    network = HalfNetwork(job.network) if job.metadata.precision == "fp16" else job.network
    settings = GraphSettings(
        inputs=[INPUT_NAME],
        outputs=[OUTPUT_NAME],
        opset=job.opset,
        dynamic={INPUT_NAME: {0: "batch"}, OUTPUT_NAME: {0: "batch"}},
    )
    graph = trace_onnx(network, [job.example], settings)
    if job.metadata.precision == "int8":
        graph = as_int8(graph, job.calibration)
    save_onnx(graph, path, properties={METADATA_NAME: job.metadata.to_json()})


def _write_torchscript(job: _Job, path: Path) -> None:
    write_torchscript(job.network, job.example, path, metadata=job.metadata.to_json())


def _write_ncnn(job: _Job, folder: Path) -> None:
    """A folder with param, bin, metadata and a README."""
    channels, *input_hw = job.metadata.image_chw
    folder.mkdir()
    with tempfile.TemporaryDirectory() as scratch:
        half = job.metadata.precision == "fp16"
        hw = (input_hw[0], input_hw[1])
        param = convert_to_ncnn(job.network, Path(scratch), input_hw=hw, channels=channels, half=half)
        shutil.copyfile(param, folder / PARAM_NAME)
        shutil.copyfile(param.with_suffix(".bin"), folder / BIN_NAME)
    (folder / METADATA_NAME).write_text(job.metadata.to_json(), encoding="utf-8")
    write_checksums(folder, (PARAM_NAME, BIN_NAME))
    page = classifier_readme(job.metadata, folder_name=folder.name)
    (folder / "README.md").write_text(page, encoding="utf-8")


@dataclass(frozen=True, kw_only=True)
class _Format:
    """One format: who writes it, in which precisions, with which packages."""

    write: Callable[[_Job, Path], None]
    precisions: tuple[Precision, ...]
    packages: tuple[str, ...] = ()


_FORMATS: dict[str, _Format] = {
    ONNX_FORMAT: _Format(write=_write_onnx, precisions=("fp32", "fp16", "int8"), packages=("onnx",)),
    TORCHSCRIPT_FORMAT: _Format(write=_write_torchscript, precisions=("fp32",)),
    NCNN_FORMAT: _Format(write=_write_ncnn, precisions=("fp32", "fp16"), packages=("pnnx",)),
}


def _num_classes(network: Logits, settings: ClassifierSettings) -> int:
    """Length of the logits.

    Raises:
        ConfigError: The network does not take such images, or gives something else.
    """
    try:
        with torch.inference_mode():
            logits = network(torch.zeros(_NUM_RANDOM, *settings.image_chw))[0]
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f"the classifier does not take images of (channels, height, width) {settings.image_chw} ({reason}); "
            "give those it was trained on"
        ) from error
    shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != _NUM_RANDOM:
        raise ConfigError(f"the network gives {shape}, expected logits (batch, classes)")
    return logits.shape[1]


def _compare(runtime: ClassifierRuntime, network: Logits, images: Tensor | None, *, path: Path) -> None:
    """Run what was written on random images and on the given ones.

    Raises:
        ConfigError: The logits are not those of the network.
    """
    generator = torch.Generator().manual_seed(0)
    sets = [torch.randn(_NUM_RANDOM, *runtime.metadata.image_chw, generator=generator)]
    sets += [] if images is None else [images]
    allowed = TOLERANCES[runtime.metadata.precision]
    for some in sets:
        error = logits_error(runtime, network, some)
        # Written so that NaN fails, too.
        if not error <= allowed:
            raise ConfigError(
                f"{path}: logits differ from the network's by {error:.2g} of the largest, allowed are {allowed:g}; "
                "choose another format or precision"
            )


def _put(written: Path, path: Path) -> None:
    """Move an artefact to its place, whole or not at all."""
    if written.is_dir():
        with replaced_folder(path, marker=PARAM_NAME) as new:
            shutil.copytree(written, new, dirs_exist_ok=True)
    else:
        with atomic_write(path) as temporary:
            shutil.copyfile(written, temporary)
