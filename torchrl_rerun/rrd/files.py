"""Finding: which files a path stands for, and whether they can be read as they are."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path

from torchrl_rerun.paths import absolute, is_file, shown
from torchrl_rerun.rrd.reader import why_unreadable

_MORE = re.compile(r"(?:\.worker_(?P<worker>\d+))?(?:\.resumed_(?P<resumed>\d+))?(?:\.part_(?P<part>\d+))?\.rrd")


def files_of(path: str | os.PathLike[str]) -> list[Path]:
    """The files of what was recorded to a path, as absolute paths.

    Of a folder these are all in it and in the folders in it, but for what is hidden. With ``run.rrd`` come its parts,
    what followed after a restart, and the files of its workers (``run.part_1.rrd``, ``run.resumed_1.rrd``,
    ``run.worker_0.rrd``), which are one recording; it needn't be there itself. Links are followed: with one that leads to ``run.rrd`` come the parts of that. What is named otherwise
    than ``.rrd`` is taken as it is.

    Args:
        path: a file, a folder, or what was given to the recorder; see :func:`~torchrl_rerun.paths.absolute`.

    Raises:
        FileNotFoundError: there is nothing.
        ValueError: it is a device, a pipe or a socket.
    """
    given = absolute(path)
    if given.is_dir():
        found = list(recordings_in(given))
        if not found:
            raise FileNotFoundError(f"{shown(given)} holds no recordings (.rrd files)")
        return found
    found = _with_its_parts(given)
    if given.is_symlink():
        there = {file.resolve() for file in found}
        found += [file for file in _with_its_parts(given.resolve()) if file not in there]
    if not found:
        is_file(given)  # says what else it is
        return [given]
    return found


def recordings_in(folder: Path) -> Iterator[Path]:
    """The ``.rrd`` files in a folder and in the folders in it, but for what is hidden.

    Links to folders are followed, after all else, and no folder is looked into twice.

    Raises:
        OSError: the folder can't be read; a folder in it that can't be read is left out.
    """
    seen: set[tuple[int, int]] = set()
    folders = [folder]
    for each in folders:  # links are added meanwhile
        try:
            yield from _recordings_below(each, seen, folders)
        except PermissionError:
            if each is folder:
                raise


def _recordings_below(folder: Path, seen: set[tuple[int, int]], links: list[Path]) -> Iterator[Path]:
    """The files in a folder and in those in it; links to other folders are added to ``links``."""
    at = folder.stat()
    if (at.st_dev, at.st_ino) in seen:
        return
    seen.add((at.st_dev, at.st_ino))
    with os.scandir(folder) as entries:
        # In what is hidden a layout is added.
        found = sorted((each for each in entries if not each.name.startswith(".")), key=lambda each: each.name)
    # A pipe may be called like a recording, and to open it takes for ever.
    yield from (Path(each) for each in found if each.name.endswith(".rrd") and _is(each.is_file))
    for each in found:
        if _is(each.is_dir):
            if each.is_symlink():
                links.append(Path(each))
            else:
                with contextlib.suppress(PermissionError):
                    yield from _recordings_below(Path(each), seen, links)


def _is(what: Callable[[], bool]) -> bool:
    """Whether an entry of a folder is something; a link that leads to itself is nothing."""
    try:
        return what()
    except OSError:
        return False


def _with_its_parts(file: Path) -> list[Path]:
    """In the order in which they were begun: workers one after the other, each with its parts behind it."""
    order = {}
    for other in file.parent.iterdir() if file.suffix == ".rrd" and file.parent.is_dir() else ():
        more = _MORE.fullmatch(other.name, len(file.stem)) if other.name.startswith(file.stem) else None
        if more is not None and other.is_file():
            order[other] = tuple(int(more[name] or -1) for name in ("worker", "resumed", "part"))
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
        f"{shown(path)} is no recording of torchrl_rerun, but another one of Rerun's: "
        f"`torchrl-rerun view {shlex.quote(shown(path))}` opens it"
    )
