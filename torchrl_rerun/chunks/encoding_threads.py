"""Threads that encode, a few for all recordings of a process.

Threads of ``concurrent.futures`` take no tasks at the end of the program, which is when recordings are closed that the user
did not close.
"""

from __future__ import annotations

import contextlib
import os
import queue
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")

NAME = "torchrl_rerun-encoder"
"""Name of all threads."""

MOST = 8
"""Largest number of threads, on machines with more processors too."""

NICENESS = 5
"""Niceness of the threads on Linux, above that of the process. If processors are short, the environment's thread gets as far
beside several of them as beside one of its own priority; while it waits they have all processors
(`make bench ARGS="--only encoding"`)."""

_Tasks = queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]]]


class _Threads:
    """A bounded number of threads, started one by one as tasks come."""

    def __init__(self, most: int, niceness: int = NICENESS) -> None:
        self._most = most
        self._niceness = niceness
        self._tasks: _Tasks = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._begun = 0

    def submit(self, task: Callable[[], T]) -> Future[T]:
        future: Future[T] = Future()
        with self._lock:
            if self._begun < self._most and self._begin():
                self._begun += 1
        if self._begun:
            self._tasks.put((future, task))
        else:
            _fulfil(future, task)
        return future

    def _begin(self) -> bool:
        try:
            threading.Thread(target=_work, args=(self._tasks, self._niceness), name=NAME, daemon=True).start()
        except RuntimeError:  # there are too many already, or the program is at its end
            return False
        return True


def submit(task: Callable[[], T]) -> Future[T]:
    """Let a task be done on one of the threads.

    Args:
        task: what is done. It may raise: its future does, too.
    """
    return _threads.submit(task)


def _processors() -> int:
    """Return how many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _work(tasks: _Tasks, niceness: int) -> None:
    if sys.platform == "linux":  # elsewhere it would be the whole process
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), os.getpriority(os.PRIO_PROCESS, 0) + niceness)
    while True:
        _fulfil(*tasks.get())


def _fulfil(future: Future[T], task: Callable[[], T]) -> None:
    try:
        result = task()
    except BaseException as error:  # it is the business of whoever waits for it
        future.set_exception(error)
    else:
        future.set_result(result)


_threads = _Threads(min(MOST, _processors()))


def _begin_anew() -> None:
    """Start without threads in a forked process, which has none of its parent's."""
    global _threads  # noqa: PLW0603
    _threads = _Threads(min(MOST, _processors()))


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_anew)
