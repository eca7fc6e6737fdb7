"""Locks on files that are being written."""

from __future__ import annotations

import os
import time
from pathlib import Path

from torchrl_rerun.errors import FileInUseError

try:
    import fcntl
except ImportError:  # Windows, where nobody else can write to a file that is open
    fcntl = None  # type: ignore[assignment]


LOOKED_AT_SECONDS = 0.2
"""Seconds for which a lock is tried: :func:`is_locked` of another process has it for a moment."""


def lock(handle: int, path: Path) -> None:
    """Lock a file for as long as ``handle`` is open, so that no other recorder and no repair writes to it.

    Raises:
        FileInUseError: another recorder, or a repair, has locked the file.
    """
    if fcntl is None:
        return
    deadline = time.monotonic() + LOOKED_AT_SECONDS
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise FileInUseError(f"{path} is being written by another recorder") from None
            time.sleep(0.005)
        else:
            return


def leave(handle: int) -> None:
    """Let go of a file, and of its lock, in a forked process. The parent process keeps both.

    Two processes have the lock after a fork, until the last of them closes the file. The number of the handle stays in use:
    whoever has it can still write, to nowhere.

    Args:
        handle: the open file.
    """
    nowhere = os.open(os.devnull, os.O_RDWR)
    os.dup2(nowhere, handle, inheritable=False)
    os.close(nowhere)


def is_locked(path: Path) -> bool:
    """Return whether a recorder or a repair has locked a file, or a folder."""
    if fcntl is None:
        return False
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(handle)
    return False
