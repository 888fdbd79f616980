"""Worker processes that compute results in the order of the tasks, and whose death is noticed at once.

They use one pipe per worker and no lock, semaphore or shared memory: a worker that is killed at any point closes its
pipe and leaves nothing locked.
"""

from __future__ import annotations

import errno
import multiprocessing
import os
import pickle
import signal
import sys
import traceback
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import cycle, islice
from multiprocessing.connection import Connection, wait
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from typing import Any, Generic, NoReturn, TypeVar

import cv2
import numpy as np
import torch

from utils.datasets.loading.messages import receive, send
from utils.errors import UserError, WorkerError

Task = TypeVar("Task")
Result = TypeVar("Result")

# Tasks sent to a worker at a time: the one it works on, and the next, so that it need not wait.
_TASKS_AHEAD = 2
# Seconds that a worker has to end before it is killed.
_PATIENCE = 5.0
# Seconds that a forked worker has to answer first, doubled at each attempt because the machine may be busy.
_START_PATIENCE = 0.25
_START_ATTEMPTS = 9


class WorkerPool(Generic[Task, Result]):
    """A pool of processes that run `make` on tasks.

        pool = WorkerPool(make, size=4)
        for result in pool.results(tasks):
            ...

    Task k is sent to worker k modulo `size`, so results are in the order of tasks. Workers persist from one
    iteration to the next, until the pool is garbage-collected.
    """

    def __init__(self, make: Callable[[Task], Result], *, size: int, method: str | None = None) -> None:
        """Set up the pool; `start` or the first iteration starts its processes.

        Args:
            make: Function from a task to a result with tensors on the CPU.
            size: Number of processes.
            method: Start method. None is "fork" on Linux, so that workers share the pages of this process, and
                Python's default on other systems.
        """
        self._make, self._size = make, size
        self._context = multiprocessing.get_context(method or ("fork" if sys.platform.startswith("linux") else None))
        self._workers: list[_Worker] = []
        self._iteration = 0
        weakref.finalize(self, _stop, self._workers, os.getpid())
        _POOLS.add(self)

    def start(self) -> None:
        """Start the processes that are not running yet.

        Raises:
            WorkerError: The system cannot start another process.
        """
        try:
            while len(self._workers) < self._size:
                self._workers.append(_start_worker(self._context, self._make))
        except OSError as error:
            self.close()
            raise WorkerError(f"cannot start a loading process ({error.strerror}); lower --workers") from error

    def close(self) -> None:
        """End the processes."""
        _stop(self._workers, os.getpid())

    def results(self, tasks: Iterable[Task]) -> Iterator[Result]:
        """Yield the result of each task, in order; discard results that an earlier iteration did not take.

        Raises:
            WorkerError: A worker of this or of another pool has died.
            Exception: An error that `make` raised.
        """
        self.start()
        self._drop_pending()
        self._iteration += 1
        iteration, waiting, turns = self._iteration, iter(tasks), cycle(self._workers)
        asked = deque(self._ask(zip(islice(waiting, _TASKS_AHEAD * self._size), turns, strict=False)))
        while asked:
            assert iteration == self._iteration, "two iterations over one pool at the same time"
            outcome = self._receive(asked.popleft())
            asked.extend(self._ask(zip(islice(waiting, 1), turns, strict=False)))
            if isinstance(outcome, _Failure):
                outcome.throw()
            yield outcome
            del outcome  # its memory may be large

    def _ask(self, pairs: Iterable[tuple[Task, _Worker]]) -> Iterator[_Worker]:
        """Send each task to its worker, and yield the worker."""
        for task, worker in pairs:
            with self._noticing_death(worker):
                worker.connection.send(task)
            worker.pending += 1
            yield worker

    def _receive(self, worker: _Worker) -> Any:
        for pool in list(_POOLS):
            pool._check()
        with self._noticing_death(worker):
            outcome = receive(worker.connection)
        worker.pending -= 1
        return outcome

    def _drop_pending(self) -> None:
        for worker in self._workers:
            while worker.pending:
                self._receive(worker)

    @contextmanager
    def _noticing_death(self, worker: _Worker) -> Iterator[None]:
        """Turn a closed pipe into a `WorkerError` if the worker has died."""
        try:
            yield
        except (EOFError, OSError):
            wait([worker.process.sentinel], _PATIENCE)
            self._check()
            raise

    def _check(self) -> None:
        """End all processes and raise a `WorkerError` if one of them has died."""
        dead = wait([worker.process.sentinel for worker in self._workers], 0) if self._workers else []
        for worker in self._workers:
            if worker.process.sentinel in dead:
                error = _death(worker.process)
                self.close()
                raise error


