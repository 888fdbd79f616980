"""Networks in integers as a runtime: what quantize.py wrote, computed exactly, on the processors of this machine."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from deploy.artefact import ArtefactRuntime, RunGraph
from deploy.checksums import check_checksums
from deploy.metadata import METADATA_NAME, ExportMetadata, metadata_text, read_metadata
from deploy.runtime import RuntimeOptions
from quantization.executor import Executor
from quantization.network import run_program
from quantization.program import IntegerProgram
from quantization.program_shapes import result_shapes
from quantization.storage.binary import load_program
from utils.errors import CheckpointError

logger = logging.getLogger(__name__)

# How names of folders end, and the file of the network in them.
FORMAT = "_integer_model"
NETWORK_NAME = "network.npz"


@dataclass(frozen=True, kw_only=True)
class ProgramFacts:
    """What the metadata of every such folder say of its program, beside what those of all artefacts do.

    Attributes:
        network_fingerprint: `IntegerProgram.fingerprint`.
        bits: For people: how wide its integers are.
    """

    network_fingerprint: str
    bits: str


def load_integer(path: Path, *, device: torch.device, options: RuntimeOptions) -> ArtefactRuntime:
    """Load a detector that `deploy.integer.export.write_detector` wrote; it computes on the CPU.

    Args:
        path: The folder.
        device: Anything but a CPU is a warning.
        options: `half` is a warning: nothing but integers is computed with.

    Raises:
        CheckpointError: A file is missing, damaged, or of another model.
    """
    if device.type != "cpu":
        logger.warning("%s: integers are computed on the CPU, not on %s", path, device)
    if options.half:
        logger.warning("%s: it computes in integers; half changes nothing", path)
    metadata = ExportMetadata.from_folder(path)
    height, width = metadata.image_hw
    channels = len(metadata.anchors[0]) // 2 * (5 + metadata.num_classes)
    heads = [(1, channels, height // stride, width // stride) for stride in metadata.strides]
    run = open_network(path, image_chw=(3, height, width), output_shapes=heads, threads=options.threads)
    return ArtefactRuntime(run, metadata, path=path, device=torch.device("cpu"))


def open_network(
    path: Path, *, image_chw: tuple[int, int, int], output_shapes: Sequence[tuple[int, ...]], threads: int | None
) -> RunGraph:
    """The network of a folder, ready to run.

    Args:
        path: The folder.
        image_chw: Channels, height and width of the images that its metadata tell of.
        output_shapes: Of what it gives for one of them.
        threads: Of torch, for the whole process; None leaves them.

    Raises:
        CheckpointError: The network is missing, damaged, or not the one that the metadata describe.
    """
    facts = read_metadata(ProgramFacts, metadata_text(path), where=path)
    program = load_program(path / NETWORK_NAME, fingerprint=facts.network_fingerprint)
    check_checksums(path)  # one of another training has the same fingerprint
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
    """Refuse a network that takes other images, or gives something else."""
    try:
        shapes = result_shapes(program, image_chw)
    except CheckpointError as error:
        raise CheckpointError(f"{path / NETWORK_NAME}: {error}") from None
    found = [shapes[name] for name in program.outputs]
    if found != list(output_shapes):
        raise CheckpointError(
            f"{path / NETWORK_NAME} gives {found} for one image, expected {list(output_shapes)} "
            f"from {METADATA_NAME}; quantise the network again"
        )
