"""Export of classifiers, dense or pruned, to ONNX, TorchScript or ncnn; each file is run and compared before use.

A classifier is any network from images (B, C, H, W) to logits (B, classes). OpenVINO reads the ONNX file unchanged.
"""

from __future__ import annotations

import copy
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from deploy.artefact.checksums import write_checksums
from deploy.artefact.folder import replaced_folder
from deploy.artefact.metadata import METADATA_NAME
from deploy.artefact.packages import optional_package
from deploy.choices import Precision
from deploy.classifier.metadata import ClassifierMetadata, ClassifierSettings
from deploy.classifier.readme import classifier_readme
from deploy.classifier.runtime import ClassifierRuntime
from deploy.formats import FORMATS, Format, load_classifier, resolve, suffixes
from deploy.ncnn.pnnx import convert_to_ncnn
from deploy.ncnn.runtime import BIN_NAME, PARAM_NAME
from deploy.onnx.detector import INPUT_NAME
from deploy.onnx.graph import GraphSettings, save_onnx, trace_onnx
from deploy.onnx.int8 import as_int8
from deploy.torchscript import write_torchscript as write_traced
from models.prepare import HalfNetwork
from utils.errors import ConfigError
from utils.storage.files import atomic_write

# Largest allowed difference of logits, relative to the largest logit.
TOLERANCES: dict[Precision, float] = {"fp32": 1e-4, "fp16": 2e-2, "int8": 0.25}
OUTPUT_NAME = "logits"
_NUM_RANDOM = 2


class Logits(nn.Module):
    """A classifier in the form for exporters: a frozen float32 copy in evaluation mode that returns a tuple."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = copy.deepcopy(model).float().cpu()
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> tuple[Tensor]:
        """Compute the logits (B, classes) of images (B, C, H, W), as a tuple of one."""
        return (self.model(images),)


def export_classifier(
    model: nn.Module,
    path: str | Path,
    *,
    settings: ClassifierSettings,
    images: Tensor | None = None,
    calibration: Sequence[Tensor] = (),
) -> ClassifierMetadata:
    """Write a classifier with its metadata in the format that the name implies, and compare it with the network.

    Args:
        model: Classifier, dense or pruned; not changed.
        path: Path that ends in .onnx, .torchscript or _ncnn_model.
        settings: Size and normalisation of its images, and the precision.
        images: Normalised images (N, C, H, W) to compare on in addition to random ones.
        calibration: Normalised images (1, C, H, W), for int8 (ONNX only).

    Raises:
        ConfigError: Unsupported format, precision or network, a missing package, an unwritable folder, or logits that
            differ from the network's; then nothing is written.
    """
    path = Path(path)
    form = check_format(path, settings.precision)
    network = Logits(model)
    metadata = ClassifierMetadata.of(
        model,
        format=form.suffix,
        num_classes=_num_classes(network, settings),
        settings=settings,
        versions={name: str(optional_package(name, purpose="this export").__version__) for name in form.packages},
    )
    with tempfile.TemporaryDirectory() as scratch:
        written = Path(scratch, path.name)
        resolve(form.write_logits)(
            LogitsJob(network=network, metadata=metadata, opset=settings.opset, calibration=calibration), written
        )
        _compare(load_classifier(written), network, images, path=path)
        _put(written, path)
    return metadata


def check_format(path: Path, precision: Precision) -> Format:
    """Find the format that the suffix of a path names.

    Raises:
        ConfigError: Classifiers are not written in it, or not in this precision.
    """
    known = [form for form in FORMATS.values() if form.write_logits]
    form = next((form for form in known if path.name.endswith(form.suffix)), None)
    if form is None:
        raise ConfigError(
            f"classifier {path}: unsupported format; known: {suffixes(known)} (OpenVINO and TensorRT read .onnx)"
        )
    if precision not in form.logits_precisions:
        expected = ", ".join(form.logits_precisions)
        raise ConfigError(f"{form.suffix} classifier in {precision} is not supported; expected {expected}")
    return form


def logits_error(runtime: ClassifierRuntime, network: Logits, images: Tensor) -> float:
    """Compute the largest difference of logits, relative to the largest logit of the network.

    Args:
        runtime: Exported classifier.
        network: Network that it was exported from.
        images: Normalised images (N, C, H, W).
    """
    with torch.inference_mode():
        expected = network(images.float().cpu())[0]
    return float((runtime(images) - expected).abs().max() / expected.abs().max().clamp(min=1e-12))


@dataclass(frozen=True, kw_only=True)
class LogitsJob:
    """A classifier to write, its metadata, and settings that only ONNX needs."""

    network: Logits
    metadata: ClassifierMetadata
    opset: int
    calibration: Sequence[Tensor]

    @property
    def example(self) -> Tensor:
        """Black image (1, C, H, W) for tracing."""
        return torch.zeros(1, *self.metadata.image_chw)


def write_onnx(job: LogitsJob, path: Path) -> None:
    """Write ONNX with input `images`, of any batch size, and output `logits`."""
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


def write_torchscript(job: LogitsJob, path: Path) -> None:
    """Write the traced network as TorchScript."""
    write_traced(job.network, job.example, path, metadata=job.metadata.to_json())


def write_ncnn(job: LogitsJob, folder: Path) -> None:
    """Write a folder for ncnn with param, bin, metadata, checksums and a README."""
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


def _num_classes(network: Logits, settings: ClassifierSettings) -> int:
    """Run the network and return the length of its logits.

    Raises:
        ConfigError: The network does not take such images, or does not return logits.
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
        raise ConfigError(f"the network returns {shape}, expected logits (batch, classes)")
    return logits.shape[1]


def _compare(runtime: ClassifierRuntime, network: Logits, images: Tensor | None, *, path: Path) -> None:
    """Run the written artefact on random images and on the given ones.

    Raises:
        ConfigError: Its logits differ from the network's.
    """
    generator = torch.Generator().manual_seed(0)
    sets = [torch.randn(_NUM_RANDOM, *runtime.metadata.image_chw, generator=generator)]
    sets += [] if images is None else [images]
    allowed = TOLERANCES[runtime.metadata.precision]
    for some in sets:
        error = logits_error(runtime, network, some)
        # `not <=` instead of `>`, so that NaN fails.
        if not error <= allowed:
            raise ConfigError(
                f"{path}: logits differ from the network's by {error:.2g} of the largest, at most {allowed:g} "
                "allowed; choose another format or precision"
            )


def _put(written: Path, path: Path) -> None:
    """Copy an artefact to its final path atomically."""
    if written.is_dir():
        with replaced_folder(path, marker=PARAM_NAME) as new:
            shutil.copytree(written, new, dirs_exist_ok=True)
    else:
        with atomic_write(path) as temporary:
            shutil.copyfile(written, temporary)