# All pools of this process, because the death of an idle worker must end the run as well.
_POOLS: weakref.WeakSet[WorkerPool[Any, Any]] = weakref.WeakSet()


@dataclass(kw_only=True, eq=False)
class _Worker:
    """A process, this end of its pipe, and the number of its unanswered tasks."""

    process: BaseProcess
    connection: Connection
    pending: int = 0


class _Failure:
    """An error in a worker, as a value that can be sent."""

    def __init__(self, error: Exception) -> None:
        self.trace = "".join(traceback.format_exception(error))
        try:
            self.pickled = pickle.dumps(error)
            pickle.loads(self.pickled)
        except Exception:  # noqa: BLE001 - pickling a library's error may raise anything
            self.pickled = pickle.dumps(RuntimeError(f"{type(error).__name__}: {error}"))

    def throw(self) -> NoReturn:
        """Raise the error; unless it is a `UserError`, with the traceback from the worker as its cause."""
        error = pickle.loads(self.pickled)
        try:
            raise error from (None if isinstance(error, UserError) else RuntimeError(f"in a worker:\n{self.trace}"))
        finally:
            del error  # else the error's traceback, which contains this frame, would keep error and frame alive


def _start_worker(context: BaseContext, make: Callable[[Any], Any]) -> _Worker:
    """Start a process, and replace a forked one that does not answer in time.

    A fork copies the locks that threads of the parent hold at that moment, but not the threads that would release
    them. A thread that has just loaded images holds one of OpenCV's locks while it ends; the worker would wait
    forever.

    Raises:
        OSError: The system starts no process, or none that answers.
    """
    if context.get_start_method() != "fork":
        return _launch(context, make)
    for attempt in range(_START_ATTEMPTS):
        worker = _launch(context, make)
        if worker.connection.poll(_START_PATIENCE * 2**attempt):
            # A worker that was killed meanwhile does not answer; its first task will report that.
            with suppress(EOFError, OSError):
                worker.connection.recv()
            return worker
        _stop([worker], os.getpid())
    raise OSError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))


def _launch(context: BaseContext, make: Callable[[Any], Any]) -> _Worker:
    ours, theirs = context.Pipe()
    inherited = ours if context.get_start_method() == "fork" else None
    # Typeshed declares `Process` only on each concrete kind of context.
    process: BaseProcess = context.Process(target=_work, args=(theirs, inherited, make), daemon=True)  # type: ignore[attr-defined]
    process.start()
    theirs.close()  # so that a worker's death closes the pipe
    return _Worker(process=process, connection=ours)


def _work(connection: Connection, inherited: Connection | None, make: Callable[[Any], Any]) -> None:
    """Answer tasks until the parent closes the pipe or ends; ignore Ctrl-C, which the parent handles.

    Args:
        connection: Worker's end of the pipe.
        inherited: Forked worker's copy of the other end, which would keep the pipe open without the parent.
        make: Function from a task to a result.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    try:
        if inherited is not None:
            inherited.close()
            cv2.resize(np.zeros((2, 2, 3), np.uint8), (4, 4))  # waits forever if the fork copied a lock
            connection.send(None)
        while True:
            send(connection, _outcome(make, connection.recv()))
    except (EOFError, ConnectionError):
        return


def _outcome(make: Callable[[Any], Any], task: Any) -> Any:
    try:
        return make(task)
    except Exception as error:  # noqa: BLE001 - raised in the parent
        return _Failure(error)


def _death(process: BaseProcess) -> WorkerError:
    process.join(_PATIENCE)
    code = process.exitcode or 0  # unknown if this process was started with SIGCHLD ignored
    name = signal.Signals(-code).name if -code in set(signal.Signals) else f"exit code {code}"
    if name == "SIGKILL":
        why = "as the system does when memory runs out; lower --workers, --batch-size or --img-size"
    else:
        why = "which is unexpected; --workers 0 loads without such processes"
    return WorkerError(f"loading process {process.pid} ended with {name}, {why}")


def _stop(workers: list[_Worker], owner: int) -> None:
    """End the processes, which have no unsaved state; do nothing in a forked copy of the pool."""
    if os.getpid() != owner:
        return
    for worker in workers:
        worker.connection.close()
        worker.process.terminate()
    for worker in workers:
        worker.process.join(_PATIENCE)
        if worker.process.exitcode is None:
            worker.process.kill()
            worker.process.join()
    workers.clear()
