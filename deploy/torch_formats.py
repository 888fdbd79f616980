"""The formats that torch itself runs: checkpoints, and TorchScript, a traced network in one file."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path

import torch

from deploy.artefact.metadata import METADATA_NAME
from deploy.artefact.runtime import RuntimeModel
from deploy.job import ExportJob
from deploy.outputs.classifier import ClassifierSource
from deploy.outputs.detector import DetectorSource
from deploy.outputs.metadata import Metadata, read_metadata
from deploy.settings import RuntimeOptions
from models.classifiers import load_classifier
from models.classifiers.load import is_classifier
from models.load import load_model
from utils.errors import CheckpointError
from utils.storage.files import atomic_write, sha256_of

logger = logging.getLogger(__name__)


def open_source(path: str | Path) -> DetectorSource | ClassifierSource:
    """Read a checkpoint of this project, or an official YOLOv5 one.

    Raises:
        CheckpointError: The file does not exist, is damaged, or contains something else.
    """
    if is_classifier(path):
        return ClassifierSource.of(load_classifier(path))
    loaded = load_model(path)
    return DetectorSource(model=loaded.model, names=loaded.names, sha256=sha256_of(path))


def load_pytorch(path: Path, *, device: torch.device, options: RuntimeOptions) -> RuntimeModel:
    """Load a checkpoint as a runtime: batch norms fused, channels-last memory format, optionally in 16 bits."""
    if options.threads:
        torch.set_num_threads(options.threads)
    return open_source(path).runtime(device, half=options.half)


def write_torchscript(job: ExportJob, path: Path) -> Metadata:
    """Trace a network and write it with its metadata.

    Raises:
        ConfigError: A precision other than fp32, an unsupported image size, or an unwritable folder.
    """
    metadata = job.metadata("torchscript", path)
    with warnings.catch_warnings():
        # Torch warns that this is deprecated; mobile and C++ users cannot load its successor yet.
        warnings.filterwarnings("ignore", message=".*torch.jit.*deprecated")
        traced = torch.jit.trace(job.source.network(), job.example(metadata), check_trace=False)  # type: ignore[no-untyped-call]
        with atomic_write(path) as temporary:
            traced.save(str(temporary), _extra_files={METADATA_NAME: metadata.to_json()})
    return metadata


def load_torchscript(path: Path, *, device: torch.device, options: RuntimeOptions) -> RuntimeModel:
    """Load a file that `write_torchscript` wrote.

    Load only files that you trust: unlike checkpoints, TorchScript is a program.

    Raises:
        CheckpointError: The file is damaged, or contains no metadata.
    """
    if options.half:
        logger.warning("half: %s computes in fp32, as it was exported", path)
    if options.threads:
        torch.set_num_threads(options.threads)
    extra = {METADATA_NAME: ""}
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*torch.jit.*deprecated")
            network = torch.jit.load(str(path), map_location=device, _extra_files=extra)  # type: ignore[no-untyped-call]
    except RuntimeError as error:
        raise CheckpointError(f"{path} is not a TorchScript file, or is truncated; export it again") from error
    text: str | bytes = extra[METADATA_NAME]
    metadata = read_metadata(text.decode() if isinstance(text, bytes) else text, where=path)
    return metadata.runtime(network.eval(), path=path, device=device)
