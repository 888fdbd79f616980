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

    from deploy.artefact.runtime import DetectorRuntime, RuntimeModel
    from deploy.outputs.logits import LogitsRuntime

_REMEDY = "give weights that fit the command and the data"
# A function, or its location as `module:function`.
Reference: TypeAlias = str | Callable[..., Any]


@dataclass(frozen=True, kw_only=True)
class Format:
    """A row of the table: everything that differs between formats.

    Attributes:
        suffix: Suffix of the name of a file or folder.
        marker: Name of a file that only folders of this format contain, so that renamed ones are recognised.
        packages: Packages that writing and running need; TensorRT looks for its own.
        needs_gpu: Whether artefacts run only on an NVIDIA GPU.
        precisions: Precisions that export.py writes; empty if it does not write this format.
        write: Function that writes a network, (ExportJob, Path) -> Metadata.
        load: Function that loads an artefact, (Path, device=, options=) -> RuntimeModel.
        int8: The `Arithmetic` of int8 there; empty if it computes none.
        engine: Package that runs artefacts, whose version belongs to a latency table.
        entry: Function that opens one layer to time it, (Entry, EntrySettings) -> callable; empty if a table must be
            given.
        has_fp16: Function that returns whether this processor computes in fp16 there; empty if none does.
    """

    suffix: str
    marker: str = ""
    packages: tuple[str, ...] = ()
    needs_gpu: bool = False
    precisions: tuple[Precision, ...] = ()
    write: Reference = ""
    load: Reference = ""
    int8: str = ""
    engine: str = ""
    entry: Reference = ""
    has_fp16: Reference = ""


FORMATS: dict[str, Format] = {
    "pytorch": Format(suffix=".pt", load="deploy.torch_formats:load_pytorch"),
    "ncnn": Format(
        suffix="_ncnn_model",
        marker="model.ncnn.param",
        packages=("pnnx", "ncnn"),
        precisions=("fp32", "fp16", "int8"),
        write="deploy.ncnn.export:write_ncnn",
        load="deploy.ncnn.runtime:load_ncnn",
        int8="deploy.ncnn.int8:ARITHMETIC",
        engine="ncnn",
        entry="deploy.latency.ncnn_entries:open_ncnn_entry",
        has_fp16="deploy.ncnn.runtime:has_fp16",
    ),
    "onnx": Format(
        suffix=".onnx",
        packages=("onnx", "onnxruntime"),
        precisions=("fp32", "fp16", "int8"),
        write="deploy.onnx.network:write_onnx",
        load="deploy.onnx.network:load_onnx",
        int8="deploy.onnx.int8:FOR_ONNXRUNTIME",
        engine="onnxruntime",
        entry="deploy.latency.onnx_entries:open_onnx_entry",
    ),
    "openvino": Format(
        suffix="_openvino_model",
        marker="model.xml",
        packages=("openvino", "onnx"),
        precisions=("fp32", "fp16", "int8"),
        write="deploy.openvino:write_openvino",
        load="deploy.openvino:load_openvino",
        int8="deploy.onnx.int8:FOR_OPENVINO",
        engine="openvino",
        entry="deploy.latency.onnx_entries:open_openvino_entry",
        has_fp16="deploy.openvino:has_fp16",
    ),
    "tensorrt": Format(
        suffix=".engine",
        packages=("onnx",),
        needs_gpu=True,
        precisions=("fp32", "fp16", "int8"),
        write="deploy.tensorrt.export:write_tensorrt",
        load="deploy.tensorrt.runtime:load_tensorrt",
        int8="deploy.onnx.int8:FOR_TENSORRT",
    ),
    "torchscript": Format(
        suffix=".torchscript",
        precisions=("fp32",),
        write="deploy.torch_formats:write_torchscript",
        load="deploy.torch_formats:load_torchscript",
        engine="torch",
        entry="deploy.latency.entries:open_torchscript_entry",
    ),
    "integer": Format(
        suffix="_integer_model",
        marker="network.npz",
        load="deploy.integer.runtime:load_integer",
    ),
}


