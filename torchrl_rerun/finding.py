"""Finding: which files a path stands for, and whether they can be read as they are."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

from torchrl_rerun.framing import MAGIC, Footer
from torchrl_rerun.sinks import is_locked

_MORE = re.compile(r"(?:\.worker_(?P<worker>\d+))?(?:\.part_(?P<part>\d+))?\.rrd")


def files_of(path: str | os.PathLike[str]) -> list[Path]:
    """The files of what was recorded to a path.

    Of a folder these are all in it and in the folders in it, but for what is hidden. With ``run.rrd`` come its parts
    and the files of its workers (``run.part_1.rrd``, ``run.worker_0.rrd``), which are one recording; it needn't be
    there itself. What is named otherwise than ``.rrd`` is taken as it is.

    Args:
        path: a file, a folder, or what was given to the recorder.

    Raises:
        FileNotFoundError: there is nothing.
    """
    given = Path(path)
    if given.is_dir():
        found = list(recordings_in(given))
        if not found:
            raise FileNotFoundError(f"{given} holds no recordings (.rrd files)")
        return found
    found = _with_its_parts(given)
    if not found:
        raise FileNotFoundError(f"{given} doesn't exist")
    return found


def recordings_in(folder: Path) -> Iterator[Path]:
    """The ``.rrd`` files in a folder and in the folders in it, but for what is hidden."""
    for parent, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))  # in such a one a layout is added
        yield from (Path(parent, name) for name in sorted(files) if name.endswith(".rrd") and not name.startswith("."))


def _with_its_parts(file: Path) -> list[Path]:
    """In the order in which they were begun: workers one after the other, each with its parts behind it."""
    order = {}
    for other in file.parent.iterdir() if file.suffix == ".rrd" and file.parent.is_dir() else ():
        more = _MORE.fullmatch(other.name, len(file.stem)) if other.name.startswith(file.stem) else None
        if more is not None:
            order[other] = int(more["worker"] or -1), int(more["part"] or -1)
    if not order:
        return [file] if file.exists() else []
    return sorted(order, key=order.__getitem__)


def whole_files_of(path: str | os.PathLike[str]) -> list[Path]:
    """The same, all of which can be read.

    Raises:
        FileNotFoundError: there is nothing.
        ValueError: a file can't be opened; says why, and what to do.
    """
    found = files_of(path)
    for file in found:
        trouble = why_unreadable(file)
        if trouble is not None:
            raise ValueError(trouble)
    return found


def not_ours(path: str | os.PathLike[str]) -> str:
    """What is to be said where others recorded, and what to do about it."""
    return (
        f"{path} is no recording of torchrl_rerun, but another one of Rerun's: "
        f"`torchrl-rerun view {shlex.quote(os.fspath(path))}` opens it"
    )


def why_unreadable(file: Path) -> str | None:
    """Why a file can't be opened, and what to do about it; None: it can.

    Raises:
        OSError: it can't be looked at.
    """
    with file.open("rb") as opened:
        begins = opened.read(len(MAGIC))
        if begins and begins != MAGIC:
            return f"{file} is not a recording: it doesn't begin as an .rrd file does"
        if is_locked(file):
            return f"{file} is still being recorded: it can be opened when its environment is closed"
        if not begins:
            return f"{file} is empty: nothing was recorded in it"
        try:
            Footer.read(opened)
        except ValueError:
            return (
                f"{file} isn't finished: its program still runs, or was killed; then "
                f"`torchrl-rerun repair {shlex.quote(str(file))}` makes it whole"
            )
    return None
