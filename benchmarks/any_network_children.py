"""One measurement in a process of its own, with limits, so that no network ends the table."""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.any_network_cases import Case
from benchmarks.any_network_ours import measure_ours
from benchmarks.any_network_peer import measure_peer
from utils.errors import UserError
from utils.storage.files import write_json

WAYS = {"ours": measure_ours, "peer": measure_peer}
_GIB = 2**30
# Loaded once, in the process from which all others are forked: these imports take longer than most measurements.
_PRELOADED = ["benchmarks.any_network_preload", "benchmarks.any_network_children"]
_LONGEST_MESSAGE = 300
# A process that waits uses no processor time: it is ended when it has taken this many times its limit.
_WAITING = 20


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one measurement may take.

    Attributes:
        seconds: Processor time, which other programs on the machine do not use up.
        gib: Memory that the process may reserve, in GiB.
    """

    seconds: int
    gib: float


def result_path(folder: Path, case: Case, way: str) -> Path:
    """Return the file of one result."""
    return folder / f"{case.file_name}.{way}.json"


def read_result(path: Path) -> dict[str, Any] | None:
    """Read a result; None if it was not measured."""
    result: dict[str, Any] | None = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
    return result


def measure_apart(case: Case, way: str, folder: Path, limits: Limits) -> dict[str, Any]:
    """Measure one network in a process of its own and keep the result as a file; its output goes into a log beside.

    Args:
        case: Network.
        way: "ours" or "peer".
        folder: Existing folder of the results.
        limits: Limits of the process.

    Returns:
        The result: `verdict`, and what was found until then.
    """
    path = result_path(folder, case, way)
    path.unlink(missing_ok=True)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    process = context.Process(target=_measure, args=(case, way, path, limits))
    process.start()
    process.join(_WAITING * limits.seconds)
    if process.is_alive():
        process.kill()
        process.join()
    result = read_result(path)
    if result is None:
        result = {"verdict": "crash", "message": _end(process.exitcode, limits)}
        write_json(path, result)
    return result


def _end(exit_code: int | None, limits: Limits) -> str:
    if exit_code in (-signal.SIGXCPU, -signal.SIGKILL):
        return f"takes more than {limits.seconds} s"
    return f"its process ended with exit code {exit_code}"


def _measure(case: Case, way: str, path: Path, limits: Limits) -> None:
    """Measure, in the child."""
    log = os.open(path.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    memory = int(limits.gib * _GIB)
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CPU, (limits.seconds, limits.seconds + 1))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    torch.set_num_threads(1)
    result: dict[str, Any] = {}
    try:
        WAYS[way](case, result)
    except UserError as error:
        write_json(path, {**result, "verdict": "refused", "message": _first_line(error)})
    except BaseException as error:
        write_json(path, {**result, "verdict": "crash", "message": f"{type(error).__name__}: {_first_line(error)}"})
        raise
    else:
        write_json(path, {**result, "processor_seconds": round(time.process_time(), 1)})


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [""])[0][:_LONGEST_MESSAGE]


def is_fault(result: Mapping[str, Any]) -> bool:
    """Return whether a result is one that must not occur: a wrong cut or a crash."""
    return result["verdict"] in ("differs", "crash", "no effect")
