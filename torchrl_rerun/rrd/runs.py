"""The files and folders of one run, which belong together by their names."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

FILE_OF_WORKER = re.compile(r"(?P<run>.+)\.worker_(?P<number>\d+)(?:\.resumed_\d+)?(?:\.part_\d+)?\.rrd")
FOLDER_OF_WORKER = re.compile(r"worker_\d+")


def parts_of(file: Path) -> list[Path]:
    """Return the further files of a recording, such as ``run.part_1.rrd``, and ``run.resumed_1.rrd`` after a restart.

    Args:
        file: its first file.
    """
    ours = re.compile(rf"{re.escape(file.stem)}(\.resumed_\d+)?(\.part_\d+)?\.rrd", re.DOTALL)
    found = file.parent.iterdir() if file.parent.is_dir() else ()
    return sorted(path for path in found if path.name != file.name and ours.fullmatch(path.name))


def check_folder(path: Path) -> None:
    """Refuse a folder that can't be written, or can't be made.

    Raises:
        PermissionError: nothing can be recorded to the folder.
    """
    folder = next(parent for parent in (path, *path.parents) if parent.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise PermissionError(f"{path} can't be recorded to: {folder} is not a folder that can be written")


def make_folder(path: Path) -> None:
    """Make a folder and its parents.

    Raises:
        OSError: the folder can't be made; says why.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise type(error)(f"the folder {path} could not be made to record to: {error.strerror}") from error


def refuse_earlier_run(folder: Path, there: Path) -> NoReturn:
    """Raise FileExistsError since a folder holds recordings of an earlier run.

    Args:
        folder: the folder.
        there: one of the recordings.
    """
    raise FileExistsError(
        f"{folder} holds recordings of an earlier run ({there.name}, ...); choose another folder, or pass resume=True to go on with that run, or overwrite=True to replace it"
    )


def elsewhere(folder: Path, recordings_in: Callable[[Path], list[Path]]) -> list[Path]:
    """Return the recordings of a run beside those in a folder: in the folders of its workers.

    If the folder is a worker's own, return the recordings in its parent.

    Args:
        folder: the folder that is recorded to.
        recordings_in: returns the recordings in a folder.
    """
    if FOLDER_OF_WORKER.fullmatch(folder.name):
        return recordings_in(folder.parent)
    workers = sorted(each for each in folder.glob("worker_*") if FOLDER_OF_WORKER.fullmatch(each.name))
    return [path for each in workers if each.is_dir() for path in recordings_in(each)]


def family(path: Path) -> list[int]:
    """Return the numbers of the workers whose files lie beside a worker's file; empty if ``path`` is none."""
    own = FILE_OF_WORKER.fullmatch(path.name)
    if own is None:
        return []
    there = (FILE_OF_WORKER.fullmatch(file.name) for file in path.parent.iterdir())
    return sorted({int(found["number"]) for found in there if found is not None and found["run"] == own["run"]})
