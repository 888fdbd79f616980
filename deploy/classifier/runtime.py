"""Runtimes of exported classifiers, from images to logits."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from deploy.artefact.metadata import METADATA_NAME, metadata_text
from deploy.artefact.packages import optional_package
from deploy.classifier.metadata import ClassifierMetadata
from deploy.integer.runtime import open_network as open_integers
from deploy.ncnn.param import input_blobs, output_blobs, read_param
from deploy.ncnn.runtime import INPUT_BLOB, OUTPUT_BLOB, PARAM_NAME, open_network
from deploy.onnx.graph import open_session, run_session
from deploy.settings import RuntimeOptions
from deploy.torchscript import open_torchscript
from utils.errors import CheckpointError, ConfigError

# Function from normalised images (B, C, H, W) float32 to logits (B, classes).
RunClassifier: TypeAlias = Callable[[Tensor], Tensor]


class ClassifierRuntime:
    """An exported classifier, which checks the shapes of its images and logits.

    Args:
        run: Function that runs the graph.
        metadata: Metadata of the artefact.
        path: Path of the artefact, for messages.
    """

    def __init__(self, run: RunClassifier, metadata: ClassifierMetadata, *, path: Path) -> None:
        self._run = run
        self._path = path
        self.metadata = metadata

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Tensor:
        """Compute logits (B, classes) float32, on the CPU, of normalised images (B, C, H, W) float32.

        Raises:
            ConfigError: The images have another size.
            CheckpointError: The graph returns another number of classes than its metadata.
        """
        expected = tuple(self.metadata.image_chw)
        if images.ndim != 4 or tuple(images.shape[1:]) != expected:
            raise ConfigError(f"{self._path}: got images {tuple(images.shape)}, expected (B, *{expected})")
        logits = self._run(images.float().cpu())
        if logits.shape != (len(images), self.metadata.num_classes):
            raise CheckpointError(
                f"{self._path} returns {tuple(logits.shape)}, its metadata expects {self.metadata.num_classes} "
                "classes: it belongs to another model; export it again"
            )
        return logits


def load_onnx(path: Path, options: RuntimeOptions) -> ClassifierRuntime:
    """Load a classifier from an .onnx file."""
    session = open_session(path, device=torch.device("cpu"), threads=options.num_threads)
    text = session.get_modelmeta().custom_metadata_map.get(METADATA_NAME, "")
    metadata = ClassifierMetadata.from_json(text, where=path)
    return ClassifierRuntime(lambda images: run_session(session, images)[0], metadata, path=path)


def load_torchscript(path: Path, options: RuntimeOptions) -> ClassifierRuntime:
    """Load a classifier from a TorchScript file."""
    network, text = open_torchscript(path, device=torch.device("cpu"))
    metadata = ClassifierMetadata.from_json(text, where=path)
    return ClassifierRuntime(lambda images: network(images)[0], metadata, path=path)


def load_ncnn(path: Path, options: RuntimeOptions) -> ClassifierRuntime:
    """Load a classifier from an ncnn folder."""
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


def load_integer(path: Path, options: RuntimeOptions) -> ClassifierRuntime:
    """Load a classifier from the folder of an integer network."""
    metadata = ClassifierMetadata.from_json(metadata_text(path), where=path)
    channels, height, width = metadata.image_chw
    run = open_integers(
        path, image_chw=(channels, height, width), output_shapes=[(1, metadata.num_classes)], threads=options.threads
    )
    return ClassifierRuntime(lambda images: run(images)[0], metadata, path=path)


def _run_ncnn(ncnn: Any, net: Any, images: Tensor, *, path: Path) -> Tensor:
    """Run ncnn on one image after the other, and stack their logits."""
    logits = []
    for picture in images.contiguous().numpy():
        with net.create_extractor() as extractor:
            extractor.input(INPUT_BLOB, ncnn.Mat(picture))
            code, blob = extractor.extract(OUTPUT_BLOB.format(level=0))
            if code != 0:
                raise CheckpointError(f"{path}: ncnn cannot compute the logits (code {code}); export it again")
            logits.append(torch.from_numpy(np.array(blob)).flatten())  # a copy: the extractor frees it
    return torch.stack(logits)
