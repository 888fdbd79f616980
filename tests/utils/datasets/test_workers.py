"""Processes that make batches: same results in the same order, errors as they were raised, deaths noticed at once."""

from __future__ import annotations

import errno
import faulthandler
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import ROOT

from utils.datasets.loading import loader as loader_module
from utils.datasets.loading import workers as module
from utils.datasets.loading.batch import Batch, ImageInfo
from utils.datasets.loading.messages import receive, send
from utils.datasets.loading.workers import WorkerPool
from utils.errors import DataError, WorkerError

HAS_SIGNALS = hasattr(signal, "SIGKILL")
# Far more than it takes; a worker whose death goes unnoticed is waited for until this.
GENEROUS = 60.0


@pytest.fixture(autouse=True)
def no_endless_wait() -> Iterator[None]:
    """A test that hangs fails instead."""
    if not hasattr(signal, "SIGALRM"):
        yield
        return

    def fail(*_: object) -> None:
        raise AssertionError(f"still waiting after {GENEROUS} s")

    before = signal.signal(signal.SIGALRM, fail)
    signal.setitimer(signal.ITIMER_REAL, GENEROUS)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture(params=["memory file", "pipe", "refused file"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How numbers travel: as Linux can, as any system can, and where Linux refuses a file."""

    def refuse(name: str) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    if request.param == "memory file" and not hasattr(os, "memfd_create"):
        pytest.skip("this system has no memory files")
    if request.param == "pipe":
        monkeypatch.delattr(os, "memfd_create", raising=False)
    if request.param == "refused file":
        monkeypatch.setattr(os, "memfd_create", refuse, raising=False)
    return str(request.param)


def make_array(task: Any) -> Any:
    """A task's answer; some tasks have special ones."""
    if isinstance(task, signal.Signals):
        faulthandler.disable()  # pytest's would print where
        os.kill(os.getpid(), task)
        time.sleep(GENEROUS)
    if isinstance(task, Exception):
        raise task
    return torch.full((3, 5), task), os.getpid()


def numbers(pool: WorkerPool[Any, Any], tasks: list[Any]) -> list[int]:
    return [int(tensor[0, 0]) for tensor, _ in pool.results(tasks)]


def test_message_arrives_as_it_was_sent(way: str) -> None:
    infos = (ImageInfo(path="ä.jpg", index=3, original_hw=(5, 7)),)
    images = torch.arange(3 * 400 * 500, dtype=torch.uint8).view(1, 3, 400, 500)
    sent = Batch(images=images, targets=torch.zeros(0, 6), infos=infos)
    ours, theirs = multiprocessing.Pipe()
    # More than a pipe takes at once: it needs a reader at the same time.
    context = multiprocessing.get_context("fork" if sys.platform.startswith("linux") else None)
    writer = context.Process(target=send, args=(theirs, sent), daemon=True)
    writer.start()
    got = receive(ours)
    writer.join()
    assert isinstance(got, Batch)
    assert torch.equal(got.images, images)
    assert (got.targets.shape, got.targets.dtype) == ((0, 6), torch.float32)
    assert got.infos == infos
    got.images.add_(1)  # belongs to the receiver
    assert int(got.images[0, 0, 0, 0]) == 1


def test_many_arrays_keep_their_types_and_order(way: str) -> None:
    sent = [np.arange(n, dtype=kind) for n in (0, 1, 63, 64, 65) for kind in ("u1", "f4", "i8")]
    ours, theirs = multiprocessing.Pipe()
    send(theirs, sent)
    for array, copy in zip(sent, receive(ours), strict=True):
        assert array.dtype == copy.dtype
        assert np.array_equal(array, copy)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_results_come_in_the_order_of_tasks_from_all_workers(size: int, way: str) -> None:
    pool: WorkerPool[Any, Any] = WorkerPool(make_array, size=size)
    for count in (0, 1, 11):  # the workers persist
        results = list(pool.results(list(range(count))))
        assert [int(tensor[0, 0]) for tensor, _ in results] == list(range(count))
    assert len({pid for _, pid in results}) == size
    assert os.getpid() not in {pid for _, pid in results}


def test_other_ways_to_start_processes_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "memfd_create", raising=False)  # as on macOS and Windows
    assert numbers(WorkerPool(make_array, size=2, method="spawn"), [0, 1, 2]) == [0, 1, 2]


def test_iteration_that_was_left_does_not_reach_the_next() -> None:
    pool: WorkerPool[Any, Any] = WorkerPool(make_array, size=2)
    next(pool.results([7, 8, 9, 10, 11]))
    assert numbers(pool, [0, 1, 2]) == [0, 1, 2]


def test_results_may_be_kept() -> None:
    results = list(WorkerPool[Any, Any](make_array, size=1).results(list(range(40))))
    assert [int(tensor.sum()) for tensor, _ in results] == [15 * number for number in range(40)]


def test_users_mistake_arrives_as_it_is_and_the_pool_goes_on() -> None:
    pool: WorkerPool[Any, Any] = WorkerPool(make_array, size=2)
    with pytest.raises(DataError, match="^image x cannot be read$") as caught:
        numbers(pool, [0, DataError("image x cannot be read"), 2])
    assert caught.value.__cause__ is None
    assert numbers(pool, [3, 4]) == [3, 4]


class Uncopyable(Exception):
    """Cannot be pickled both ways."""

    def __init__(self, first: int, second: int) -> None:
        super().__init__(f"{first} {second}")


@pytest.mark.parametrize(
    ("error", "kind"), [(MemoryError("9 GiB"), MemoryError), (OSError(28, "No space left on device"), OSError)]
)
def test_other_errors_keep_their_kind_and_show_where_they_came_from(error: Exception, kind: type) -> None:
    with pytest.raises(kind) as caught:
        numbers(WorkerPool(make_array, size=1), [error])
    assert str(caught.value) == str(error)
    assert "in make_array" in str(caught.value.__cause__)


def fail_uncopyably(task: int) -> None:
    raise Uncopyable(1, task)


def test_error_that_cannot_be_copied_arrives_as_words() -> None:
    with pytest.raises(RuntimeError, match="Uncopyable: 1 2"):
        list(WorkerPool(fail_uncopyably, size=1).results([2]))


@pytest.mark.skipif(not HAS_SIGNALS, reason="this system has no signals")
@pytest.mark.parametrize("name", ["SIGKILL", "SIGBUS", "SIGSEGV", "SIGTERM"])
def test_worker_that_dies_ends_the_iteration_with_one_line(name: str) -> None:
    pool: WorkerPool[Any, Any] = WorkerPool(make_array, size=2)
    with pytest.raises(WorkerError) as caught:
        numbers(pool, [0, 1, signal.Signals[name], 3, 4, 5])
    assert f"ended with {name}" in str(caught.value)
    assert "--workers" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert ("memory runs out" in str(caught.value)) == (name == "SIGKILL")
    assert numbers(pool, [3, 4]) == [3, 4]  # with new workers


@pytest.mark.skipif(not HAS_SIGNALS, reason="this system has no signals")
def test_death_is_noticed_where_children_are_ignored() -> None:
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        with pytest.raises(WorkerError, match="loading process [0-9]+ ended with"):
            numbers(WorkerPool(make_array, size=1), [0, signal.SIGKILL])
    finally:
        signal.signal(signal.SIGCHLD, before)


def make_much(task: int) -> torch.Tensor:
    return torch.full((50_000_000,), task, dtype=torch.uint8)


@pytest.mark.skipif(not HAS_SIGNALS, reason="this system has no signals")
def test_worker_killed_in_the_middle_of_a_message_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "memfd_create", raising=False)
    pool = WorkerPool(make_much, size=1)
    results = pool.results([1, 2, 3])
    assert int(next(results)[0]) == 1
    (worker,) = pool._workers
    assert worker.connection.poll(GENEROUS)  # the head of the next message is here, its body blocks the worker
    assert worker.process.pid
    os.kill(worker.process.pid, signal.SIGKILL)
    with pytest.raises(WorkerError, match="SIGKILL"):
        next(results)


