"""Exported classifiers, run: images to logits on every runtime."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from deploy.classifier.metadata import ClassifierMetadata
from deploy.formats import format_of
from deploy.integer.runtime import FORMAT as INTEGER_FORMAT
from deploy.integer.runtime import open_network as open_integers
from deploy.metadata import METADATA_NAME, metadata_text
from deploy.ncnn.param import input_blobs, output_blobs, read_param
from deploy.ncnn.runtime import FORMAT as NCNN_FORMAT
from deploy.ncnn.runtime import INPUT_BLOB, OUTPUT_BLOB, PARAM_NAME, open_network
from deploy.onnx.detector import FORMAT as ONNX_FORMAT
from deploy.onnx.graph import open_session, run_session
from deploy.packages import optional_package
from deploy.runtime import RuntimeOptions
from deploy.torchscript import FORMAT as TORCHSCRIPT_FORMAT
from deploy.torchscript import open_torchscript
from utils.errors import CheckpointError, ConfigError

# Images (B, C, H, W) float32, normalised, to logits (B, classes).
RunClassifier: TypeAlias = Callable[[Tensor], Tensor]


class ClassifierRuntime:
    """An exported classifier that checks its images.

    Args:
        run: The graph.
        metadata: What it says of itself.
        path: Of the artefact, for messages.
    """

    def __init__(self, run: RunClassifier, metadata: ClassifierMetadata, *, path: Path) -> None:
        self._run = run
        self._path = path
        self.metadata = metadata

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) float32, normalised, to logits (B, classes) float32 on the CPU.

        Raises:
            ConfigError: Images of another size.
            CheckpointError: The graph gives another number of classes than its metadata.
        """
        expected = tuple(self.metadata.image_chw)
        if images.ndim != 4 or tuple(images.shape[1:]) != expected:
            raise ConfigError(f"{self._path}: got images {tuple(images.shape)}, expected (B, *{expected})")
        logits = self._run(images.float().cpu())
        if logits.shape != (len(images), self.metadata.num_classes):
            raise CheckpointError(
                f"{self._path} gives {tuple(logits.shape)}, its metadata expects {self.metadata.num_classes} "
                "classes: it is of another model; export it again"
            )
        return logits


def load_classifier(path: str | Path, *, threads: int | None = None) -> ClassifierRuntime:
    """Load what `deploy.classifier.export.export_classifier` wrote; it computes on the CPU.

    Args:
        path: The file or folder.
        threads: Of the processor; as many as torch by default. TorchScript uses torch's own number.

    Raises:
        ConfigError: No runtime reads this format, or its package is not installed.
        CheckpointError: There is no such artefact, it is damaged, or it is no classifier.
    """
    path = Path(path)
    form = format_of(path, LOADERS)
    if form is None:
        raise ConfigError(f"classifier {path}: unsupported format; known: {', '.join(LOADERS)}")
    if not path.exists():
        raise CheckpointError(f"classifier {path} does not exist; check the path")
    return LOADERS[form](path, RuntimeOptions(threads=threads))


def _load_onnx(path: Path, options: RuntimeOptions) -> ClassifierRuntime:
    session = open_session(path, device=torch.device("cpu"), threads=options.num_threads)
    text = session.get_modelmeta().custom_metadata_map.get(METADATA_NAME, "")
    metadata = ClassifierMetadata.from_json(text, where=path)
    return ClassifierRuntime(lambda images: run_session(session, images)[0], metadata, path=path)


def _load_torchscript(path: Path, options: RuntimeOptions) -> ClassifierRuntime:
    network, text = open_torchscript(path, device=torch.device("cpu"))
    metadata = ClassifierMetadata.from_json(text, where=path)
    return ClassifierRuntime(lambda images: network(images)[0], metadata, path=path)


def _load_ncnn(path: Path, options: RuntimeOptions) -> ClassifierRuntime:
    ncnn = optional_package("ncnn", purpose=str(path))
    metadata = ClassifierMetadata.from_json(metadata_text(path), where=path)
    layers = read_param(path / PARAM_NAME)
    found, expected = (*input_blobs(layers), *output_blobs(layers)), (INPUT_BLOB, OUTPUT_BLOB.format(level=0))
    if found != expected:
        raise CheckpointError(
            f"{path / PARAM_NAME}: inputs and outputs are {', '.join(found)}, expected {', '.join(expected)}; "
            "export it again"
        )
    net = open_network(ncnn, path, options=options)
    return ClassifierRuntime(partial(_run_ncnn, ncnn, net, path=path), metadata, path=path)


def _load_integer(path: Path, options: RuntimeOptions) -> ClassifierRuntime:
    metadata = ClassifierMetadata.from_json(metadata_text(path), where=path)
    channels, height, width = metadata.image_chw
    run = open_integers(
        path, image_chw=(channels, height, width), output_shapes=[(1, metadata.num_classes)], threads=options.threads
    )
    return ClassifierRuntime(lambda images: run(images)[0], metadata, path=path)


def _run_ncnn(ncnn: Any, net: Any, images: Tensor, *, path: Path) -> Tensor:
    """One image after the other, from tensors to tensors by way of numpy."""
    logits = []
    for picture in images.contiguous().numpy():
        with net.create_extractor() as extractor:
            extractor.input(INPUT_BLOB, ncnn.Mat(picture))
            code, blob = extractor.extract(OUTPUT_BLOB.format(level=0))
            if code != 0:
                raise CheckpointError(f"{path}: ncnn cannot compute the logits (code {code}); export it again")
            logits.append(torch.from_numpy(np.array(blob)).flatten())  # a copy: the blob goes with its extractor
    return torch.stack(logits)


# By the format, as `deploy.formats` recognises it.
LOADERS: dict[str, Callable[[Path, RuntimeOptions], ClassifierRuntime]] = {
    ONNX_FORMAT: _load_onnx,
    TORCHSCRIPT_FORMAT: _load_torchscript,
    NCNN_FORMAT: _load_ncnn,
    INTEGER_FORMAT: _load_integer,
}
