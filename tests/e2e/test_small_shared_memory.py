"""Runs where /dev/shm is small, full, read-only or absent, and runs whose loading processes are killed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from interruption import assert_same_weights
from tiny import ROOT, TINY_CFG, tiny_data

# Far more than these runs take; before, they waited forever.
GENEROUS = 240

# The same arithmetic in every run.
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/dev/shm is Linux's"),
]


# Last weights of a run, its numbers, its boxes.
Outcome = tuple[Path, dict[str, Any], list[dict[str, Any]]]


def command(script: str, folder: Path, *, weights: Path | None = None, **settings: object) -> list[str]:
    """A run at 640 px with two loading processes; its batches together are larger than 64 MB."""
    own = (
        ["--weights", str(weights)]
        if weights
        else ["--cfg", TINY_CFG, "--epochs", "1", "--noplots", "--noautoanchor"]
    )
    flags = {
        "data": folder / "data/tiny.yaml",
        "batch-size": 20,
        "img-size": 640,
        "workers": 2,
        "device": "cpu",
        "project": folder / script,
        "cache-dir": folder / "cache",
        **settings,
    }
    values = [str(part) for name, value in flags.items() for part in (f"--{name}", value)]
    return [sys.executable, str(ROOT / f"{script}.py"), *own, *values]


def finish(line: Sequence[str]) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(line, env=ENVIRONMENT, cwd=ROOT, capture_output=True, text=True, timeout=GENEROUS)
    assert done.returncode == 0, done.stderr
    return done


def train_and_measure(folder: Path, *, name: str, prefix: Sequence[str] = ()) -> Outcome:
    """The last weights of a run, and what val.py finds with its best."""
    finish([*prefix, *command("train", folder, name=name)])
    weights = folder / "train" / name / "weights"
    finish([*prefix, *command("val", folder, weights=weights / "best.pt", name=name)])
    files = folder / "val" / name
    result = json.loads((files / "result.json").read_text())
    numbers = {
        key: result[key] for key in ("AP", "AP50", "precision", "recall", "confidence", "per_class", "detections")
    }
    return weights / "last.pt", numbers, json.loads((files / "predictions.json").read_text())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("shm")
    tiny_data(root / "data", images=40)
    return root


@pytest.fixture(scope="module")
def usual(folder: Path) -> Outcome:
    """What comes out on this machine as it is."""
    return train_and_measure(folder, name="usual")


def in_namespace(*mounts: str) -> list[str]:
    """The start of a command that sees other mounts than the rest of the machine."""
    if shutil.which("unshare") is None:
        pytest.skip("no unshare here to make a mount namespace with")
    script = " && ".join([*mounts, 'exec "$@"'])
    flags = ["--mount"] if os.geteuid() == 0 else ["--user", "--map-root-user", "--mount"]
    prefix = ["unshare", *flags, "sh", "-c", script, "sh"]
    tried = subprocess.run([*prefix, "true"], capture_output=True, text=True, check=False)
    if tried.returncode:
        pytest.skip(f"no mount namespace can be made here: {tried.stderr.strip()[:100]}")
    return prefix


@pytest.mark.parametrize("options", ["size=64m", "size=64k", "size=64k,ro"])
def test_size_of_shared_memory_changes_no_bit(folder: Path, usual: Outcome, options: str) -> None:
    prefix = in_namespace(f"mount -t tmpfs -o {options} tmpfs /dev/shm")
    last, *found = train_and_measure(folder, name=options.replace(",", "_"), prefix=prefix)
    assert_same_weights(usual[0], last)
    assert len(usual[2]) > 1000
    assert found == list(usual[1:])


def test_several_processes_train_without_shared_memory(folder: Path) -> None:
    prefix = in_namespace("mount -t tmpfs -o size=64k tmpfs /dev/shm")
    python, *arguments = command("train", folder, name="two", **{"img-size": 320})
    torchrun = [python, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    finish([*prefix, *torchrun, *arguments])
    assert (folder / "train/two/result.json").exists()


@pytest.mark.parametrize("script", ["train", "val"])
@pytest.mark.parametrize("victim", [0, -1], ids=["first", "last"])
def test_killed_loading_process_ends_the_command_with_one_line(
    folder: Path, usual: Outcome, script: str, victim: int
) -> None:
    """The last process of train.py is one for validation, which has nothing to do while training runs."""
    weights = usual[0].with_name("best.pt") if script == "val" else None
    settings = {"batch-size": 1, "name": f"killed {victim}"} | ({"epochs": 100} if script == "train" else {})
    with subprocess.Popen(
        command(script, folder, weights=weights, **settings),
        env=ENVIRONMENT,
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as run:
        children = wait_for_children(run, count=min(2, os.cpu_count() or 1))
        os.kill(children[victim], signal.SIGKILL)
        _, errors = run.communicate(timeout=GENEROUS)
    assert run.returncode == 2, errors
    assert errors.startswith(f"error: loading process {children[victim]} ended with SIGKILL")
    assert len(errors.splitlines()) == 1


def wait_for_children(run: subprocess.Popen[str], *, count: int) -> list[int]:
    """The loading processes of a run, in the order they were started."""
    listing = Path(f"/proc/{run.pid}/task/{run.pid}/children")
    if not listing.exists():
        run.kill()
        pytest.skip("this kernel does not list the children of a process")
    end = time.monotonic() + GENEROUS
    while run.poll() is None and time.monotonic() < end:
        found = [int(pid) for pid in listing.read_text().split()]
        if len(found) >= count:
            return found
        time.sleep(0.01)
    run.kill()
    raise AssertionError(f"no loading processes: {run.stderr.read() if run.stderr else ''}")