@pytest.mark.skipif(not HAS_SIGNALS, reason="this system has no signals")
def test_death_of_an_idle_worker_ends_the_iteration_of_another_pool() -> None:
    idle: WorkerPool[Any, Any] = WorkerPool(make_array, size=1)
    ((_, pid),) = idle.results([0])
    results = WorkerPool[Any, Any](make_array, size=1).results([0, 1, 2])
    next(results)
    os.kill(pid, signal.SIGKILL)
    idle._workers[0].process.join()
    with pytest.raises(WorkerError, match=f"loading process {pid} ended with SIGKILL"):
        next(results)


def test_dropped_pool_leaves_no_process() -> None:
    pool: WorkerPool[Any, Any] = WorkerPool(make_array, size=2)
    list(pool.results([0, 1]))
    processes = [worker.process for worker in pool._workers]
    assert all(process.is_alive() for process in processes)
    del pool
    assert not any(process.is_alive() for process in processes)


ORPHANS = """
import os, signal, sys
from test_workers import make_array
from utils.datasets.loading.workers import WorkerPool
pools = [WorkerPool(make_array, size=2), WorkerPool(make_array, size=2)]
for pool in pools:
    print(*{pid for _, pid in pool.results([0, 1])}, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="no /proc here to see processes in")
def test_workers_of_a_killed_process_end() -> None:
    path = os.pathsep.join([str(ROOT), str(Path(__file__).parent), str(ROOT / "tests")])
    done = subprocess.run(
        [sys.executable, "-c", ORPHANS], env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True
    )
    pids = done.stdout.split()
    assert len(pids) == 4, done.stderr
    end = time.monotonic() + GENEROUS / 2
    while any(_is_running(pid) for pid in pids) and time.monotonic() < end:
        time.sleep(0.05)
    assert not any(_is_running(pid) for pid in pids)


def _is_running(pid: str) -> bool:
    status = Path(f"/proc/{pid}/stat")
    try:
        return status.read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="workers are forked on Linux only")
def test_worker_that_was_forked_with_a_lock_held_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flag = tmp_path / "stuck once"

    def stuck_once(*_: object) -> None:
        try:
            flag.touch(exist_ok=False)
        except FileExistsError:
            return
        time.sleep(GENEROUS * 2)

    monkeypatch.setattr(module.cv2, "resize", stuck_once)
    assert numbers(WorkerPool(make_array, size=2), [0, 1, 2]) == [0, 1, 2]
    assert flag.exists()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="workers are forked on Linux only")
def test_workers_that_never_answer_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.cv2, "resize", lambda *_: time.sleep(GENEROUS * 2))
    monkeypatch.setattr(module, "_START_ATTEMPTS", 2)
    with pytest.raises(WorkerError, match=r"cannot start a loading process \(.*\); lower --workers"):
        WorkerPool(make_array, size=1).start()


def test_system_that_gives_no_process_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EAGAIN, "Resource temporarily unavailable")

    monkeypatch.setattr(module, "_launch", refuse)
    with pytest.raises(WorkerError, match=r"\(Resource temporarily unavailable\); lower --workers"):
        list(WorkerPool(make_array, size=2).results([0]))


class Pinned:
    """Stands for a batch."""

    def __init__(self, number: int) -> None:
        self.number, self.is_pinned = number, False

    def pin_memory(self) -> Pinned:
        self.is_pinned = True
        return self


def test_pinned_batches_keep_their_order_and_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    set_devices: list[int] = []
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    monkeypatch.setattr(torch.cuda, "set_device", set_devices.append)

    def broken() -> Iterator[Any]:
        yield from map(Pinned, range(2))
        raise DataError("image x cannot be read")

    batches = loader_module._pinned(broken())
    assert [next(batches).number for _ in range(2)] == [0, 1]  # type: ignore[attr-defined]
    with pytest.raises(DataError, match="image x"):
        next(batches)
    pinned = loader_module._pinned(iter(map(Pinned, range(3))))  # type: ignore[arg-type]
    assert [(batch.number, batch.is_pinned) for batch in pinned] == [(0, True), (1, True), (2, True)]  # type: ignore[attr-defined]
    assert set_devices == [3, 3]
