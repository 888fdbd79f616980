"""A pickle reader that builds tensors and inert placeholders, and runs no code.

Nothing is imported by name: each allowed global maps to an object of this module, and any other is refused.
"""

from __future__ import annotations

import math
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from utils.errors import CheckpointError

_DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}

# Classes that checkpoints of YOLOv5 v5.0 to v7.0 refer to. Each becomes its own subclass of `Inert`.
_INERT: dict[str, str] = {
    "models.common": "Bottleneck BottleneckCSP C3 C3Ghost C3SPP C3TR C3x Concat Contract Conv CrossConv DWConv "
    "DWConvTranspose2d Expand Focus GhostBottleneck GhostConv Proto SPP SPPF TransformerBlock TransformerLayer",
    "models.experimental": "CrossConv Ensemble GhostBottleneck GhostConv MixConv2d Sum",
    "models.yolo": "BaseModel ClassificationModel Detect DetectionModel Model Segment SegmentationModel",
    "torch.nn.modules.activation": "Hardsigmoid Hardswish LeakyReLU Mish MultiheadAttention ReLU ReLU6 SiLU Sigmoid",
    "torch.nn.modules.batchnorm": "BatchNorm2d SyncBatchNorm",
    "torch.nn.modules.container": "ModuleList Sequential",
    "torch.nn.modules.conv": "Conv2d ConvTranspose2d",
    "torch.nn.modules.dropout": "Dropout",
    "torch.nn.modules.linear": "Identity Linear NonDynamicallyQuantizableLinear _LinearWithBias",
    "torch.nn.modules.padding": "ZeroPad2d",
    "torch.nn.modules.pooling": "AdaptiveAvgPool2d MaxPool2d",
    "torch.nn.modules.upsampling": "Upsample",
    "torch": "device",
    "numpy": "dtype float32 float64 int64 ndarray",
    "numpy.core.multiarray": "_reconstruct scalar",
    "numpy._core.multiarray": "_reconstruct scalar",
    "pathlib": "Path PosixPath PurePosixPath WindowsPath",
    "pathlib._local": "Path PosixPath WindowsPath",
    "argparse": "Namespace",
    "utils.loss": "ComputeLoss",
}
_INERT_GLOBALS = {(module, name) for module, names in _INERT.items() for name in names.split()}

_DAMAGE = (
    pickle.UnpicklingError,
    zipfile.BadZipFile,
    EOFError,
    ArithmeticError,
    AttributeError,
    ImportError,
    LookupError,
    MemoryError,
    NotImplementedError,
    RecursionError,
    RuntimeError,
    TypeError,
    ValueError,
)


class Inert:
    """A placeholder for an object of a pickled class, with its attributes and without behaviour.

    Attributes:
        kind: Name of the class, without its module.
        attributes: Saved `__dict__` of the object.
    """

    kind = ""
    attributes: dict[str, Any]

    def __new__(cls, *args: Any, **settings: Any) -> Inert:
        inert = object.__new__(cls)
        inert.attributes = {}
        return inert

    def __setstate__(self, state: Any) -> None:
        self.attributes = state if isinstance(state, dict) else {}

    def child(self, group: str) -> dict[str, Any]:
        """Return a torch module's `_modules`, `_parameters` or `_buffers`; empty if it has none."""
        value = self.attributes.get(group)
        return dict(value) if isinstance(value, dict) else {}


