"""Dumps: a file for what came between two dumps, one after the other in a folder."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

from torchrl_rerun.rrd.locks import is_locked
from torchrl_rerun.rrd.runs import elsewhere, refuse_earlier_run
from torchrl_rerun.writing.file import FileSink

_OURS = re.compile(r"dump_\d{6}(_.*)?\.rrd", re.DOTALL)


class DumpFile(FileSink):
    """The file of one dump: ``dump_000000.rrd``, and ``dump_000000_{suffix}.rrd`` once it is known what it is called.

    Args:
        folder: where it is.
        number: of the dump, from 0.
        overwrite: the dumps that an earlier run left in the folder go when this one, the first, has something in it.
    """

    def __init__(self, folder: Path, number: int = 0, *, overwrite: bool = False) -> None:
        super().__init__(folder / f"dump_{number:06}.rrd", overwrite=overwrite)
        self._number = number

    @property
    def identity(self) -> str:
        """What recorders that share it have in common."""
        return str(self.path.parent)

    def continuation(self) -> DumpFile:
        """The file of the next dump."""
        return DumpFile(self.path.parent, self._number + 1, overwrite=self.overwrite)

    def resumed(self) -> DumpFile:
        """The file of the next dump that isn't there."""
        there = [int(path.name[5:11]) for path in dumps_in(self.path.parent)]
        return DumpFile(self.path.parent, max(there, default=-1) + 1)

    def earlier(self) -> list[Path]:
        """The files of the run that were there before this sink was opened."""
        return [path for path in dumps_in(self.path.parent) if path != self.path]

    def elsewhere(self) -> list[Path]:
        """Return the dumps of this run from recorders on the other side: inside the batch, or outside if this is a worker's."""
        return elsewhere(self.path.parent, dumps_in)

    def sibling(self, part: str) -> DumpFile:
        """The first file of a worker, in a folder of its own."""
        return DumpFile(self.path.parent / part, overwrite=self.overwrite)

    @property
    def for_workers(self) -> str:
        """What becomes of it in several workers."""
        return f"each writes into a folder of its own inside {self.path.parent.name}/ (worker_0, ...)"

    def check_free(self) -> None:
        """Raise FileExistsError if an earlier run left dumps in the folder."""
        if there := dumps_in(self.path.parent):
            refuse_earlier_run(self.path.parent, there[0])

    def open(self) -> None:
        """Claim the path.

        Raises:
            FileExistsError: an earlier run left dumps in the folder, and ``overwrite`` is false.
            OSError: it can't be created.
        """
        if not (self._number or self.overwrite):
            self.check_free()
        super().open()

    def keep(self) -> None:
        """There is something to keep: the dumps of an earlier run can go."""
        super().keep()
        if self.overwrite and not self._number:
            for path in dumps_in(self.path.parent):
                if not is_locked(path):  # this one is
                    with contextlib.suppress(OSError):
                        path.unlink()

    def files(self) -> list[Path]:
        """All dumps so far."""
        return dumps_in(self.path.parent)

    def call(self, suffix: str) -> None:
        """Rename what was written, when it is closed.

        Args:
            suffix: what is added to the name.
        """
        for path in self.paths():
            path.rename(path.with_name(path.name.replace(self.path.stem, f"{self.path.stem}_{suffix}", 1)))


def dumps_in(folder: Path) -> list[Path]:
    """Return the dumps in a folder, in the order in which they were made."""
    found = folder.iterdir() if folder.exists() else ()
    return sorted(path for path in found if _OURS.fullmatch(path.name))
