"""The files that a path stands for: a recording with its parts, or all recordings in a folder."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path

from torchrl_rerun.blocks.black_box import box_of
from torchrl_rerun.paths import format_path, is_file, make_absolute

_MORE = re.compile(r"(?:\.worker_(?P<worker>\d+))?(?:\.resumed_(?P<resumed>\d+))?(?:\.part_(?P<part>\d+))?\.rrd")


def files_of(path: str | os.PathLike[str]) -> list[Path]:
    """Return the files that a path stands for, as absolute paths.

    - A folder stands for all ``.rrd`` files in it and in the folders in it, except hidden ones, and for the black box of a
      folder of episodes.
    - ``run.rrd`` stands for itself and for the other files of its recording: its parts (``run.part_1.rrd``), the files of a
      restart (``run.resumed_1.rrd``) and of its workers (``run.worker_0.rrd``). The file itself needn't exist.
    - A link to ``run.rrd`` stands for that file and its parts, too.
    - A file that isn't named ``.rrd`` stands for itself.

    Args:
        path: a file, a folder, or the path that was given to the recorder. A leading ``~`` is the user's home.

    Raises:
        FileNotFoundError: nothing is there.
        ValueError: a device, a pipe or a socket is there.
    """
    given = make_absolute(path)
    if given.is_dir():
        found = list(recordings_in(given))
        if not found:
            raise FileNotFoundError(f"{format_path(given)} holds no recordings (.rrd files)")
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
    """Yield the ``.rrd`` files in a folder and in the folders in it, except hidden ones; and black boxes of episodes.

    Links to folders are followed, after all other folders, and no folder is looked into twice. Folders that can't be
    read are left out.

    Raises:
        OSError: the folder itself can't be read.
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
    """Yield the files in a folder and in those in it; add links to other folders to ``links``."""
    at = folder.stat()
    if (at.st_dev, at.st_ino) in seen:
        return
    seen.add((at.st_dev, at.st_ino))
    with os.scandir(folder) as entries:
        # Files are hidden while a layout is added to them.
        found = sorted((each for each in entries if not each.name.startswith(".")), key=lambda each: each.name)
    # A pipe may be called like a recording, and opening it blocks.
    yield from (Path(each) for each in found if each.name.endswith(".rrd") and _is(each.is_file))
    if (box := box_of(folder)).is_dir():
        yield box
    for each in found:
        if _is(each.is_dir):
            if each.is_symlink():
                links.append(Path(each))
            else:
                with contextlib.suppress(PermissionError):
                    yield from _recordings_below(Path(each), seen, links)


def _is(what: Callable[[], bool]) -> bool:
    """Return what a test says of an entry of a folder; False for a link that leads to itself."""
    try:
        return what()
    except OSError:
        return False


def _with_its_parts(file: Path) -> list[Path]:
    """Return the files of a recording, worker by worker, each with its parts in the order in which they were begun."""
    order = {}
    for other in file.parent.iterdir() if file.suffix == ".rrd" and file.parent.is_dir() else ():
        more = _MORE.fullmatch(other.name, len(file.stem)) if other.name.startswith(file.stem) else None
        if more is not None and other.is_file():
            order[other] = tuple(int(more[name] or -1) for name in ("worker", "resumed", "part"))
    return sorted(order, key=order.__getitem__)


def not_ours(path: str | os.PathLike[str]) -> str:
    """Return the message that another program made a recording, and what to do."""
    return (
        f"{format_path(path)} is no recording of torchrl_rerun, but another one of Rerun's: "
        f"`torchrl-rerun view {shlex.quote(format_path(path))}` opens it"
    )