def read_inert(path: Path) -> Any:
    """Read the object in a torch zip file, with objects of allowed classes as `Inert`, tensors as `InertTensor`.

    Raises:
        CheckpointError: The file is damaged or refers to anything outside the allow-list, which the message names
            and nothing runs.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return _InertUnpickler(archive, path=path).load()
    except CheckpointError:
        raise
    except _DAMAGE as error:
        reason = " ".join(str(error).split())[:120]
        raise CheckpointError(f"weights {path} are damaged ({reason}); download or copy the file again") from error


class InertTensor:
    """A wrapped tensor: a bare one has methods that a hostile pickle could call while it is read."""

    __slots__ = ("values",)

    def __init__(self, values: Tensor) -> None:
        self.values = values


def tensor_in(value: object) -> Tensor | None:
    """Return the tensor of an `InertTensor`, None for anything else."""
    found = value.values if isinstance(value, InertTensor) else None
    return found if isinstance(found, Tensor) else None


class _InertUnpickler(pickle.Unpickler):
    def __init__(self, archive: zipfile.ZipFile, *, path: Path) -> None:
        records = [name for name in archive.namelist() if name.endswith("/data.pkl")]
        if len(records) != 1:
            raise CheckpointError(f"weights {path} contain no network (no data.pkl); give a .pt file")
        super().__init__(archive.open(records[0]))
        self._archive = archive
        self._path = path
        self._folder = records[0].removesuffix("data.pkl")
        self._storages: dict[str, InertTensor] = {}
        self._classes: dict[str, type[Inert]] = {}
        order = f"{self._folder}byteorder"
        if order in archive.namelist() and archive.read(order) != b"little":
            raise CheckpointError(f"weights {path} were written on a big-endian machine; save them again on another")

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        if (module, name) in _INERT_GLOBALS:
            return self._classes.setdefault(f"{module}.{name}", type(name, (Inert,), {"kind": name}))
        allowed = {
            ("collections", "OrderedDict"): OrderedDict,
            ("__builtin__", "set"): set,
            ("builtins", "set"): set,
            ("torch", "Size"): tuple,
            ("torch._utils", "_rebuild_tensor_v2"): self._rebuild_tensor,
            ("torch._utils", "_rebuild_parameter"): self._rebuild_parameter,
            ("_codecs", "encode"): self._encode,
        }
        if (module, name) in allowed:
            return allowed[module, name]
        raise CheckpointError(
            f"weights {self._path} refused: they refer to {module}.{name}, which no checkpoint needs; "
            "nothing was run; use weights from a source you trust"
        )

    def persistent_load(self, pid: Any) -> InertTensor:
        kind, dtype, key, _, count = pid
        if kind != "storage" or not isinstance(dtype, torch.dtype) or not str(key).isalnum():
            raise CheckpointError(
                f"weights {self._path} refused: {pid!r} is not a storage of this file; nothing was run"
            )
        if key not in self._storages:
            self._storages[key] = InertTensor(self._read_storage(str(key), dtype=dtype, count=count))
        return self._storages[key]

    def _read_storage(self, key: str, *, dtype: torch.dtype, count: int) -> Tensor:
        record = self._archive.getinfo(f"{self._folder}data/{key}")
        if record.compress_type != zipfile.ZIP_STORED or record.file_size < count * dtype.itemsize:
            raise pickle.UnpicklingError(f"storage {key} is shorter than {count} values or compressed")
        content = bytearray(self._archive.read(record))
        return torch.frombuffer(content, dtype=dtype, count=count) if count else torch.empty(0, dtype=dtype)

    # The next three are bound methods, whose attributes a pickle cannot set.
    def _rebuild_tensor(
        self, storage: InertTensor, offset: int, size: Sequence[int], stride: Sequence[int], *rest: Any
    ) -> InertTensor:
        count = storage.values.numel()
        last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        is_inside = min(offset, *size, *stride, 0) >= 0 and (0 in size or last < count)
        # Strides of 0 could expand a few bytes to any size.
        if not is_inside or math.prod(size) > count:
            raise pickle.UnpicklingError("a tensor reaches outside its storage")
        return InertTensor(storage.values.as_strided(tuple(size), tuple(stride), offset).clone())

    def _rebuild_parameter(self, data: InertTensor, requires_grad: bool, hooks: Any) -> InertTensor:
        return data

    def _encode(self, text: str, encoding: str) -> bytes:
        # Pickle protocol 2 writes bytes this way; here they are those of numpy scalars, which nothing reads.
        return text.encode("latin1") if encoding == "latin1" else b""
