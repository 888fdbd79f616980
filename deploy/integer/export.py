"""Folders that hold a network in integers and what is needed to use it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from torch import nn

from deploy.artefact_folder import replaced_folder
from deploy.checksums import write_checksums
from deploy.classifier.metadata import ClassifierMetadata, ClassifierSettings
from deploy.integer.runtime import FORMAT, NETWORK_NAME, ProgramFacts
from deploy.metadata import METADATA_NAME, ExportMetadata, ExportSettings
from models.classifiers import ClassifierSpec
from models.detector import Detector
from quantization.program import IntegerProgram
from quantization.program_shapes import result_shapes
from quantization.storage.binary import save_program
from quantization.storage.sparse import Layout
from quantization.storage.text import save_yaml
from utils.errors import CheckpointError
from utils.files import write_text

YAML_NAME = "network.yaml"


@dataclass(frozen=True, kw_only=True)
class Forms:
    """In which forms a network is written.

    Attributes:
        layout: Of its weights.
        with_yaml: Also as YAML, beside the compact file that the runtime reads.
    """

    layout: Layout = "dense"
    with_yaml: bool = False


def write_detector(
    program: IntegerProgram,
    folder: Path,
    *,
    model: Detector,
    names: Sequence[str],
    source_sha256: str,
    forms: Forms,
) -> ExportMetadata:
    """Write a detector that the runtimes of `deploy.registry` take.

    Args:
        program: From images in [0, 1] to head maps.
        folder: Ends in `_integer_model`; replaced where it is one already.
        model: What the program was made from.
        names: Of its classes.
        source_sha256: Of its weights file.
        forms: How the program is stored.

    Raises:
        ConfigError: The folder cannot be written, or is none of this kind.
    """
    _, height, width = program.image_shape
    settings = ExportSettings(
        image_hw=(height, width), dynamic=takes_any_size(program, model.max_stride), precision="integer"
    )
    metadata = ExportMetadata.of(
        model,
        format=FORMAT,
        names=names,
        source_sha256=source_sha256,
        settings=settings,
        versions={"numpy": np.__version__},
    )
    _write(program, folder, metadata=metadata, forms=forms)
    return metadata


def write_classifier(
    program: IntegerProgram,
    folder: Path,
    *,
    model: nn.Module,
    spec: ClassifierSpec,
    names: Sequence[str],
    forms: Forms,
) -> ClassifierMetadata:
    """Write a classifier that `deploy.classifier.runtime.load_classifier` takes.

    Args:
        program: From normalised images to logits.
        folder: As of `write_detector`.
        model: What the program was made from.
        spec: How its images are normalised.
        names: Of its classes.
        forms: How the program is stored.

    Raises:
        ConfigError: The folder cannot be written, or is none of this kind.
    """
    settings = ClassifierSettings(
        image_chw=program.image_shape, names=tuple(names), mean=spec.mean, std=spec.std, precision="integer"
    )
    metadata = ClassifierMetadata.of(
        model,
        format=FORMAT,
        num_classes=spec.num_classes,
        settings=settings,
        versions={"numpy": np.__version__},
    )
    _write(program, folder, metadata=metadata, forms=forms)
    return metadata


def takes_any_size(program: IntegerProgram, stride: int) -> bool:
    """Whether images of another height and width go through a program; means over whole maps forbid it."""
    channels, height, width = program.image_shape
    try:
        result_shapes(program, (channels, height + stride, width + stride))
    except CheckpointError:
        return False
    return True


def bits_text(program: IntegerProgram) -> str:
    """How wide the integers of a program are, such as "weights in 8 bits, values in 8 to 10"."""
    weights = _span(operation.weight_bits for operation in program.operations if operation.weight_bits)
    values = _span((step.output.high - step.output.low).bit_length() for step in program.operations)
    return f"weights in {weights} bits, values in {values}"


def _span(numbers: Iterable[int]) -> str:
    found = sorted(set(numbers)) or [0]
    return str(found[0]) if len(found) == 1 else f"{found[0]} to {found[-1]}"


def _write(
    program: IntegerProgram, folder: Path, *, metadata: ExportMetadata | ClassifierMetadata, forms: Forms
) -> None:
    facts = ProgramFacts(network_fingerprint=program.fingerprint, bits=bits_text(program))
    with replaced_folder(folder, marker=NETWORK_NAME) as new:
        save_program(program, new / NETWORK_NAME, layout=forms.layout)
        if forms.with_yaml:
            save_yaml(program, new / YAML_NAME, layout=forms.layout)
        write_checksums(new, (NETWORK_NAME,))
        write_text(new / METADATA_NAME, json.dumps({**asdict(metadata), **asdict(facts)}, indent=2) + "\n")
