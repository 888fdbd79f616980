"""Import of packages that only one runtime needs, when that runtime is used."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from utils.errors import ConfigError

# Requirements files that pin the versions of these packages; all others are in requirements-export.txt.
_REQUIREMENTS = {
    "ncnn": "requirements.txt",
    "pnnx": "requirements.txt",
    "tensorrt": "requirements-tensorrt.txt",
    "tensorrt_rtx": "requirements-tensorrt.txt",
}


def optional_package(name: str, *, purpose: str) -> Any:
    """Import a package that a machine may lack.

    Args:
        name: Name of the module.
        purpose: Task or file that needs it, for the message.

    Raises:
        ConfigError: It is not installed, or does not load on this machine.
    """
    try:
        return import_module(name)
    except ImportError as error:
        file = _REQUIREMENTS.get(name, "requirements-export.txt")
        raise ConfigError(f"{purpose} needs the package {name} ({error}); run: pip install -r {file}") from error
