"""Workers: find out whether a framework has started this process for a part of a batch, and its number in the batch.

Recorders in workers have files of their own, and errors that would end a worker are warnings.
"""

from __future__ import annotations

import multiprocessing
import re
import threading
from typing import Any

FRAMEWORKS = ("torchrl", "gymnasium", "stable_baselines3")
"""Packages that start workers for environments."""

_NAME = re.compile(r"Worker<\w+>-(\d+)")
"""The name of a worker of Gymnasium's ``AsyncVectorEnv``, also with a function of the user's."""


def in_worker_process() -> bool:
    """Return whether this process steps a part of a batch: of TorchRL's, Gymnasium's or Stable-Baselines3's environments."""
    process = multiprocessing.current_process()
    return started_by(process) in FRAMEWORKS or _NAME.fullmatch(process.name) is not None


def started_by(worker: Any) -> str:
    """Return the package whose function a thread or process runs; empty: none. Nothing but the function tells.

    Args:
        worker: the thread or process.
    """
    return str(getattr(getattr(worker, "_target", None), "__module__", None) or "").partition(".")[0]


def number_in_batch() -> int | None:
    """Return the position of this process or thread in its batch, from 0, as its framework tells it; None: it doesn't."""
    for worker in (threading.current_thread(), multiprocessing.current_process()):
        if started_by(worker) == "torchrl":
            arguments: dict[str, Any] = getattr(worker, "_kwargs", None) or {}
            for name in ("worker_idx", "idx", "i"):
                number = arguments.get(name)
                if isinstance(number, int):
                    return number
    named = _NAME.fullmatch(multiprocessing.current_process().name)
    return None if named is None else int(named[1])


def number_among_processes() -> int | None:
    """Return the position of this process among those that its parent started, from 0; None in the main process."""
    identity: tuple[int, ...] = getattr(multiprocessing.current_process(), "_identity", ())
    return identity[-1] - 1 if identity else None
