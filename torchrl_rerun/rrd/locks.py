"""Locks on files that are being written."""

from __future__ import annotations

import os
from pathlib import Path

from torchrl_rerun.errors import FileInUseError

try:
    import fcntl
except ImportError:  # Windows, where nobody else can write to a file that is open
    fcntl = None  # type: ignore[assignment]


def lock(handle: int, path: Path) -> None:
    """Lock a file for as long as ``handle`` is open, so that no other recorder and no repair writes to it.

    Raises:
        FileInUseError: another recorder, or a repair, has locked the file.
    """
    if fcntl is not None:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FileInUseError(f"{path} is being written by another recorder") from None


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
