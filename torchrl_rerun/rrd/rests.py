"""What is read without its black box: parts of episodes that are read alone, and copies that were made without the box."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

from torchrl_rerun.blocks.black_box import box_of
from torchrl_rerun.errors import warn
from torchrl_rerun.paths import format_path
from torchrl_rerun.rrd.locks import is_locked
from torchrl_rerun.rrd.reader import parts_in


def warn_of_rests(files: Sequence[Path]) -> None:
    """Warn if files hold parts of episodes whose rest is in a black box that isn't read.

    Args:
        files: the files that are read, and black boxes of folders.
    """
    parts = [file for file in files if ".part_" in file.name]
    for folder in dict.fromkeys(file.parent for file in parts):
        box = box_of(folder)
        if box in files or not box.is_dir():
            continue
        with contextlib.suppress(OSError, ValueError):  # readers of these files tell of it
            waiting = {part.recording_id for part in parts_in(box)}
            of_folder = [file for file in parts if file.parent == folder]
            torn = [file for file in of_folder if any(part.recording_id in waiting for part in parts_in(file))]
            if torn:
                others = f" and {len(torn) - 1:,} more hold" if len(torn) > 1 else " holds"
                warn(
                    f"{format_path(torn[0])}{others} only a part of the episode: the rest is in the black box of the folder. "
                    f"Pass the folder, {format_path(folder)}, for all of it",
                    RuntimeWarning,
                )


def missing_box(path: Path) -> Path | None:
    """Return where the black box of an unfinished file or folder would be that no program writes to; None: it is there.

    A program that still writes may have no box, since its file system can't have one.
    """
    box = box_of(path)
    return None if box.exists() or is_locked(path) else box
