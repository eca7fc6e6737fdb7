"""Runs: which files and folders belong together, by their names."""

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
    """Refuse a folder that can't be recorded to, if only because it can't be made.

    Raises:
        PermissionError: it can't.
    """
    folder = next(parent for parent in (path, *path.parents) if parent.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise PermissionError(f"{path} can't be recorded to: {folder} is not a folder that can be written")


def make_folder(path: Path) -> None:
    """Make a folder, and those that it lies in.

    Raises:
        OSError: it can't be made; says why.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise type(error)(f"the folder {path} could not be made to record to: {error.strerror}") from error


def refuse_earlier_run(folder: Path, there: Path) -> NoReturn:
    """Say that a folder holds the recordings of an earlier run, of which ``there`` is one."""
    raise FileExistsError(
        f"{folder} holds recordings of an earlier run ({there.name}, ...); choose another folder or pass overwrite=True"
    )


def elsewhere(folder: Path, recordings_in: Callable[[Path], list[Path]]) -> list[Path]:
    """Return the recordings in the folders of workers, or of a folder of a worker those in the one that it lies in.

    Args:
        folder: the folder that is recorded to.
        recordings_in: finds recordings in a folder.
    """
    if FOLDER_OF_WORKER.fullmatch(folder.name):
        return recordings_in(folder.parent)
    workers = sorted(each for each in folder.glob("worker_*") if FOLDER_OF_WORKER.fullmatch(each.name))
    return [path for each in workers if each.is_dir() for path in recordings_in(each)]


def family(path: Path) -> list[int]:
    """The numbers of the workers whose files lie beside one of theirs; empty if ``path`` isn't a worker's file."""
    own = FILE_OF_WORKER.fullmatch(path.name)
    if own is None:
        return []
    there = (FILE_OF_WORKER.fullmatch(file.name) for file in path.parent.iterdir())
    return sorted({int(found["number"]) for found in there if found is not None and found["run"] == own["run"]})
