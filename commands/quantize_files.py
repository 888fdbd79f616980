"""The file that quantize.py writes: integers alone, or int8 for a runtime."""

from __future__ import annotations

from pathlib import Path

import torch

from commands.quantize_config import QAT_NAME, QuantizeConfig
from deploy.artefact.folder import check_replaceable
from deploy.artefact.packages import optional_package
from deploy.formats import FORMATS, resolve
from deploy.integer.export import Forms, bits_text, write_integer
from deploy.job import ExportJob
from deploy.outputs.outputs import Source
from deploy.settings import ExportSettings
from deploy.verification.verify import megabytes_of
from quantization.network import QuantizedNetwork
from quantization.storage.sizes import FormSize, form_sizes
from utils.errors import ConfigError
from utils.storage.files import check_writable


def check_place(config: QuantizeConfig, *, is_resumed: bool) -> None:
    """Refuse, before anything is computed, a place that cannot be written to, and a runtime that is not here."""
    form, path = FORMATS[config.runtime], artefact_path(config)
    if form.marker:
        check_replaceable(path, marker=form.marker)
    check_writable(path.parent)
    check_writable(config.project)
    run = Path(config.project, config.name)
    if config.qat_epochs and config.exist_ok and not is_resumed and (run / QAT_NAME).exists():
        raise ConfigError(
            f"--exist-ok {run}: it contains a training; --resume {run} continues with it, or give a --name"
        )
    for package in form.packages:
        optional_package(package, purpose=f"--runtime {config.runtime}")
    if form.needs_gpu and not torch.cuda.is_available():
        raise ConfigError(f"--runtime {config.runtime} needs a GPU to measure what it writes; use a machine with one")


def artefact_path(config: QuantizeConfig) -> Path:
    """Where the artefact is written: best_w8a8_integer_model, best_mixed_a8_integer_model."""
    weights = Path(config.weights)
    widths = f"w{config.weight_bits}a{config.activation_bits}"
    if config.budget:
        widths = f"mixed_a{config.activation_bits}"
    folder = Path(config.output) if config.output else weights.parent
    return folder / f"{weights.stem}_{widths}{FORMATS[config.runtime].suffix}"


def write_file(
    network: QuantizedNetwork, source: Source, config: QuantizeConfig, path: Path
) -> tuple[tuple[FormSize, ...], str]:
    """Write a network; return the bytes of its forms, and how wide its integers are, for people."""
    write = _write_integers if config.is_all_integers else _write_for_runtime
    return write(network, source, config, path)


def _write_integers(
    network: QuantizedNetwork, source: Source, config: QuantizeConfig, path: Path
) -> tuple[tuple[FormSize, ...], str]:
    """Write a network in integers alone; return the bytes of each form of it, and how wide its integers are."""
    program = network.to_program()
    forms = Forms(layout=config.layout, with_yaml=config.yaml, with_float_yaml=config.float_yaml)
    write_integer(program, path, source=source, forms=forms)
    return form_sizes(program, with_yaml=config.yaml), bits_text(program)


def _write_for_runtime(
    network: QuantizedNetwork, source: Source, config: QuantizeConfig, path: Path
) -> tuple[tuple[FormSize, ...], str]:
    """Write a network for a runtime with int8; return its bytes and those in floating point, and how it rounds."""
    job = ExportJob(
        source=source,
        settings=ExportSettings(image_hw=network.image_shape[1:], precision="int8"),
        rounded=network,
    )
    resolve(FORMATS[config.runtime].write)(job, path)
    floats, found = sum(4 * p.numel() for p in network.layers.parameters()), int(megabytes_of(path) * 1e6)
    sizes = [("float32", floats), (form_name(config), found)]
    rounded = sum(number is not None for number in network.bits.weights.values())
    return (
        tuple(FormSize(form=form, num_bytes=size, times_smaller=floats / size) for form, size in sizes),
        f"{rounded} of {len(network.bits.weights)} layers in 8 bits",
    )


def form_name(config: QuantizeConfig) -> str:
    """Return the name of the form that is written."""
    return f"npz {config.layout}" if config.is_all_integers else f"{config.runtime} int8"
