"""Devices, autocast precision, seeds, and advice when memory runs out."""

from __future__ import annotations

import platform
import random
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from utils.config.choices import Amp
from utils.errors import ConfigError

# Texts of torch's CPU allocator and of OpenCV.
_EXHAUSTED = ("allocate memory", "Insufficient memory")
# What /proc/cpuinfo calls a machine: PCs, phones, boards.
_NAMES = ("model name", "Hardware", "Model")


def select_device(text: str = "", *, local_rank: int = 0) -> torch.device:
    """Return the device that `--device` names: "" (a GPU if there is one), "cpu", "0", "0,1", "cuda:0".

    Several GPUs are used under torchrun, one per process; each process takes the entry of its local rank.

    Raises:
        ConfigError: The device does not exist.
    """
    name = text.strip().lower()
    available = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "cpu" or (name == "" and not available):
        return torch.device("cpu")
    places = name.removeprefix("cuda").removeprefix(":")
    try:
        numbers = [int(part) for part in places.split(",")] if places else list(range(max(available, 1)))
    except ValueError:
        raise ConfigError(f"--device {text!r}: expected cpu, or GPU indices such as 0 or 0,1") from None
    number = numbers[local_rank % len(numbers)]
    if not 0 <= number < available:
        raise ConfigError(f"--device {text}: this machine has {available} usable GPUs; use --device cpu")
    return torch.device("cuda", number)


def amp_dtype(device: torch.device, amp: Amp = "auto") -> torch.dtype | None:
    """Return the autocast type, or None for plain float32.

    `auto` is bfloat16 if the hardware computes in it, else float16 on GPUs and float32 on CPUs, where emulated
    bfloat16 is slower.
    """
    if amp == "off":
        return None
    if amp == "bf16":
        return torch.bfloat16
    if amp == "fp16":
        if device.type == "cpu":
            raise ConfigError("--amp fp16 needs a GPU; use --amp bf16 or --amp off on a CPU")
        return torch.float16
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    return torch.bfloat16 if _cpu_computes_bf16() else None


def _cpu_computes_bf16() -> bool:
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16", "arm_bf16"))


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a CPU tensor to `device` without making the host wait for the device."""
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def seed_everything(seed: int) -> None:
    """Seed Python, numpy and torch on every device."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - libraries draw from the global generator
    torch.manual_seed(seed)


@contextmanager
def memory_advice(advice: str) -> Iterator[None]:
    """Turn a failed allocation into a ConfigError that names the settings to lower.

    Args:
        advice: Remedy, such as "lower --batch-size (now 64) or --img-size (now 640)".
    """
    try:
        yield
    except (RuntimeError, MemoryError, cv2.error) as error:
        text = str(error)
        is_out_of_memory = isinstance(error, torch.OutOfMemoryError | MemoryError)
        if not is_out_of_memory and not any(words in text for words in _EXHAUSTED):
            raise
        reason = f" ({text.splitlines()[0][:200]})" if text else ""
        raise ConfigError(f"out of memory{reason}; {advice}") from error


def machine_name() -> str:
    """Return the name of the CPU, or of the board."""
    info = Path("/proc/cpuinfo")
    text = info.read_text(encoding="utf-8", errors="replace") if info.is_file() else ""
    found = (re.search(rf"^{name}\s*:\s*(\S.*)$", text, re.MULTILINE) for name in _NAMES)
    named = next((match[1].strip() for match in found if match), "")
    return named or platform.processor() or platform.machine()
