"""The table of formats that export.py writes and that val.py, detect.py and the Python API read.

A new format or runtime is one more row. Functions are named, not imported, so that settings read the table without
torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from deploy.choices import Precision
from deploy.settings import RuntimeOptions
from utils.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    import torch

    from deploy.artefact.runtime import RuntimeModel
    from deploy.classifier.runtime import ClassifierRuntime

# A function, or its location as `module:function`.
Reference: TypeAlias = str | Callable[..., Any]


@dataclass(frozen=True, kw_only=True)
class Format:
    """A row of the table: everything that differs between formats.

    Attributes:
        suffix: Suffix of the name of a file or folder.
        marker: Name of a file that only folders of this format contain, so that renamed ones are recognised.
        packages: Packages that writing and running need; TensorRT looks for its own.
        precisions: Precisions that export.py writes a detector in; empty if it does not write this format.
        write: Function that writes a detector, (ExportJob, Path) -> ExportMetadata.
        load: Function that loads a detector, (Path, device=, options=) -> RuntimeModel.
        logits_precisions, write_logits, load_logits: Precisions and functions for classifiers.
    """

    suffix: str
    marker: str = ""
    packages: tuple[str, ...] = ()
    precisions: tuple[Precision, ...] = ()
    write: Reference = ""
    load: Reference = ""
    logits_precisions: tuple[Precision, ...] = ()
    write_logits: Reference = ""
    load_logits: Reference = ""


FORMATS: dict[str, Format] = {
    "pytorch": Format(suffix=".pt", load="deploy.pytorch:load_pytorch"),
    "ncnn": Format(
        suffix="_ncnn_model",
        marker="model.ncnn.param",
        packages=("pnnx", "ncnn"),
        precisions=("fp32", "fp16", "int8"),
        write="deploy.exporters:write_ncnn",
        load="deploy.ncnn.runtime:load_ncnn",
        logits_precisions=("fp32", "fp16"),
        write_logits="deploy.classifier.export:write_ncnn",
        load_logits="deploy.classifier.runtime:load_ncnn",
    ),
    "onnx": Format(
        suffix=".onnx",
        packages=("onnx", "onnxruntime"),
        precisions=("fp32", "fp16", "int8"),
        write="deploy.exporters:write_onnx",
        load="deploy.onnx.detector:load_onnx",
        logits_precisions=("fp32", "fp16", "int8"),
        write_logits="deploy.classifier.export:write_onnx",
        load_logits="deploy.classifier.runtime:load_onnx",
    ),
    "openvino": Format(
        suffix="_openvino_model",
        marker="model.xml",
        packages=("openvino", "onnx"),
        precisions=("fp32", "fp16", "int8"),
        write="deploy.exporters:write_openvino",
        load="deploy.openvino:load_openvino",
    ),
    "tensorrt": Format(
        suffix=".engine",
        packages=("onnx",),
        precisions=("fp32", "fp16", "int8"),
        write="deploy.exporters:write_tensorrt",
        load="deploy.tensorrt.runtime:load_tensorrt",
    ),
    "torchscript": Format(
        suffix=".torchscript",
        precisions=("fp32",),
        write="deploy.exporters:write_torchscript",
        load="deploy.torchscript:load_torchscript",
        logits_precisions=("fp32",),
        write_logits="deploy.classifier.export:write_torchscript",
        load_logits="deploy.classifier.runtime:load_torchscript",
    ),
    "integer": Format(
        suffix="_integer_model",
        marker="network.npz",
        load="deploy.integer.runtime:load_integer",
        load_logits="deploy.classifier.runtime:load_integer",
    ),
}


def exported_formats() -> tuple[str, ...]:
    """Return the names that `export.py --include` takes."""
    return tuple(name for name, form in FORMATS.items() if form.write)


def suffixes(forms: Iterable[Format]) -> str:
    """List the suffixes of these formats, for messages."""
    return ", ".join(form.suffix for form in forms)


def format_of(path: str | Path, *, gives_logits: bool = False) -> Format | None:
    """Recognise the format of an artefact, whatever its folder is called.

    A folder without the files of any format, and a path that does not exist, are recognised by name alone, so that
    the loader can report what is missing.

    Args:
        path: File or folder of the artefact.
        gives_logits: Whether to consider the formats that classifiers, not detectors, are loaded from.

    Returns:
        Format of the artefact; None if it is not known.
    """
    path = Path(path)
    known = readable(gives_logits=gives_logits)
    found = next((form for form in FORMATS.values() if form.marker and (path / form.marker).is_file()), None)
    if found is not None:
        return found if found in known else None
    return next((form for form in known if path.name.lower().endswith(form.suffix)), None)


def readable(*, gives_logits: bool = False) -> tuple[Format, ...]:
    """Return the formats that detectors or, with `gives_logits`, classifiers are loaded from."""
    return tuple(form for form in FORMATS.values() if (form.load_logits if gives_logits else form.load))


def resolve(reference: Reference) -> Callable[..., Any]:
    """Import the function that a row of the table names."""
    if callable(reference):
        return reference
    module, _, function = reference.partition(":")
    found: Callable[..., Any] = getattr(import_module(module), function)
    return found


def load_runtime(path: str | Path, *, device: torch.device, options: RuntimeOptions | None = None) -> RuntimeModel:
    """Load the artefact of a detector with the runtime of its format.

    Args:
        path: File or folder of the artefact.
        device: Device to run on.
        options: Precision, threads and cores.

    Raises:
        ConfigError: No runtime reads this format.
        CheckpointError: There is no such file, or it is damaged.
    """
    path = Path(path)
    form = format_of(path)
    if form is None and path.exists():
        raise ConfigError(f"weights {path}: unsupported format {path.suffix!r}; known: {suffixes(readable())}")
    if form is None or not path.exists():
        raise CheckpointError(f"weights {path} do not exist; check the path (nothing is downloaded)")
    runtime: RuntimeModel = resolve(form.load)(path, device=device, options=options or RuntimeOptions())
    return runtime


def load_classifier(path: str | Path, *, threads: int | None = None) -> ClassifierRuntime:
    """Load the artefact of a classifier; it runs on the CPU.

    Args:
        path: File or folder of the artefact.
        threads: Number of threads; None takes as many as torch. TorchScript always does.

    Raises:
        ConfigError: No runtime reads this format, or its package is not installed.
        CheckpointError: There is no such artefact, it is damaged, or it is not a classifier.
    """
    path = Path(path)
    form = format_of(path, gives_logits=True)
    if form is None:
        known = suffixes(readable(gives_logits=True))
        raise ConfigError(f"classifier {path}: unsupported format; known: {known}; export it in one of them")
    if not path.exists():
        raise CheckpointError(f"classifier {path} does not exist; check the path")
    runtime: ClassifierRuntime = resolve(form.load_logits)(path, RuntimeOptions(threads=threads))
    return runtime
