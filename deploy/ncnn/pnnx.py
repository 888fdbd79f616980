"""Conversion of a traced network to ncnn's two files by pnnx, in a child process, with a check of its log.

pnnx exits with code 0 even if it could not convert an operator; the file then fails to load, or computes something
else.
"""

from __future__ import annotations

import os
import re
import subprocess
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from deploy.artefact.packages import optional_package
from deploy.ncnn.param import read_param
from utils.errors import ConfigError

PNNX_SECONDS = 600
_COMPLAINT = re.compile(r"not supported|^unsupported|^ignore |failed|error|fatal|unknown|no such file", re.IGNORECASE)
# Lines with settings and module names, which may contain any word.
_HARMLESS = re.compile(r"inline module = |\w+ = ")


def convert_to_ncnn(network: nn.Module, folder: Path, *, example: Tensor, half: bool = False) -> Path:
    """Write `model.ncnn.param` and `model.ncnn.bin` (and pnnx's own files) to `folder`.

    Args:
        network: Network in evaluation mode on the CPU; takes (1, C, H, W) and returns a tuple of tensors.
        folder: Empty scratch folder.
        example: Image (1, C, H, W) to trace with.
        half: Whether to store weights in 16 bits.

    Returns:
        Path of the param file.

    Raises:
        ConfigError: pnnx is missing, failed, or left out a part of the network.
    """
    executable = optional_package("pnnx", purpose="export to ncnn").EXEC_PATH
    with torch.inference_mode(), warnings.catch_warnings():
        # Torch warns that tracing is deprecated and fixes shapes; pnnx reads nothing else, and shapes may be fixed.
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(network, example, check_trace=False)  # type: ignore[no-untyped-call]
        traced.save(str(folder / "model.pt"))
    arguments = [f"inputshape=[{','.join(map(str, example.shape))}]", f"fp16={int(half)}"]
    _check_log(_run([executable, "model.pt", *arguments], folder))
    param = folder / "model.ncnn.param"
    if not param.is_file() or not param.with_suffix(".bin").is_file():
        raise ConfigError("pnnx wrote no ncnn files; reinstall it: pip install --force-reinstall pnnx")
    _check_operators(param)
    return param


def _run(command: list[str], folder: Path) -> str:
    """Run the child process and return its output, from both of its streams.

    Raises:
        ConfigError: It does not start, fails, or takes too long.
    """
    environment = {**os.environ, "OMP_WAIT_POLICY": "passive"}
    try:
        child = subprocess.run(
            command,
            cwd=folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=PNNX_SECONDS,
            check=False,
        )
    except OSError as error:
        raise ConfigError(f"pnnx does not start: {error}; run: pip install --force-reinstall pnnx") from error
    except subprocess.TimeoutExpired as error:
        raise ConfigError(
            f"pnnx did not finish within {PNNX_SECONDS} s; free memory and CPU cores, or lower --img-size"
        ) from error
    log = child.stdout.decode("utf-8", errors="replace")
    if child.returncode != 0:
        last = log.strip().splitlines()[-1:] or ["no output"]
        raise ConfigError(
            f"pnnx exited with code {child.returncode} ({last[0].strip()}); "
            "free memory, or reinstall it: pip install --force-reinstall pnnx"
        )
    return log


def _check_log(log: str) -> None:
    for line in map(str.strip, log.splitlines()):
        if _COMPLAINT.search(line) and not _HARMLESS.match(line):
            raise ConfigError(
                f"pnnx could not convert the network ({line}); replace that operator or choose another format"
            )


def _check_operators(param: Path) -> None:
    """Refuse operators that pnnx could not convert: it keeps torch's name, with a dot or colon, unlike ncnn's."""
    for layer in read_param(param):
        if "." in layer.kind or ":" in layer.kind:
            raise ConfigError(
                f"ncnn has no operator {layer.kind} (layer {layer.name}); "
                "replace that operator or choose another format"
            )
