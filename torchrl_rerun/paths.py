"""Paths: where a path leads that a user gave, to read and to write, and how messages name it."""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path


def absolute(path: str | os.PathLike[str]) -> Path:
    """Return a path that means the same after a change of the working directory.

    A leading ``~`` is the user's home, ``~name`` that of another user; if there is no such user it is a name like any
    other. ``./~`` is a file called ``~``. Links and ``..`` stay as they are.

    >>> absolute("~/run.rrd") == Path.home() / "run.rrd", absolute("./~").name
    (True, '~')
    """
    return Path(os.path.expanduser(os.fspath(path))).absolute()  # noqa: PTH111 - `Path("./~")` is `Path("~")`


def target_of(path: str | os.PathLike[str]) -> Path:
    """Return where writing to a path leads: links are followed, also those whose target doesn't exist yet.

    Raises:
        ValueError: a device, a pipe or a socket is there, or the file that is this program's own standard output.
        OSError: links lead in a circle, or the path can't be looked at.
    """
    given = absolute(path)
    try:
        found = given.stat()
    except (FileNotFoundError, NotADirectoryError):
        return Path(os.path.realpath(given)) if given.is_symlink() else given
    if not (stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode)):
        raise ValueError(f"{shown(path)} is {_kind(found.st_mode)}, and no file: it is not replaced")
    if any(os.path.samestat(found, own) for own in _standard_streams()):
        raise ValueError(f"{shown(path)} is what this program reads or prints: it is not replaced")
    return Path(os.path.realpath(given)) if given.is_symlink() else given


def is_file(path: Path) -> bool:
    """Return whether a path leads to a file, else to a folder.

    Raises:
        FileNotFoundError: nothing is there.
        ValueError: a device, a pipe or a socket is there, which to open may take for ever.
    """
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(f"{shown(path)} doesn't exist") from None
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise ValueError(f"{shown(path)} is {_kind(mode)}, and no recording")
    return stat.S_ISREG(mode)


def shown(path: str | os.PathLike[str]) -> str:
    r"""Return how messages name a path: from the working directory, if it lies below it.

    A byte that isn't UTF-8 is shown by its number, as a terminal and JSON can't have it.

    >>> shown(Path.cwd() / "run.rrd"), shown("/runs/\udcff.rrd")
    ('run.rrd', '/runs/\\xff.rrd')
    """
    found = Path(path)
    try:
        here = Path.cwd()
    except FileNotFoundError:  # the working directory was removed
        return printable(found)
    text = printable(found.relative_to(here) if found.is_relative_to(here) else found)
    return f"./{text}" if text.startswith(("~", "-")) else text


def printable(path: str | os.PathLike[str]) -> str:
    r"""Return a path as text that is valid Unicode.

    >>> printable("/runs/\udcff.rrd")
    '/runs/\\xff.rrd'
    """
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def check_name(path: Path) -> None:
    """Refuse a path that Rerun can't open.

    Raises:
        ValueError: it isn't UTF-8 (rerun-sdk 0.41).
    """
    if printable(path) != str(path):
        raise ValueError(f"{shown(path)} has a name that isn't UTF-8, which Rerun can't open: rename it")


def _kind(mode: int) -> str:
    names = {
        stat.S_ISCHR: "a device",
        stat.S_ISBLK: "a device",
        stat.S_ISFIFO: "a pipe",
        stat.S_ISSOCK: "a socket",
    }
    return next((name for is_one, name in names.items() if is_one(mode)), "something special")


def _standard_streams() -> list[os.stat_result]:
    found = []
    for stream in (sys.__stdin__, sys.__stdout__, sys.__stderr__):
        try:
            found.append(os.fstat(stream.fileno()))  # type: ignore[union-attr] # None where there is none
        except (AttributeError, OSError, ValueError):  # closed, or none of the system's
            continue
    return found
