"""Export of integer networks: folders that contain the network and all that is needed to run it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import nn

from deploy.artefact.checksums import write_checksums
from deploy.artefact.folder import replaced_folder
from deploy.artefact.metadata import METADATA_NAME
from deploy.integer.runtime import FORMAT, NETWORK_NAME, ProgramFacts
from deploy.outputs.metadata import Metadata
from deploy.outputs.outputs import Source
from deploy.settings import ExportSettings
from quantization.choices import Layout
from quantization.program.program import IntegerProgram
from quantization.program.shapes import result_shapes
from quantization.storage.binary import save_program
from quantization.storage.text import save_float_yaml, save_yaml
from utils.errors import CheckpointError
from utils.storage.files import write_text

YAML_NAME = "network.yaml"
FLOAT_YAML_NAME = "float.yaml"


@dataclass(frozen=True, kw_only=True)
class Forms:
    """Forms in which a network is written.

    Attributes:
        layout: Layout of the weights.
        with_yaml: Whether to write YAML in addition to the compact file that the runtime reads.
        with_float_yaml: Whether to write the weights of the network in floating point as YAML, see `load_float_yaml`.
    """

    layout: Layout = "dense"
    with_yaml: bool = False
    with_float_yaml: bool = False


def write_integer(program: IntegerProgram, folder: Path, *, source: Source, forms: Forms) -> Metadata:
    """Write a network that `deploy.load_runtime` loads.

    Args:
        program: Program from images in the form of network input to head maps or logits.
        folder: Folder whose name ends in `_integer_model`; an earlier export there is replaced.
        source: Network that the program was made from.
        forms: Forms in which the program is stored.

    Raises:
        ConfigError: The folder cannot be written, or contains something else.
    """
    _, height, width = program.image_shape
    settings = ExportSettings(image_hw=(height, width), precision="integer")
    metadata = source.metadata(format=FORMAT, settings=settings, versions={"numpy": np.__version__})
    metadata = metadata.taking_any_size(takes_any_size(program, metadata.stride))
    facts = ProgramFacts(network_fingerprint=program.fingerprint, bits=bits_text(program))
    with replaced_folder(folder, marker=NETWORK_NAME) as new:
        save_program(program, new / NETWORK_NAME, layout=forms.layout)
        if forms.with_yaml:
            save_yaml(program, new / YAML_NAME, layout=forms.layout)
        if forms.with_float_yaml:
            save_float_yaml(float_arrays(source.model), new / FLOAT_YAML_NAME, layout=forms.layout)
        write_checksums(new, (NETWORK_NAME,))
        write_text(new / METADATA_NAME, json.dumps({**asdict(metadata), **asdict(facts)}, indent=2) + "\n")
    return metadata


def float_arrays(model: nn.Module) -> dict[str, NDArray[np.float32]]:
    """Return the parameters and buffers of a network in floating point by name, as float32."""
    tensors = model.state_dict().items()
    return {name: values.detach().float().cpu().numpy() for name, values in tensors if values.is_floating_point()}


def takes_any_size(program: IntegerProgram, stride: int) -> bool:
    """Check whether a program takes images of another height and width; a mean over whole maps prevents it."""
    channels, height, width = program.image_shape
    try:
        result_shapes(program, (channels, height + stride, width + stride))
    except CheckpointError:
        return False
    return True


def bits_text(program: IntegerProgram) -> str:
    """Describe the width of a program's integers, such as "weights in 8 bits, values in 8 to 10"."""
    weights = _span(operation.weight_bits for operation in program.operations if operation.weight_bits)
    values = _span((step.output.high - step.output.low).bit_length() for step in program.operations)
    return f"weights in {weights} bits, values in {values}"


def _span(numbers: Iterable[int]) -> str:
    found = sorted(set(numbers)) or [0]
    return str(found[0]) if len(found) == 1 else f"{found[0]} to {found[-1]}"
