"""Files that Rerun can open, though the programs that write them were killed, hang, or go on."""

from __future__ import annotations

import atexit
import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path

from torchrl_rerun.errors import warn
from torchrl_rerun.rrd.asset_files import asset_files, has_shapes
from torchrl_rerun.rrd.file_part import FilePart
from torchrl_rerun.rrd.files import files_of
from torchrl_rerun.rrd.reader import is_unfinished, parts_in, rows_in, why_unreadable
from torchrl_rerun.rrd.repair import name_of, write_whole
from torchrl_rerun.rrd.rests import warn_of_rests

TRIES = 10
"""How often files are looked for anew because their owner has removed some of them meanwhile."""


def whole_files_of(path: str | os.PathLike[str]) -> list[Path]:
    """Return the files that a path stands for, see :func:`files_of`, all of which Rerun can open.

    In place of one that isn't finished there is a copy as it is now, which is removed when the program ends.

    Raises:
        FileNotFoundError: nothing is there.
        ValueError: a file can't be opened; says why, and what to do.
    """
    for _ in range(TRIES):
        found = openable(files_of(path)) or files_of(path)
        if all(file.exists() for file in found):  # else its owner has removed it meanwhile
            break
    for file in found:
        trouble = why_unreadable(file)
        if trouble is not None:
            raise ValueError(trouble)
    return found


def openable(files: Iterable[Path], recording_id: str | None = None) -> list[Path]:
    """Return files that Rerun can open: copies of those that aren't finished, as they are now, with all up to the last step.

    The copies are in a folder that is removed when the program ends. The programs that write the others aren't disturbed. The
    copy of an episode in a black box holds the parts of the episode that have files, and takes their place.

    Args:
        files: recordings, and black boxes of folders of episodes. What can't be read is returned as it is.
        recording_id: the recording in a black box that is wanted. Default: all.
    """
    given, found = list(files), list[Path]()
    replaced: set[Path] = set()
    warn_of_rests(given)
    for file in given:
        shown = [file]
        if is_unfinished(file):
            with contextlib.suppress(OSError, ValueError):  # the caller finds out
                is_box = file.is_dir()
                copies = _copies(file, recording_id if is_box else None)
                shown = list(copies) or ([] if is_box else shown)
                replaced.update(*copies.values())
        found += shown
    return [file for file in found if file not in replaced]


def _copies(file: Path, recording_id: str | None) -> dict[Path, list[Path]]:
    """Return copies of the recordings in a file that isn't finished, each with the files that it takes the place of."""
    parts = [part for part in parts_in(file) if part.schema is not None and recording_id in (None, part.recording_id)]
    if not parts:
        return {}
    folder = Path(tempfile.mkdtemp(prefix="torchrl-rerun-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    copies: dict[Path, list[Path]] = {}
    for part in parts:
        copy = folder / (f"{name_of(part)}.rrd" if file.is_dir() else file.name)
        before = sorted(file.parent.glob(f"{name_of(part)}.part_*.rrd")) if file.is_dir() else []
        write_whole(part, copy, rows_in(before))
        _folders[copy] = file.parent
        copies[copy] = before
    return copies


def shapes_of(files: Iterable[Path]) -> dict[Path, list[FilePart]]:
    """Return what there is in the folders of some files of shapes that the episodes in them share, by the file of it.

    A warning names a file that can't be read.
    """
    folders = dict.fromkeys(map(folder_of, files))
    found = {}
    for file in (file for folder in folders for file in asset_files(folder)):
        try:
            parts = [*filter(has_shapes, parts_in(file))]
        except (OSError, ValueError) as error:
            warn(f"shapes are missing: {why_unreadable(file) or error}", RuntimeWarning)
            continue
        if parts:
            found[file] = parts
    return found


def folder_of(file: Path) -> Path:
    """Return the folder that a file is in; of a copy that :func:`openable` made, that of what it is a copy of."""
    return _folders.get(file, file.parent)


_folders: dict[Path, Path] = {}
"""Where the originals of copies are."""
