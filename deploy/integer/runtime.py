"""Runtime for the integer networks that quantize.py writes: exact arithmetic on this machine's CPU."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from deploy.artefact.artefact import ArtefactRuntime, RunGraph
from deploy.artefact.checksums import check_checksums
from deploy.artefact.metadata import METADATA_NAME, ExportMetadata, metadata_text, read_metadata
from deploy.formats import FORMATS
from deploy.settings import RuntimeOptions
from quantization.execution.executor import Executor
from quantization.network import run_program
from quantization.program.program import IntegerProgram
from quantization.program.shapes import result_shapes
from quantization.storage.binary import load_program
from utils.errors import CheckpointError

logger = logging.getLogger(__name__)

# Suffix of the folders, and name of the network's file in them.
FORMAT = FORMATS["integer"].suffix
NETWORK_NAME = FORMATS["integer"].marker


@dataclass(frozen=True, kw_only=True)
class ProgramFacts:
    """Facts about the program that the metadata of these folders contain in addition to those of all artefacts.

    Attributes:
        network_fingerprint: Value of `IntegerProgram.fingerprint`.
        bits: Description of the width of its integers, for people.
    """

    network_fingerprint: str
    bits: str


def load_integer(path: Path, *, device: torch.device, options: RuntimeOptions) -> ArtefactRuntime:
    """Load a detector that `deploy.integer.export.write_detector` wrote; it runs on the CPU.

    Args:
        path: Folder of the artefact.
        device: Requested device; any but the CPU gives a warning.
        options: Number of threads; `half` gives a warning, since all arithmetic is in integers.

    Raises:
        CheckpointError: A file is missing, damaged, or from another model.
    """
    if device.type != "cpu":
        logger.warning("%s: integer networks run on the CPU, not on %s", path, device)
    if options.half:
        logger.warning("half: %s computes in integers; the option is ignored", path)
    metadata = ExportMetadata.from_folder(path)
    height, width = metadata.image_hw
    channels = len(metadata.anchors[0]) // 2 * (5 + metadata.num_classes)
    heads = [(1, channels, height // stride, width // stride) for stride in metadata.strides]
    run = open_network(path, image_chw=(3, height, width), output_shapes=heads, threads=options.threads)
    return ArtefactRuntime(run, metadata, path=path, device=torch.device("cpu"))


def open_network(
    path: Path, *, image_chw: tuple[int, int, int], output_shapes: Sequence[tuple[int, ...]], threads: int | None
) -> RunGraph:
    """Load the network of a folder, ready to run.

    Args:
        path: Folder of the artefact.
        image_chw: Channels, height and width of the images, as in the metadata.
        output_shapes: Expected shapes of the outputs for one image.
        threads: Number of torch's threads, for the whole process; None keeps the present one.

    Raises:
        CheckpointError: The network is missing, damaged, or not the one that the metadata describe.
    """
    facts = read_metadata(ProgramFacts, metadata_text(path), where=path)
    program = load_program(path / NETWORK_NAME, fingerprint=facts.network_fingerprint)
    check_checksums(path)  # a network of another training run has the same fingerprint
    _check_ends(program, path=path, image_chw=image_chw, output_shapes=output_shapes)
    if threads:
        torch.set_num_threads(threads)
    return partial(run_program, program, Executor(program))


def _check_ends(
    program: IntegerProgram,
    *,
    path: Path,
    image_chw: tuple[int, int, int],
    output_shapes: Sequence[tuple[int, ...]],
) -> None:
    """Refuse a network whose input or outputs have other shapes."""
    try:
        shapes = result_shapes(program, image_chw)
    except CheckpointError as error:
        raise CheckpointError(f"{path / NETWORK_NAME}: {error}") from None
    found = [shapes[name] for name in program.outputs]
    if found != list(output_shapes):
        raise CheckpointError(
            f"{path / NETWORK_NAME} returns {found} for one image, expected {list(output_shapes)} "
            f"from {METADATA_NAME}; quantise the network again"
        )
