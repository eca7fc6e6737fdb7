"""Workers: pools of threads, in which each thread steps one environment of a batch.

:mod:`torchrl_rerun.recording.workers` knows the processes of batches.
"""

from __future__ import annotations

import sys
from types import FrameType

from torchrl.envs import ThreadingAsyncEnvPool

from torchrl_rerun.recording import workers

_POOL_CALLS = frozenset(
    getattr(ThreadingAsyncEnvPool, name).__func__.__code__
    for name in vars(ThreadingAsyncEnvPool)
    if name.endswith("_func")
)
"""The functions in which a pool of threads steps and resets one environment, given ``(environment, data, index)``."""


def worker_number() -> int | None:
    """Return the number of this worker in its batch, from 0; None in the main process, outside of a pool of threads."""
    for number in (workers.number_in_batch(), _number_in_pool()):
        if number is not None:
            return number
    return workers.number_among_processes()


def in_worker() -> bool:
    """Return whether this process or thread was started for a part of a batch."""
    return workers.in_worker_process() or _number_in_pool() is not None


def _number_in_pool() -> int | None:
    frame: FrameType | None = sys._getframe(1)  # noqa: SLF001 - nothing public says it
    while frame is not None:
        if frame.f_code in _POOL_CALLS:
            return int(frame.f_locals["env_td"][2])
        frame = frame.f_back
    return None
