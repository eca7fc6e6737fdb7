"""Errors of recording, and warnings that point at the user's line even if TorchRL called the recorder."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from types import FrameType

_LIBRARIES = ("torchrl_rerun", "torchrl", "tensordict", "torch", "gymnasium", "stable_baselines3")


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """Warn, with the innermost line of the stack outside torchrl_rerun and the frameworks that call it."""
    files = [sys.modules[name].__file__ for name in _LIBRARIES if name in sys.modules]
    folders = tuple(f"{Path(file).parent}/" for file in files if file is not None)
    level, frame = 2, sys._getframe(1)  # noqa: SLF001 - the stack has no public name
    outer: FrameType | None = frame
    while outer is not None and outer.f_code.co_filename.startswith(folders):
        level, outer = level + 1, outer.f_back
    warnings.warn(message, category, stacklevel=level if outer is not None else 2)


class RecordingError(OSError):
    """Frames were lost: the disk is full, the file was removed, or an encoder failed.

    ``dump()`` and ``close()`` raise this error; the environment's own methods never do, so that training goes on. The cause
    is chained as ``__cause__``, and the message says how many frames were lost.
    """


class FileInUseError(FileExistsError):
    """Another running recorder writes to the path."""
