"""Which of several worker processes this one is, so that recorders in them can tell themselves apart."""

from __future__ import annotations

import multiprocessing
from typing import Any


def worker_number() -> int | None:
    """The number of this process among the workers of its parent, from 0; None in the main process.

    A worker that doesn't know goes by the order in which its parent started it.
    """
    process = multiprocessing.current_process()
    identity: tuple[int, ...] = getattr(process, "_identity", ())
    if not identity:
        return None
    arguments = _arguments(process)
    for name in ("worker_idx", "idx"):
        number = arguments.get(name)
        if isinstance(number, int):
            return number
    return identity[-1] - 1


def in_torchrl_worker() -> bool:
    """Whether this process is a worker of a ``ParallelEnv`` or of a multi-process collector."""
    target = getattr(multiprocessing.current_process(), "_target", None)
    return str(getattr(target, "__module__", "")).startswith("torchrl.")


def _arguments(process: Any) -> dict[str, Any]:
    """TorchRL numbers its workers in ``Process(kwargs={"worker_idx": ...})``, and nowhere that an environment can see."""
    return getattr(process, "_kwargs", None) or {}
