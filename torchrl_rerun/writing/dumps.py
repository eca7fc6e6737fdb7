"""Dumps: a file for the frames between two dumps, one after the other in a folder."""

from __future__ import annotations

import re
from pathlib import Path

from torchrl_rerun.rrd.locks import is_locked
from torchrl_rerun.rrd.runs import elsewhere, refuse_earlier_run
from torchrl_rerun.writing.file import FileTarget, FileWriter, remove_file

_OURS = re.compile(r"dump_\d{6}(_.*)?\.rrd", re.DOTALL)


class DumpTarget(FileTarget):
    """The file of one dump: ``dump_000000.rrd``, and ``dump_000000_{suffix}.rrd`` once it has a suffix.

    Args:
        folder: the folder of all dumps.
        number: the number of the dump, from 0.
        overwrite: whether the first dump replaces the dumps that an earlier run left in the folder.
    """

    def __init__(self, folder: Path, number: int = 0, *, overwrite: bool = False) -> None:
        super().__init__(folder / f"dump_{number:06}.rrd", overwrite=overwrite)
        self._number = number

    @property
    def identity(self) -> str:
        """The path of the folder."""
        return str(self.path.parent)

    def continuation(self) -> DumpTarget:
        """Return the file of the next dump."""
        return DumpTarget(self.path.parent, self._number + 1, overwrite=self.overwrite)

    def resumed(self) -> DumpTarget:
        """Return the file of the next dump that isn't there."""
        there = [int(path.name[5:11]) for path in dumps_in(self.path.parent)]
        return DumpTarget(self.path.parent, max(there, default=-1) + 1)

    def earlier(self) -> list[Path]:
        """Return the dumps of the run that were there before this one was opened."""
        return [path for path in dumps_in(self.path.parent) if path != self.path]

    def elsewhere(self) -> list[Path]:
        """Return the dumps of this run from recorders on the other side: inside the batch, or outside if this is a worker's."""
        return elsewhere(self.path.parent, dumps_in)

    def sibling(self, part: str) -> DumpTarget:
        """Return the first dump of a worker, in a folder of its own."""
        return DumpTarget(self.path.parent / part, overwrite=self.overwrite)

    @property
    def for_workers(self) -> str:
        """A sentence for messages: where several workers write."""
        return f"each writes into a folder of its own inside {self.path.parent.name}/ (worker_0, ...)"

    def check_free(self) -> None:
        """Raise FileExistsError if an earlier run left dumps in the folder."""
        if there := dumps_in(self.path.parent):
            refuse_earlier_run(self.path.parent, there[0])

    def open(self) -> FileWriter:
        """Claim the path, and return what takes chunks there.

        Raises:
            FileExistsError: an earlier run left dumps in the folder, and ``overwrite`` is false.
            OSError: it can't be created.
        """
        if not (self._number or self.overwrite):
            self.check_free()
        return super().open()

    def remove_earlier(self, replaced: Path | None) -> None:
        """Remove the dumps of an earlier run.

        Args:
            replaced: the file that it replaced; None if there was none.
        """
        super().remove_earlier(replaced)
        if self.overwrite and not self._number:
            for path in dumps_in(self.path.parent):
                if not is_locked(path):  # this one is
                    remove_file(path)

    def recorded(self, written: list[Path]) -> list[Path]:
        """Return all dumps so far.

        Args:
            written: the files of this dump.
        """
        del written
        return dumps_in(self.path.parent)


def dumps_in(folder: Path) -> list[Path]:
    """Return the dumps in a folder, in the order in which they were made."""
    found = folder.iterdir() if folder.exists() else ()
    return sorted(path for path in found if _OURS.fullmatch(path.name))
