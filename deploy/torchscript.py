"""TorchScript: traced, one file, run by torch alone."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from deploy.artefact import ArtefactRuntime, RunGraph
from deploy.metadata import METADATA_NAME, ExportMetadata, ExportSettings
from deploy.runtime import RuntimeOptions
from models.detector import Detector
from models.prepare import ready_for_export
from utils.errors import CheckpointError, ConfigError
from utils.files import atomic_write

logger = logging.getLogger(__name__)

FORMAT = ".torchscript"


def export_torchscript(
    model: Detector, path: str | Path, *, names: Sequence[str], source_sha256: str, settings: ExportSettings
) -> ExportMetadata:
    """Trace a network and write it with its metadata inside.

    Raises:
        ConfigError: A precision other than fp32, an image size that does not fit, or an unwritable folder.
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
    """Trace any network and write it, whole or not at all.

    Args:
        network: In evaluation mode on the CPU.
        example: Its input.
        path: The file.
        metadata: A text that goes into the file.

    Raises:
        ConfigError: The folder cannot be written to.
    """
    with warnings.catch_warnings():
        # torch announces a successor that mobile and C++ users cannot load yet.
        warnings.filterwarnings("ignore", message=".*torch.jit.*deprecated")
        traced = torch.jit.trace(network, example, check_trace=False)  # type: ignore[no-untyped-call]
        with atomic_write(path) as temporary:
            traced.save(str(temporary), _extra_files={METADATA_NAME: metadata})


def load_torchscript(path: Path, *, device: torch.device, options: RuntimeOptions) -> ArtefactRuntime:
    """Load a file that `export_torchscript` wrote.

    Only for files of your own: unlike checkpoints, TorchScript is a program.

    Raises:
        CheckpointError: The file is damaged, or holds no metadata.
    """
    if options.half:
        logger.warning("half: %s computes in fp32, as it was exported", path)
    if options.threads:
        torch.set_num_threads(options.threads)
    network, text = open_torchscript(path, device=device)
    return ArtefactRuntime(network, ExportMetadata.from_json(text, where=path), path=path, device=device)


def open_torchscript(path: Path, *, device: torch.device) -> tuple[RunGraph, str]:
    """The network of a file and its metadata, empty where there are none.

    Raises:
        CheckpointError: The file is damaged.
    """
    extra = {METADATA_NAME: ""}
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*torch.jit.*deprecated")
            network = torch.jit.load(str(path), map_location=device, _extra_files=extra)  # type: ignore[no-untyped-call]
    except RuntimeError as error:
        raise CheckpointError(f"{path} is no TorchScript file, or cut off; export it again") from error
    text = extra[METADATA_NAME]
    return network.eval(), text.decode() if isinstance(text, bytes) else text
