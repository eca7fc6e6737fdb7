"""Errors of recording, and warnings that point at the line of the user, however deep the call is in TorchRL."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from types import FrameType

_LIBRARIES = ("torchrl_rerun", "torchrl", "tensordict", "torch")


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """Warn, with the line outside these libraries that led here."""
    files = [sys.modules[name].__file__ for name in _LIBRARIES if name in sys.modules]
    folders = tuple(f"{Path(file).parent}/" for file in files if file is not None)
    level, frame = 2, sys._getframe(1)  # noqa: SLF001 - the stack has no public name
    outer: FrameType | None = frame
    while outer is not None and outer.f_code.co_filename.startswith(folders):
        level, outer = level + 1, outer.f_back
    warnings.warn(message, category, stacklevel=level if outer is not None else 2)


class RecordingError(OSError):
    """Frames could not be kept: the disk is full, the file is gone, an encoder failed.

    Raised by ``dump()`` and ``close()``, never by the environment's own methods: training goes on. The cause is chained,
    and the message says how many frames were lost.
    """


class FileInUseError(FileExistsError):
    """Another live recorder writes to the path."""
