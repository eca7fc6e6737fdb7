"""Placing: a file or a folder gets its name when it is whole."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def placed(path: Path, *, overwrite: bool, sign: str | None = None) -> Iterator[Path]:
    """A block that writes to a hidden place, which becomes ``path`` at its end, or goes if the block fails.

    Args:
        path: the file or folder.
        overwrite: replace what is there.
        sign: of a folder, the file in it by which it is known: others aren't replaced. None: it is a file.

    Raises:
        FileExistsError: it exists, and ``overwrite`` is false or it is something else.
    """
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} exists already: choose another place, or pass overwrite=True")
    if sign is None and path.is_dir():
        raise FileExistsError(f"{path} is a folder: pass the name of a file")
    if sign is not None and path.exists() and not (path / sign).exists():
        raise FileExistsError(f"{path} isn't what an export wrote (it has no {sign}), and is not replaced")
    path.parent.mkdir(parents=True, exist_ok=True)
    hidden = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield hidden
        if path.is_dir():
            shutil.rmtree(path)
        hidden.replace(path)
    finally:
        _remove(hidden)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
