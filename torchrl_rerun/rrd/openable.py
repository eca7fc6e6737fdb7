"""Files that Rerun can open, though the programs that write them were killed, hang, or go on."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path

from torchrl_rerun.rrd.files import files_of
from torchrl_rerun.rrd.reader import is_unfinished, parts_in, why_unreadable
from torchrl_rerun.rrd.repair import name_of, write_whole


def whole_files_of(path: str | os.PathLike[str]) -> list[Path]:
    """Return the files that a path stands for, see :func:`files_of`, all of which Rerun can open.

    In place of one that isn't finished there is a copy as it is now, which is removed when the program ends.

    Raises:
        FileNotFoundError: nothing is there.
        ValueError: a file can't be opened; says why, and what to do.
    """
    found = openable(files_of(path))
    for file in found:
        trouble = why_unreadable(file)
        if trouble is not None:
            raise ValueError(trouble)
    return found


def openable(files: Iterable[Path]) -> list[Path]:
    """Return files that Rerun can open: copies of those that aren't finished, as they are now, with all up to the last step.

    The copies are in a folder that is removed when the program ends. Nobody waits for the program that writes the others.

    Args:
        files: recordings, and black boxes of folders of episodes. What can't be read is returned as it is.
    """
    found = []
    for file in files:
        if not is_unfinished(file):
            found.append(file)
            continue
        folder = Path(tempfile.mkdtemp(prefix="torchrl-rerun-"))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        for part in parts_in(file):
            if part.schema is not None:
                copy = folder / (f"{name_of(part)}.rrd" if file.is_dir() else file.name)
                write_whole(part, copy)
                found.append(copy)
    return found