def exported_formats() -> tuple[str, ...]:
    """Return the names that `export.py --include` takes."""
    return tuple(name for name, form in FORMATS.items() if form.write)


def check_format(name: str, *, flag: str) -> None:
    """Refuse a format that is not written.

    Raises:
        ConfigError: The message names the flag and lists those that are written.
    """
    known = exported_formats()
    if name not in known:
        raise ConfigError(f"{flag} {name}: unknown format; choose from {', '.join(known)}")


def name_of(suffix: str) -> str:
    """Return the name of the format with a suffix, as metadata have it; the suffix itself if there is none."""
    return next((name for name, form in FORMATS.items() if form.suffix == suffix), suffix.strip("._"))


def check_precision(name: str, precision: Precision) -> None:
    """Refuse a precision that a format is not written in.

    Raises:
        ConfigError: The message lists those that it is written in.
    """
    known = FORMATS[name].precisions
    if precision not in known:
        listed = " or ".join(filter(None, (", ".join(known[:-1]), known[-1])))
        raise ConfigError(f"{name} in {precision} is not supported; expected {listed}")


def suffixes(forms: Iterable[Format]) -> str:
    """List the suffixes of these formats, for messages."""
    return ", ".join(form.suffix for form in forms)


def format_of(path: str | Path) -> Format | None:
    """Recognise the format of an artefact, whatever its folder is called.

    A folder without the files of any format, and a path that does not exist, are recognised by name alone, so that
    the loader can report what is missing.

    Returns:
        Format of the artefact; None if it is not known.
    """
    path = Path(path)
    found = next((form for form in FORMATS.values() if form.marker and (path / form.marker).is_file()), None)
    return found or next((form for form in FORMATS.values() if path.name.lower().endswith(form.suffix)), None)


def resolve(reference: Reference) -> Any:
    """Import the function, or another object, that a row of the table names."""
    if callable(reference):
        return reference
    module, _, name = reference.partition(":")
    return getattr(import_module(module), name)


def load_runtime(path: str | Path, *, device: torch.device, options: RuntimeOptions | None = None) -> RuntimeModel:
    """Load a checkpoint or artefact of a detector or classifier with the runtime of its format.

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
        raise ConfigError(f"weights {path}: unsupported format {path.suffix!r}; known: {suffixes(FORMATS.values())}")
    if form is None or not path.exists():
        raise CheckpointError(f"weights {path} do not exist; check the path (nothing is downloaded)")
    runtime: RuntimeModel = resolve(form.load)(path, device=device, options=options or RuntimeOptions())
    return runtime


def load_detector(
    path: str | Path, *, device: torch.device, options: RuntimeOptions | None = None
) -> DetectorRuntime:
    """Load a checkpoint or artefact of a detector, as `load_runtime` does, and refuse a classifier.

    Raises:
        CheckpointError: It is a classifier.
    """
    from deploy.outputs.logits import LogitsRuntime

    runtime = load_runtime(path, device=device, options=options)
    if isinstance(runtime, LogitsRuntime):
        raise CheckpointError(f"{path}: got a classifier, expected a detector; {_REMEDY}")
    return runtime


def load_classifier(
    path: str | Path, *, device: torch.device | None = None, options: RuntimeOptions | None = None
) -> LogitsRuntime:
    """Load a checkpoint or artefact of a classifier, as `load_runtime` does, and refuse a detector.

    Args:
        path: File or folder of the artefact.
        device: Device to run on; None for the CPU.
        options: Precision, threads and cores.

    Raises:
        CheckpointError: It is a detector.
    """
    import torch

    from deploy.outputs.logits import LogitsRuntime

    runtime = load_runtime(path, device=device or torch.device("cpu"), options=options)
    if not isinstance(runtime, LogitsRuntime):
        raise CheckpointError(f"{path}: got a detector, expected a classifier; {_REMEDY}")
    return runtime
