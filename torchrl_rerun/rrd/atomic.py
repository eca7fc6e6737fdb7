"""Placing: a file or a folder gets its name when it is whole."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from torchrl_rerun.paths import shown, target_of


@contextlib.contextmanager
def placed(path: str | os.PathLike[str], *, overwrite: bool, sign: str | None = None) -> Iterator[Path]:
    """A block that writes to a hidden place, which becomes ``path`` at its end, or goes if the block fails.

    A link stays: what it leads to is written, or replaced. Devices, pipes and sockets are refused.

    Args:
        path: the file or folder. Missing parent folders are made.
        overwrite: replace what is there.
        sign: of a folder, the file in it by which it is known: others aren't replaced. None: it is a file.

    Yields:
        Where to write: a file that ends as ``path`` does, or a folder to make.

    Raises:
        FileExistsError: it exists, and ``overwrite`` is false or it is something else.
        ValueError: it is no regular file, or can't be written under this name.
    """
    target = target_of(path)
    is_there = target.exists()
    if is_there and not overwrite:
        raise FileExistsError(f"{shown(path)} exists already: choose another place, or pass overwrite=True")
    if sign is None and target.is_dir():
        raise FileExistsError(f"{shown(path)} is a folder: pass the name of a file")
    if sign is not None and is_there and not (target / sign).exists():
        raise FileExistsError(f"{shown(path)} isn't what an export wrote (it has no {sign}), and is not replaced")
    target.parent.mkdir(parents=True, exist_ok=True)
    # A folder of its own: two programs may write to the same path, and libraries go by how a name ends.
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".torchrl-rerun.", ignore_cleanup_errors=True) as folder:
        hidden = Path(folder, "whole").with_suffix(_ending(target))
        try:
            yield hidden
        except UnicodeEncodeError as error:
            raise ValueError(f"{shown(path)} can't be written: the name of its folder isn't UTF-8") from error
        if hidden.is_dir():
            _replace_folder(hidden, target, Path(folder, "replaced"))
        else:
            if is_there:
                shutil.copymode(target, hidden)
            with hidden.open("rb+") as written:
                os.fsync(written.fileno())
            hidden.replace(target)


def _ending(target: Path) -> str:
    """The suffix of a file, unless that is what can't be written."""
    return target.suffix if target.suffix.isascii() else ""


def _replace_folder(hidden: Path, target: Path, aside: Path) -> None:
    """A folder can't take the place of another one: that one is moved away before, and removed afterwards."""
    if not target.exists():
        hidden.replace(target)
        return
    target.replace(aside)
    try:
        hidden.replace(target)
    except BaseException:
        aside.replace(target)
        raise
