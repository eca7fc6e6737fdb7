"""Files and folders that get their names when they are whole."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from torchrl_rerun.errors import FileInUseError
from torchrl_rerun.paths import find_target, format_path
from torchrl_rerun.rrd.locks import lock

HIDDEN = ".torchrl-rerun."
"""The beginning of the names of folders in which files are written."""

WHOLE = "whole"
"""The name of a file in there, without its suffix."""


@contextlib.contextmanager
def written_aside(path: str | os.PathLike[str], *, overwrite: bool, sign: str | None = None) -> Iterator[Path]:
    """Yield a hidden path to write to. At the block's end it gets its name; if the block fails it is removed.

    A link stays: the file or folder that it leads to is written, or replaced. Devices, pipes and sockets are refused.

    Args:
        path: the file or folder. Missing parent folders are made.
        overwrite: replace what is there.
        sign: the file in a folder by which it is known for an export: other folders aren't replaced. None: a file is
            written.

    Yields:
        A path that ends as ``path`` does, for a file to write or a folder to make.

    Raises:
        FileExistsError: the path exists, and ``overwrite`` is false or something else is there.
        ValueError: the path is no regular file, or can't be written under this name.
    """
    target = find_target(path)
    is_there = target.exists()
    if is_there and not overwrite:
        raise FileExistsError(f"{format_path(path)} exists already: choose another place, or pass overwrite=True")
    if sign is None and target.is_dir():
        raise FileExistsError(f"{format_path(path)} is a folder: pass the name of a file")
    if sign is not None and is_there and not (target / sign).exists():
        raise FileExistsError(f"{format_path(path)} isn't what an export wrote (it has no {sign}), and is not replaced")
    target.parent.mkdir(parents=True, exist_ok=True)
    # A folder of its own: two programs may write to the same path, and libraries go by how a name ends.
    with _folder_in(target.parent) as folder:
        hidden = (folder / WHOLE).with_suffix(_ending(target))
        try:
            yield hidden
        except UnicodeEncodeError as error:
            raise ValueError(f"{format_path(path)} can't be written: the name of its folder isn't UTF-8") from error
        if hidden.is_dir():
            _replace_folder(hidden, target, folder / "replaced")
        else:
            if is_there:
                shutil.copymode(target, hidden)
            with hidden.open("rb+") as written:
                os.fsync(written.fileno())
            hidden.replace(target)


@contextlib.contextmanager
def _folder_in(parent: Path) -> Iterator[Path]:
    """Yield a new folder, which is locked while it is in use, and removed at the block's end."""
    with contextlib.ExitStack() as stack:
        while True:
            made = tempfile.TemporaryDirectory(dir=parent, prefix=HIDDEN, ignore_cleanup_errors=True)
            folder = Path(stack.enter_context(made))
            if _is_held(folder, stack):
                break
        yield folder


def _is_held(folder: Path, stack: contextlib.ExitStack) -> bool:
    """Lock a folder until a stack is closed. Return False if another program has removed it, or is about to."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except FileNotFoundError:
        return False
    except OSError:  # Windows, where nobody locks folders
        return True
    stack.callback(os.close, handle)
    try:
        lock(handle, folder)
    except FileInUseError:
        return False
    except OSError:  # a file system without locks
        return True
    return folder.exists()


def remove_abandoned(parent: Path) -> None:
    """Remove the files that programs were writing to a folder when they were killed.

    The files of programs that go on stay. So do folders that an export was about to replace: they may be all there is.

    Args:
        parent: the folder.
    """
    for folder in parent.glob(f"{HIDDEN}*"):
        with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
            handle = os.open(folder, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0))
            stack.callback(os.close, handle)
            lock(handle, folder)  # raises if the program goes on
            if {each.name for each in folder.iterdir()} <= {f"{WHOLE}.rrd"}:
                shutil.rmtree(folder)


def _ending(target: Path) -> str:
    """Return the suffix of a file; empty if that is what can't be written."""
    return target.suffix if target.suffix.isascii() else ""


def _replace_folder(hidden: Path, target: Path, aside: Path) -> None:
    """Move a folder to its place. The earlier one is moved away before, since a folder can't be replaced, and removed later."""
    if not target.exists():
        hidden.replace(target)
        return
    target.replace(aside)
    try:
        hidden.replace(target)
    except BaseException:
        aside.replace(target)
        raise
