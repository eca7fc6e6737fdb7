"""Paths that users give: made absolute, checked before reading and writing, and named in messages."""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path


def make_absolute(path: str | os.PathLike[str]) -> Path:
    """Return the absolute form of a path.

    - A leading ``~`` is the user's home, ``~name`` that of another user; a name of no user is a file name.
    - ``./~`` is a file called ``~``.
    - Links and ``..`` stay.

    >>> make_absolute("~/run.rrd") == Path.home() / "run.rrd", make_absolute("./~").name
    (True, '~')
    """
    return Path(os.path.expanduser(os.fspath(path))).absolute()  # noqa: PTH111 - `Path("./~")` is `Path("~")`


def find_target(path: str | os.PathLike[str]) -> Path:
    """Return the file that writing to a path writes: links are followed, also if their target doesn't exist yet.

    Raises:
        ValueError: The path is a device, a pipe, a socket, or the file of a standard stream of this program.
        OSError: Links form a circle, or the path can't be examined.
    """
    given = make_absolute(path)
    try:
        found = given.stat()
    except (FileNotFoundError, NotADirectoryError):
        return Path(os.path.realpath(given)) if given.is_symlink() else given
    if not (stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode)):
        raise ValueError(f"{format_path(path)} is {_describe_type(found.st_mode)}, and not a file: choose another path")
    if any(os.path.samestat(found, own) for own in _stat_standard_streams()):
        raise ValueError(f"{format_path(path)} is a standard stream of this program: choose another path")
    return Path(os.path.realpath(given)) if given.is_symlink() else given


def is_file(path: Path) -> bool:
    """Return whether a path is a file; False if it is a folder.

    Raises:
        FileNotFoundError: The path doesn't exist.
        ValueError: The path is a device, a pipe or a socket. Opening one may block forever.
    """
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(f"{format_path(path)} doesn't exist") from None
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise ValueError(f"{format_path(path)} is {_describe_type(mode)}, and not a recording")
    return stat.S_ISREG(mode)


def format_path(path: str | os.PathLike[str]) -> str:
    r"""Return a path for messages: relative to the working directory if it is inside.

    Bytes that aren't UTF-8 are escaped, since terminals and JSON can't hold them.

    >>> format_path(Path.cwd() / "run.rrd"), format_path("/runs/\udcff.rrd")
    ('run.rrd', '/runs/\\xff.rrd')
    """
    found = Path(path)
    try:
        here = Path.cwd()
    except FileNotFoundError:  # the working directory was deleted
        return escape_path(found)
    text = escape_path(found.relative_to(here) if found.is_relative_to(here) else found)
    return f"./{text}" if text.startswith(("~", "-")) else text


def escape_path(path: str | os.PathLike[str]) -> str:
    r"""Return a path as valid Unicode. Bytes that aren't UTF-8 are escaped.

    >>> escape_path("/runs/\udcff.rrd")
    '/runs/\\xff.rrd'
    """
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def check_name(path: Path) -> None:
    """Raise ValueError if Rerun can't open a path: rerun-sdk 0.41 opens no path that isn't UTF-8."""
    if escape_path(path) != str(path):
        raise ValueError(f"{format_path(path)} has a name that isn't UTF-8, which Rerun can't open: rename it")


def _describe_type(mode: int) -> str:
    names = {
        stat.S_ISCHR: "a device",
        stat.S_ISBLK: "a device",
        stat.S_ISFIFO: "a pipe",
        stat.S_ISSOCK: "a socket",
    }
    return next((name for is_one, name in names.items() if is_one(mode)), "a special file")


def _stat_standard_streams() -> list[os.stat_result]:
    found = []
    for stream in (sys.__stdin__, sys.__stdout__, sys.__stderr__):
        try:
            found.append(os.fstat(stream.fileno()))  # type: ignore[union-attr] # None without such a stream
        except (AttributeError, OSError, ValueError):  # closed, or without a file descriptor
            continue
    return found
