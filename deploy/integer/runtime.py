"""Runtime for the integer networks that quantize.py writes: exact arithmetic on this machine's CPU."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from deploy.artefact.checksums import check_checksums
from deploy.artefact.metadata import METADATA_NAME, json_values, metadata_text, read_fields
from deploy.artefact.runtime import RuntimeModel
from deploy.formats import FORMATS
from deploy.outputs.metadata import Metadata, folder_metadata
from deploy.settings import RuntimeOptions
from quantization.execution.executor import Executor, run_program
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


def load_integer(path: Path, *, device: torch.device, options: RuntimeOptions) -> RuntimeModel:
    """Load a network that `deploy.integer.export.write_integer` wrote; it runs on the CPU.

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
    metadata, facts = folder_metadata(path), _facts(path)
    program = load_program(path / NETWORK_NAME, fingerprint=facts.network_fingerprint)
    check_checksums(path)  # a network of another training run has the same fingerprint
    _check_ends(program, metadata, path=path)
    if options.threads:
        torch.set_num_threads(options.threads)
    run = partial(run_program, program, Executor(program))
    return metadata.runtime(run, path=path, device=torch.device("cpu"))


def _facts(path: Path) -> ProgramFacts:
    return read_fields(ProgramFacts, json_values(metadata_text(path), where=path), where=path)


def _check_ends(program: IntegerProgram, metadata: Metadata, *, path: Path) -> None:
    """Refuse a network whose input or outputs have other shapes than the metadata say."""
    try:
        shapes = result_shapes(program, metadata.image_chw)
    except CheckpointError as error:
        raise CheckpointError(f"{path / NETWORK_NAME}: {error}") from None
    found = [shapes[name] for name in program.outputs]
    if found != metadata.output_shapes:
        raise CheckpointError(
            f"{path / NETWORK_NAME} returns {found} for one image, expected {metadata.output_shapes} "
            f"from {METADATA_NAME}; quantise the network again"
        )
