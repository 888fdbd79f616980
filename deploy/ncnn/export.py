"""Export to ncnn: a folder with the network, its metadata, and a README on how to run it."""

from __future__ import annotations

import logging
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

import torch

from deploy.artefact.checksums import write_checksums
from deploy.artefact.folder import replaced_folder
from deploy.artefact.metadata import METADATA_NAME
from deploy.artefact.runtime import RuntimeModel
from deploy.int8.calibration import Layers
from deploy.int8.layers import int8_layers
from deploy.job import ExportJob
from deploy.ncnn.int8 import ARITHMETIC, FloatFolder, write_int8
from deploy.ncnn.names import executed_layers, named_by_module
from deploy.ncnn.param import read_param, write_param
from deploy.ncnn.pnnx import convert_to_ncnn
from deploy.ncnn.runtime import BIN_NAME, FORMAT, PARAM_NAME, load_ncnn
from deploy.outputs.metadata import Metadata, folder_metadata
from deploy.settings import RuntimeOptions
from utils.errors import ConfigError

logger = logging.getLogger(__name__)

_CPU = torch.device("cpu")
# pnnx fixes attention to the number of cells of the traced image; every other layer adapts to its input.
_BOUND_TO_SIZE = "Reshape"


def write_ncnn(job: ExportJob, path: Path) -> Metadata:
    """Write a network as a folder for ncnn: param, bin, their checksums, metadata and a README.

    ncnn computes one image at a time, and a detector without attention takes any multiple of the stride; the metadata
    say so whatever batch size the settings have. Convolutions are named by their module paths. fp16 halves the file;
    the arithmetic is chosen when loading. In int8, what is not a convolution is stored in fp16.

    Args:
        job: Network and settings.
        path: Folder whose name ends in `_ncnn_model`; an earlier export there is replaced.

    Raises:
        ConfigError: Unsupported precision, size or name, int8 without images, a pattern that matches no layer, a
            missing package, a network that pnnx cannot convert, or an unwritable folder.
    """
    job = replace(job, settings=replace(job.settings, batch_size=1))
    metadata = job.metadata("ncnn", path)
    is_int8 = metadata.precision == "int8"
    with replaced_folder(path, marker=PARAM_NAME) as new, tempfile.TemporaryDirectory(suffix=FORMAT) as scratch:
        floats = Path(scratch) if is_int8 else new
        _write_converted(job, floats, metadata=replace(metadata, precision="fp32") if is_int8 else metadata)
        if is_int8:
            _write_int8(job, floats, new)
        write_checksums(new, (PARAM_NAME, BIN_NAME))
        metadata = folder_metadata(new)
        page = job.source.ncnn_page(metadata, folder_name=path.name)
        (new / "README.md").write_text(page, encoding="utf-8")
        _run_once(job, new, metadata, name=path.name)
    return metadata


def _write_converted(job: ExportJob, folder: Path, *, metadata: Metadata) -> None:
    """Write param, bin and metadata in floating point."""
    network, example = job.source.network(), job.example(metadata)
    with tempfile.TemporaryDirectory() as scratch:
        param = convert_to_ncnn(network, Path(scratch), example=example, half=metadata.precision == "fp16")
        layers = read_param(param)
        executed = executed_layers(network, example)
        named = named_by_module(layers, Path(scratch, "model.pnnx.param"), executed=executed)
        write_param(folder / PARAM_NAME, named)
        shutil.copyfile(param.with_suffix(".bin"), folder / BIN_NAME)
    bound = next((layer.name for layer in layers if layer.kind == _BOUND_TO_SIZE), None)
    if bound is not None and metadata.input_hw is None:
        raise ConfigError(f"ncnn: layer {bound} takes one image size only; export without --dynamic")
    metadata = metadata.taking_any_size(bound is None)
    (folder / METADATA_NAME).write_text(metadata.to_json(), encoding="utf-8")


def _write_int8(job: ExportJob, floats: Path, folder: Path) -> None:
    """Write param, bin and metadata in int8, from the folder of an fp32 export."""
    source = FloatFolder.read(floats)

    def run(layers: Layers, options: RuntimeOptions) -> RuntimeModel:
        with tempfile.TemporaryDirectory(suffix=FORMAT) as scratch:
            write_int8(source, Path(scratch), layers)
            runtime: RuntimeModel = load_ncnn(Path(scratch), device=_CPU, options=options)
            return runtime

    metadata = folder_metadata(floats)
    layers = int8_layers(job, ARITHMETIC, metadata=metadata, stored=source.stored, run=run, floats=source.floats)
    write_int8(source, folder, layers)


def _run_once(job: ExportJob, folder: Path, metadata: Metadata, *, name: str) -> None:
    """Load and run the written export, since pnnx may report success for a broken one.

    Args:
        job: Network and settings.
        folder: Folder of the export.
        metadata: Metadata of the export.
        name: Final name of the folder, for messages.

    Raises:
        ConfigError: The outputs contain values that are not finite.
    """
    runtime = load_ncnn(folder, device=_CPU, options=RuntimeOptions())
    if not all(bool(output.isfinite().all()) for output in runtime(job.example(metadata))):
        raise ConfigError(
            f"{name}: ncnn returns values that are not finite; check the weights for such values, or export in fp32"
        )
