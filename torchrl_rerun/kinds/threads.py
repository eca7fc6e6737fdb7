"""Threads that encode, a few for all recordings of a process.

Not those of ``concurrent.futures``: they take no work once the program has come to its end, and that is when recordings
are closed that nobody closed.
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
"""What they are all called."""

MOST = 8
"""However many processors there are."""

NICENESS = 5
"""How much less they matter than the other threads, on Linux: where processors are short, the environment's thread gets as
far beside several of them as beside one of its own priority, and while it waits they have all there is
(`make bench ARGS="--only encoding"`)."""

_Tasks = queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]]]


class _Threads:
    """So many at the most, begun one by one as there is work."""

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
    """How many processors this process may use."""
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
    """A forked process has none of its parent's threads."""
    global _threads  # noqa: PLW0603
    _threads = _Threads(min(MOST, _processors()))


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_anew)
