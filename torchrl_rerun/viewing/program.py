"""Rerun's program."""

from __future__ import annotations

import sys
from pathlib import Path


class ViewerError(RuntimeError):
    """The viewer didn't start, or ended with an error."""


def find_program() -> Path:
    """Return Rerun's executable. The script ``rerun`` starts it as a child, which would outlive the script."""
    import rerun_cli  # noqa: PLC0415

    folder = Path(rerun_cli.__file__).parent
    places = ("rerun.exe" if sys.platform == "win32" else "rerun", "Rerun.app/Contents/MacOS/Rerun")
    for place in places:
        if (folder / place).exists():
            return folder / place
    raise ViewerError(f"Rerun's program is missing in {folder}: install rerun-sdk again")
