"""TorchScript: traced networks in one file, run by torch alone."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from deploy.artefact.artefact import ArtefactRuntime, RunGraph
from deploy.artefact.metadata import METADATA_NAME, ExportMetadata
from deploy.formats import FORMATS
from deploy.settings import ExportSettings, RuntimeOptions
from models.detector import Detector
from models.prepare import ready_for_export
from utils.errors import CheckpointError, ConfigError
from utils.storage.files import atomic_write

logger = logging.getLogger(__name__)

FORMAT = FORMATS["torchscript"].suffix


def export_torchscript(
    model: Detector, path: str | Path, *, names: Sequence[str], source_sha256: str, settings: ExportSettings
) -> ExportMetadata:
    """Trace a detector and write it with its metadata.

    Raises:
        ConfigError: A precision other than fp32, an unsupported image size, or an unwritable folder.
    """
    if settings.precision != "fp32":
        raise ConfigError(f"TorchScript in {settings.precision} is not supported; export it in fp32 or as ONNX")
    metadata = ExportMetadata.of(
        model, format=FORMAT, names=names, source_sha256=source_sha256, settings=settings, versions={}
    )
    images = torch.zeros(settings.batch_size, 3, *settings.image_hw)
    write_torchscript(ready_for_export(model), images, path, metadata=metadata.to_json())
    return metadata


def write_torchscript(network: nn.Module, example: Tensor, path: str | Path, *, metadata: str) -> None:
    """Trace any network and write it atomically.

    Args:
        network: Network in evaluation mode, on the CPU.
        example: Example input.
        path: Path of the file.
        metadata: Text to store in the file.

    Raises:
        ConfigError: The folder is not writable.
    """
    with warnings.catch_warnings():
        # Torch warns that this is deprecated; mobile and C++ users cannot load its successor yet.
        warnings.filterwarnings("ignore", message=".*torch.jit.*deprecated")
        traced = torch.jit.trace(network, example, check_trace=False)  # type: ignore[no-untyped-call]
        with atomic_write(path) as temporary:
            traced.save(str(temporary), _extra_files={METADATA_NAME: metadata})


def load_torchscript(path: Path, *, device: torch.device, options: RuntimeOptions) -> ArtefactRuntime:
    """Load a file that `export_torchscript` wrote.

    Load only files that you trust: unlike checkpoints, TorchScript is a program.

    Raises:
        CheckpointError: The file is damaged, or contains no metadata.
    """
    if options.half:
        logger.warning("half: %s computes in fp32, as it was exported", path)
    if options.threads:
        torch.set_num_threads(options.threads)
    network, text = open_torchscript(path, device=device)
    return ArtefactRuntime(network, ExportMetadata.from_json(text, where=path), path=path, device=device)


def open_torchscript(path: Path, *, device: torch.device) -> tuple[RunGraph, str]:
    """Read the network of a file and its metadata, which are empty if there are none.

    Raises:
        CheckpointError: The file is damaged.
    """
    extra = {METADATA_NAME: ""}
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*torch.jit.*deprecated")
            network = torch.jit.load(str(path), map_location=device, _extra_files=extra)  # type: ignore[no-untyped-call]
    except RuntimeError as error:
        raise CheckpointError(f"{path} is not a TorchScript file, or is truncated; export it again") from error
    text = extra[METADATA_NAME]
    return network.eval(), text.decode() if isinstance(text, bytes) else text
