"""Staging: write a recording to a hidden folder, and replace an earlier recording when the new one is complete."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from torchrl_rerun.errors import FileInUseError
from torchrl_rerun.kinds.schema import Split
from torchrl_rerun.rrd.asset_files import FOLDER, asset_files
from torchrl_rerun.rrd.atomic import written_aside
from torchrl_rerun.rrd.locks import is_locked, lock
from torchrl_rerun.rrd.runs import make_folder, parts_of, refuse_earlier_run
from torchrl_rerun.writing.dumps import dumps_in
from torchrl_rerun.writing.episode_folder import episodes_in

_EARLIER: Mapping[Split, Callable[[Path], Sequence[Path]]] = {"episode": episodes_in, "dump": dumps_in}
"""Functions that list the recordings of an earlier run in a folder."""


@contextlib.contextmanager
def stage_recording(target: Path, split: Split, *, overwrite: bool) -> Iterator[Path]:
    """Yield a hidden path to record to, and move the recording to ``target`` when the block ends.

    If the block raises, an earlier recording at ``target`` stays, and the new one is deleted.

    Args:
        target: File, or for ``split="episode"`` and ``"dump"`` the folder.
        split: Unit of time that each recording holds.
        overwrite: Replace the recordings of an earlier run.

    Yields:
        Path of the same name in a hidden folder.

    Raises:
        FileExistsError: A recording exists at ``target`` and ``overwrite`` is false, or another recorder writes to it.
        ValueError: Nothing was recorded to the file.
        OSError: The recording can't be moved.
    """
    stage = _stage_file if split == "run" else _stage_folder
    with (
        _remove_new_folders(target.parent if split == "run" else target / FOLDER),
        stage(target, split, overwrite) as path,
    ):
        yield path


@contextlib.contextmanager
def _stage_file(target: Path, split: Split, overwrite: bool) -> Iterator[Path]:
    """Record to a hidden file, then replace the file at ``target`` and its parts."""
    del split
    with (
        written_aside(target, overwrite=overwrite) as hidden,
        _make_hidden_folder(hidden.parent, target.name) as staged,
    ):
        if is_locked(target):
            raise FileInUseError(f"{target} is being written by another recorder")
        recorded = staged / target.name
        yield recorded
        if not recorded.exists():
            raise ValueError(f"nothing was recorded, so that {target} is not written")
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
def _stage_folder(target: Path, split: Split, overwrite: bool) -> Iterator[Path]:
    """Record to a hidden folder, then replace the recordings in ``target``. Other files in it stay."""
    make_folder(target)
    with _lock_folder(target):
        earlier = _EARLIER[split](target)
        if earlier and not overwrite:
            refuse_earlier_run(target, earlier[0])
        used = next((path for path in earlier if is_locked(path)), None)
        if used is not None:
            raise FileInUseError(f"{used} is being written by another recorder")
        with _make_hidden_folder(target, target.name) as staged:
            yield staged / target.name
            gone = staged / "replaced"
            gone.mkdir()
            recorded = (staged / target.name).glob("*.rrd")
            shared = [path for path in asset_files(staged / target.name) if not (target / FOLDER / path.name).exists()]
            if shared:
                (target / FOLDER).mkdir(exist_ok=True)
            _rename_all(
                [
                    *((path, gone / path.name) for path in earlier),
                    *((path, target / FOLDER / path.name) for path in shared),
                    *((path, target / path.name) for path in recorded),
                ]
            )


def _rename_all(moves: Sequence[tuple[Path, Path]]) -> None:
    """Rename files. If one can't be renamed, undo the others."""
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
def _lock_folder(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder, which other recorders respect."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        lock(handle, folder)
        yield
    finally:
        os.close(handle)


@contextlib.contextmanager
def _make_hidden_folder(parent: Path, name: str) -> Iterator[Path]:
    """Yield a hidden folder, which is deleted after the block."""
    with tempfile.TemporaryDirectory(prefix=f".{name}.", dir=parent, ignore_cleanup_errors=True) as staged:
        yield Path(staged)


@contextlib.contextmanager
def _remove_new_folders(folder: Path) -> Iterator[None]:
    """If the block raises, remove the folders on the way to ``folder`` that it made and that are empty."""
    new = [each for each in (folder, *folder.parents) if not each.exists()]
    try:
        yield
    except BaseException:
        for each in new:
            with contextlib.suppress(OSError):
                each.rmdir()
        raise
