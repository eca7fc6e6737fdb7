"""Workers: find the number of this worker in its batch, so that recorders in workers have files of their own."""

from __future__ import annotations

import multiprocessing
import sys
import threading
from types import FrameType
from typing import Any

from torchrl.envs import ThreadingAsyncEnvPool

_POOL_CALLS = frozenset(
    getattr(ThreadingAsyncEnvPool, name).__func__.__code__
    for name in vars(ThreadingAsyncEnvPool)
    if name.endswith("_func")
)
"""The functions in which a pool of threads steps and resets one environment, given ``(environment, data, index)``."""


def worker_number() -> int | None:
    """Return the number of this worker in its batch, from 0; None in the main process, outside of a pool of threads.

    A worker of TorchRL has its position in the batch. Any other process has its position among the processes that its
    parent started.
    """
    for worker in (threading.current_thread(), multiprocessing.current_process()):
        if _is_torchrl(worker):
            arguments: dict[str, Any] = getattr(worker, "_kwargs", None) or {}
            for name in ("worker_idx", "idx", "i"):
                number = arguments.get(name)
                if isinstance(number, int):
                    return number
    in_pool = _number_in_pool()
    identity: tuple[int, ...] = getattr(multiprocessing.current_process(), "_identity", ())
    return in_pool if in_pool is not None or not identity else identity[-1] - 1


def in_worker() -> bool:
    """Return whether TorchRL has started this process or thread for a part of a batch."""
    return in_worker_process() or _number_in_pool() is not None


def in_worker_process() -> bool:
    """Return whether this process is a worker of a ``ParallelEnv``, of a pool or of a multi-process collector."""
    return _is_torchrl(multiprocessing.current_process())


def _is_torchrl(worker: Any) -> bool:
    """Return whether TorchRL started a thread or process. Only the function that it runs tells."""
    return str(getattr(getattr(worker, "_target", None), "__module__", "")).startswith("torchrl.")


def _number_in_pool() -> int | None:
    frame: FrameType | None = sys._getframe(1)  # noqa: SLF001 - nothing public says it
    while frame is not None:
        if frame.f_code in _POOL_CALLS:
            return int(frame.f_locals["env_td"][2])
        frame = frame.f_back
    return None
