"""Import of torchvision, whether or not its compiled extension fits the installed torch.

A torchvision built for CUDA cannot load its extension beside a CPU-only torch, and then even
`import torchvision` fails, because it registers shapes for operators that do not exist. With those operators
declared first, the Python parts (models, transforms, data sets, box functions) work; the compiled operators remain
unavailable.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from functools import cache
from types import ModuleType

import torch
from torch import Tensor

# Kept for the life of the process, because the declarations vanish with the object.
_declared: list[torch.library.Library] = []


@cache
def import_torchvision() -> ModuleType:
    """Import and return the torchvision package, with or without its compiled operators."""
    try:
        return importlib.import_module("torchvision")
    except RuntimeError:
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
        for name in ("nms", "qnms"):
            signature = f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
            library.define(signature)  # type: ignore[no-untyped-call]
        _declared.append(library)
        return importlib.import_module("torchvision")


@cache
def compiled_nms() -> Callable[[Tensor, Tensor, float], Tensor] | None:
    """Return torchvision's NMS (boxes (N, 4) xyxy, scores (N,), IoU) -> kept indices, or None without extension."""
    import_torchvision()
    extension = importlib.import_module("torchvision.extension")
    if not extension._has_ops():
        return None
    operators = importlib.import_module("torchvision.ops")
    nms: Callable[[Tensor, Tensor, float], Tensor] = operators.nms
    return nms
