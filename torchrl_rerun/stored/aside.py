"""Replacing: a recording is written aside, and takes the place of an earlier one when it is whole."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from torchrl_rerun.errors import FileInUseError
from torchrl_rerun.kinds.schema import Split
from torchrl_rerun.rrd.atomic import written_aside
from torchrl_rerun.rrd.locks import is_locked, lock
from torchrl_rerun.rrd.runs import make_folder, parts_of, refuse_earlier_run
from torchrl_rerun.writing.dumps import dumps_in
from torchrl_rerun.writing.folder import episodes_in

_EARLIER: Mapping[Split, Callable[[Path], Sequence[Path]]] = {"episode": episodes_in, "dump": dumps_in}
"""What an earlier run left in a folder."""


@contextlib.contextmanager
def replaced(target: Path, split: Split, *, overwrite: bool) -> Iterator[Path]:
    """Give a block a path to record to; what it recorded is put in place at its end.

    Until then an earlier recording stays as it is. If the block fails it stays, and nothing else does.

    Args:
        target: the file, or with a ``split`` the folder.
        split: what the recordings are of.
        overwrite: replace what an earlier run recorded.

    Yields:
        The path to record to, of the same name.

    Raises:
        FileExistsError: there is something, and ``overwrite`` is false, or another recorder writes to it.
        ValueError: nothing was recorded to a file.
        OSError: it can't be put in place.
    """
    aside = _beside if split == "run" else _within
    with _without_new_folders(target.parent if split == "run" else target), aside(target, split, overwrite) as path:
        yield path


@contextlib.contextmanager
def _beside(target: Path, split: Split, overwrite: bool) -> Iterator[Path]:
    """Replace a file and its parts."""
    del split
    with written_aside(target, overwrite=overwrite) as hidden, _folder(hidden.parent, target.name) as aside:
        if is_locked(target):
            raise FileInUseError(f"{target} is being written by another recorder")
        recorded = aside / target.name
        yield recorded
        if not recorded.exists():
            raise ValueError(f"nothing was recorded: {target} would be empty")
        parts = parts_of(recorded)
        with contextlib.ExitStack() as stack:
            for part in parts:
                part.replace(stack.enter_context(written_aside(target.with_name(part.name), overwrite=True)))
            recorded.replace(hidden)
    names = {part.name for part in parts}
    for part in parts_of(target):
        if part.name not in names and not is_locked(part):
            part.unlink(missing_ok=True)


@contextlib.contextmanager
def _within(target: Path, split: Split, overwrite: bool) -> Iterator[Path]:
    """Replace the recordings in a folder; what else is in it stays, so that the folder can't be replaced as a whole."""
    make_folder(target)
    with _claimed(target):
        earlier = _EARLIER[split](target)
        if earlier and not overwrite:
            refuse_earlier_run(target, earlier[0])
        used = next((path for path in earlier if is_locked(path)), None)
        if used is not None:
            raise FileInUseError(f"{used} is being written by another recorder")
        with _folder(target, target.name) as aside:
            yield aside / target.name
            gone = aside / "replaced"
            gone.mkdir()
            recorded = (aside / target.name).glob("*.rrd")
            _move([*((path, gone / path.name) for path in earlier), *((path, target / path.name) for path in recorded)])


def _move(moves: Sequence[tuple[Path, Path]]) -> None:
    """Rename files, all or none of them."""
    begun: list[tuple[Path, Path]] = []
    try:
        for before, after in moves:
            begun.append((before, after))
            before.replace(after)
    except BaseException:
        for before, after in reversed(begun):
            if after.exists() and not before.exists():
                after.replace(before)
        raise


@contextlib.contextmanager
def _claimed(folder: Path) -> Iterator[None]:
    """Keep other recorders out of a folder."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        lock(handle, folder)
        yield
    finally:
        os.close(handle)


@contextlib.contextmanager
def _folder(parent: Path, name: str) -> Iterator[Path]:
    """Make a hidden folder, which goes with the block."""
    with tempfile.TemporaryDirectory(prefix=f".{name}.", dir=parent, ignore_cleanup_errors=True) as aside:
        yield Path(aside)


@contextlib.contextmanager
def _without_new_folders(folder: Path) -> Iterator[None]:
    """Remove the folders that a block made to hold its own, if it fails and they are empty."""
    new = [each for each in (folder, *folder.parents) if not each.exists()]
    try:
        yield
    except BaseException:
        for each in new:
            with contextlib.suppress(OSError):
                each.rmdir()
        raise
