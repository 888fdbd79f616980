"""Export to ncnn: a folder with the network, its metadata, and a README on how to run it."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from deploy.artefact.checksums import write_checksums
from deploy.artefact.folder import replaced_folder
from deploy.artefact.metadata import METADATA_NAME, ExportMetadata
from deploy.artefact.packages import optional_package
from deploy.ncnn.int8 import Int8Settings, calibrate, write_int8
from deploy.ncnn.names import named_by_module
from deploy.ncnn.param import ParamLayer, read_param, write_param
from deploy.ncnn.pnnx import convert_to_ncnn
from deploy.ncnn.readme import ncnn_readme
from deploy.ncnn.runtime import BIN_NAME, FORMAT, PARAM_NAME, load_ncnn
from deploy.settings import ExportSettings, RuntimeOptions
from models.detector import Detector
from models.prepare import ready_for_export
from utils.errors import ConfigError

# pnnx fixes attention to the number of cells of the traced image; every other layer adapts to its input.
_BOUND_TO_SIZE = "Reshape"


def export_ncnn(
    model: Detector,
    path: str | Path,
    *,
    names: Sequence[str],
    source_sha256: str,
    settings: ExportSettings,
    calibration: Sequence[Tensor] = (),
    int8: Int8Settings | None = None,
) -> ExportMetadata:
    """Write a detector as a folder for ncnn: param, bin, their checksums, metadata and a README.

    ncnn computes one image at a time, and a network without attention takes any multiple of the stride; the metadata
    say so whatever batch size the settings have. Convolutions are named by their module paths.

    Args:
        model: Detector, dense or pruned; not changed.
        path: Folder whose name ends in `_ncnn_model`; an earlier export there is replaced.
        names: Class names by id.
        source_sha256: SHA-256 of the weights file.
        settings: Image size, and precision fp32, fp16 or int8. fp16 halves the file; the arithmetic is chosen when
            loading.
        calibration: Letterboxed images (1, 3, H, W) float32, RGB in [0, 1], for int8.
        int8: Settings for int8 convolutions; everything else is stored in fp16.

    Raises:
        ConfigError: Unsupported precision, size or name, int8 without images, a pattern that matches no layer, a
            missing package, a network that pnnx cannot convert, or an unwritable folder.
    """
    folder = Path(path)
    if not folder.name.endswith(FORMAT):
        raise ConfigError(f"ncnn folder {folder}: expected a name that ends in {FORMAT}")
    if settings.precision not in ("fp32", "fp16", "int8"):
        raise ConfigError(f"ncnn in {settings.precision} is not supported; expected fp32, fp16 or int8")
    if settings.precision == "int8" and not calibration:
        raise ConfigError("ncnn in int8 needs images to calibrate with, got none; give --data")
    versions = {"pnnx": str(optional_package("pnnx", purpose="export to ncnn").__version__)}
    metadata = ExportMetadata.of(
        model,
        format=FORMAT,
        names=names,
        source_sha256=source_sha256,
        settings=replace(settings, batch_size=1),
        versions=versions,
    )
    with replaced_folder(folder, marker=PARAM_NAME) as new, tempfile.TemporaryDirectory() as scratch:
        if settings.precision == "int8":
            plain = Path(scratch, "fp32")
            plain.mkdir()
            _write_converted(model, plain, metadata=replace(metadata, precision="fp32"), settings=settings)
            _write_int8(plain, new, calibration=calibration, int8=int8 or Int8Settings())
        else:
            _write_converted(model, new, metadata=metadata, settings=settings)
        write_checksums(new, (PARAM_NAME, BIN_NAME))
        metadata = ExportMetadata.from_folder(new)
        (new / "README.md").write_text(ncnn_readme(metadata, folder_name=folder.name), encoding="utf-8")
        _run_once(new, metadata, name=folder.name)
    return metadata


def _write_converted(model: Detector, folder: Path, *, metadata: ExportMetadata, settings: ExportSettings) -> None:
    """Write param, bin and metadata in floating point."""
    with tempfile.TemporaryDirectory() as scratch:
        param = convert_to_ncnn(
            ready_for_export(model), Path(scratch), input_hw=metadata.image_hw, half=metadata.precision == "fp16"
        )
        layers = read_param(param)
        write_param(folder / PARAM_NAME, named_by_module(layers, Path(scratch, "model.pnnx.param")))
        shutil.copyfile(param.with_suffix(".bin"), folder / BIN_NAME)
    metadata = replace(metadata, dynamic=_takes_any_size(layers, settings))
    (folder / METADATA_NAME).write_text(metadata.to_json(), encoding="utf-8")


def _write_int8(plain: Path, folder: Path, *, calibration: Sequence[Tensor], int8: Int8Settings) -> None:
    """Write param, bin and metadata in int8, from an fp32 export."""
    skip = int8.skipped(read_param(plain / PARAM_NAME))
    write_int8(calibrate(plain, images=calibration, method=int8.method), folder, skip=skip)


def _takes_any_size(layers: tuple[ParamLayer, ...], settings: ExportSettings) -> bool:
    bound = next((layer.name for layer in layers if layer.kind == _BOUND_TO_SIZE), None)
    if bound is not None and settings.dynamic:
        raise ConfigError(f"ncnn: layer {bound} takes one image size only; export without --dynamic")
    return bound is None


def _run_once(folder: Path, metadata: ExportMetadata, *, name: str) -> None:
    """Load and run the written export, since pnnx may report success for a broken one.

    Args:
        folder: Folder of the export.
        metadata: Metadata of the export.
        name: Final name of the folder, for messages.

    Raises:
        ConfigError: The heads contain values that are not finite.
    """
    runtime = load_ncnn(folder, device=torch.device("cpu"), options=RuntimeOptions())
    heads = runtime(torch.zeros(1, 3, *metadata.image_hw))
    if not all(bool(head.isfinite().all()) for head in heads):
        raise ConfigError(
            f"{name}: ncnn returns values that are not finite; check the weights for such values, or export in fp32"
        )
