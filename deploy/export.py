"""Export from Python: write one artefact, run it, and put it in place only if it agrees with the network."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from deploy.artefact.folder import replaced_folder
from deploy.formats import FORMATS, load_runtime, resolve, suffixes
from deploy.job import ExportJob
from deploy.outputs.metadata import Metadata
from deploy.verification.verify import beyond
from utils.errors import ConfigError
from utils.storage.files import atomic_write

_CPU = torch.device("cpu")
_NUM_RANDOM = 2


def export(job: ExportJob, path: str | Path, *, images: Tensor | None = None) -> Metadata:
    """Write a network in the format that the name implies, and compare it with the network.

    Args:
        job: Network and settings.
        path: Path that ends in the suffix of a format, such as .onnx or _ncnn_model.
        images: Images (N, C, H, W) in the form of network input, to compare on in addition to random ones.

    Raises:
        ConfigError: Unsupported format, precision or network, a missing package, an unwritable folder, or outputs
            that differ from the network's; then nothing is written.
    """
    path = Path(path)
    known = [form for form in FORMATS.values() if form.write]
    form = next((form for form in known if path.name.endswith(form.suffix)), None)
    if form is None:
        raise ConfigError(f"export to {path}: unsupported format; known: {suffixes(known)}")
    with tempfile.TemporaryDirectory() as scratch:
        written = Path(scratch, path.name)
        metadata: Metadata = resolve(form.write)(job, written)
        _compare(job, written, metadata, images, path=path)
        if written.is_file():
            with atomic_write(path) as temporary:
                shutil.copyfile(written, temporary)
        else:
            with replaced_folder(path, marker=form.marker) as new:
                shutil.copytree(written, new, dirs_exist_ok=True)
    return metadata


def _compare(job: ExportJob, written: Path, metadata: Metadata, images: Tensor | None, *, path: Path) -> None:
    """Run the written artefact on random images and on the given ones.

    Raises:
        ConfigError: Its outputs differ from the network's.
    """
    found, expected = load_runtime(written, device=_CPU), job.source.runtime(_CPU)
    for some in (job.source.noise(_NUM_RANDOM, metadata.image_chw), images):
        if some is not None:
            agreement = job.source.compare(found, expected, some, measured=None)
            for failure in beyond(agreement.checks(found.precision)):
                raise ConfigError(f"{path} differs from its network: {failure}; choose another format or precision")
