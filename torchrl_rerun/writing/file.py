"""Files: the target of a recording of a whole run, and what takes its chunks there."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import rerun.blueprint as rrb
from rerun.chunk import Chunk, LazyChunkStream

from torchrl_rerun.blocks.black_box import BlackBox, box_of
from torchrl_rerun.errors import FileInUseError
from torchrl_rerun.paths import check_name, find_target
from torchrl_rerun.rrd.blueprints import add_layout, encode
from torchrl_rerun.rrd.locks import is_locked, leave, lock
from torchrl_rerun.rrd.runs import FILE_OF_WORKER, check_folder, family, make_folder, parts_of

CHUNKS_PER_FILE = 1 << 16
"""Chunks after which a recording goes on in another file. Rerun keeps an index of a file's chunks in memory, for its footer:
in a run of days it would be gigabytes, and nothing could open the file."""


class FileTarget:
    """An ``.rrd`` file; of a long recording several, one after the other: ``run.rrd``, ``run.part_1.rrd`` and so on.

    Each of them can be opened by itself, and all together are shown as one recording. A finished one may be moved away.

    Args:
        path: the file to write; missing parent folders are made when it is opened. If it is a link, the file that the link
            leads to is written, and its parts and the files of workers lie beside that.
        overwrite: replace an existing file; its parts go with it. A file that another live recorder writes stays.
        base: the path that the user gave, if this is a sibling of it.
        first: the first file of the recording, if this continues it.
        run: the first file of the run, if this goes on with it after a restart.

    Attributes:
        path: the file.

    Raises:
        OSError: the folder can't be written.
        ValueError: the path is a folder, a device, a pipe or a socket, isn't UTF-8, or doesn't end in ``.rrd``.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        overwrite: bool = False,
        base: Path | None = None,
        first: Path | None = None,
        run: Path | None = None,
    ) -> None:
        self.path = find_target(path)
        self.overwrite = overwrite
        self.first = first or self.path
        self._base = base or self.path
        self._run = run
        if base is not None:
            return  # a sibling of one that was checked
        if self.path.suffix != ".rrd" or self.path.is_dir():
            raise ValueError(f"{os.fspath(path)!r} is not a file to record to; give a path that ends in '.rrd'")
        check_name(self.path)
        check_folder(self.path.parent)

    @property
    def label(self) -> str:
        """Its name in messages."""
        return self.path.name

    @property
    def identity(self) -> str:
        """The path of the first file."""
        return str(self.first)

    @property
    def for_workers(self) -> str:
        """A sentence for messages: where several workers write."""
        return (
            f"each writes a file of its own beside {self.label} ({self.sibling('worker_0').label}, ...), whole when the "
            "batch is closed"
        )

    def next_part(self) -> FileTarget:
        """Return the file after this one: ``run.part_1.rrd``, or the next that isn't there."""
        part = 1
        while (path := self.first.with_name(f"{self.first.stem}.part_{part}.rrd")).exists():
            part += 1
        return FileTarget(path, base=self._base, first=self.first)

    def continuation(self) -> FileTarget:
        """Return the file of the frames that come after this one was closed."""
        return self.next_part()

    def resumed(self) -> FileTarget:
        """Return the file of the run after a restart: this one, or ``run.resumed_1.rrd`` and so on."""
        path, number = self.first, 0
        while path.exists():
            number += 1
            path = self.first.with_name(f"{self.first.stem}.resumed_{number}.rrd")
        return FileTarget(path, base=self._base, run=self.first) if number else self

    def earlier(self) -> list[Path]:
        """Return the files of the run that were there before this one was opened."""
        if self._run is None:
            return []
        return [path for path in (self._run, *parts_of(self._run)) if path.exists() and path != self.path]

    def elsewhere(self) -> list[Path]:
        """Return the files of this run from recorders on the other side: inside the batch, or outside if this is a worker's."""
        if self._base != self.first and FILE_OF_WORKER.fullmatch(self.first.name):
            return [self._base] if self._base.exists() else []
        folder = self._base.parent
        found = ((path, FILE_OF_WORKER.fullmatch(path.name)) for path in (folder.iterdir() if folder.is_dir() else ()))
        return sorted(path for path, worker in found if worker is not None and worker["run"] == self._base.stem)

    def sibling(self, part: str) -> FileTarget:
        """Return a file beside this one: ``run.rrd`` and ``"worker_3"`` make ``run.worker_3.rrd``."""
        path = self._base.with_name(f"{self._base.stem}.{part}.rrd")
        return FileTarget(path, overwrite=self.overwrite, base=self._base)

    def family(self) -> list[int]:
        """Return the numbers of the workers that write beside this one; empty if this isn't a worker's file."""
        return family(self.first)

    def check_free(self) -> None:
        """Raise FileExistsError if the file exists."""
        if self.path.exists():
            raise FileExistsError(f"{self.path} exists; choose another path or pass overwrite=True")

    def open(self) -> FileWriter:
        """Claim the path, and return what takes chunks there.

        Raises:
            FileInUseError: another live recorder writes to it.
            FileExistsError: the file exists and may not be replaced.
            OSError: it can't be created.
        """
        return FileWriter(self, *self.claim())

    def claim(self) -> tuple[int, Path | None]:
        """Create and lock the file.

        Returns:
            Its handle, and the file that it replaces under another name: that is kept until there is something in its place.
        """
        make_folder(self.path.parent)
        replaced = None
        if self.overwrite and self.path.exists() and not is_locked(self.path):
            aside = self.path.with_name(f".{self.path.name}.replaced")
            with contextlib.suppress(FileNotFoundError):  # another recorder puts it aside at the same time
                self.path.replace(aside)
                replaced = aside
        flags = os.O_RDWR | os.O_CREAT | (0 if self.overwrite else os.O_EXCL) | getattr(os, "O_BINARY", 0)
        try:
            handle = os.open(self.path, flags, 0o666)
        except FileExistsError:
            if is_locked(self.path):
                raise FileInUseError(f"{self.path} is being written by another recorder") from None
            raise FileExistsError(f"{self.path} exists; choose another path or pass overwrite=True") from None
        try:
            lock(handle, self.path)
        except FileInUseError:
            os.close(handle)
            raise
        return handle, replaced

    def remove_earlier(self, replaced: Path | None) -> None:
        """Remove further files of the recording that this one replaces.

        Args:
            replaced: the file that it replaced; None if there was none.
        """
        for part in () if replaced is None else parts_of(self.first):
            if not is_locked(part):  # our own are locked, too
                remove_file(part)

    def recorded(self, written: list[Path]) -> list[Path]:
        """Return the files of the recording that are where they were written.

        Args:
            written: the files that were written.
        """
        return [path for path in written if path.exists()]


def remove_file(path: Path) -> None:
    """Remove a file of an earlier run, and its black box. What can't be removed must not cost the recording that has begun."""
    with contextlib.suppress(OSError):
        path.unlink()
    shutil.rmtree(box_of(path), ignore_errors=True)


class FileWriter:
    """Writes chunks to a file, and goes on in another one when it is full.

    The file is written with :meth:`rerun.chunk.LazyChunkStream.write_rrd`, chunk by chunk without a buffer of its own, and
    not with the file sink of ``rr.RecordingStream``: on a full disk that one never returns from ``disconnect()``, and the
    process never exits (rerun-sdk 0.41).

    Args:
        target: the file.
        handle: the open file.
        replaced: the file that it replaces, under another name; None if there is none.

    Attributes:
        target: the file that is written.
        memory: the black box beside it.
    """

    episodes = None

    def __init__(self, target: FileTarget, handle: int, replaced: Path | None) -> None:
        self.target = target
        self._first = target
        self._handle: int | None = handle
        self._replaced = replaced
        self._finished: list[tuple[Path, int]] = []  # the files before this one; their locks are held to the end
        self._following: Chunk | None = None
        self._next: tuple[FileTarget, int] | None = None  # the file after this one, and its handle
        self.memory = BlackBox(box_of(target.path))
        self._begin_file()

    @property
    def path(self) -> Path:
        """The file that is written."""
        return self.target.path

    @property
    def label(self) -> str:
        """Its name in messages."""
        return self.target.label

    @property
    def location(self) -> str:
        """The path of the file that is written."""
        return str(self.path)

    def _begin_file(self) -> None:
        self._end: tuple[int, bytes] = 0, b""  # where the file ended when all in it was whole, and its last bytes
        self._is_damaged = False
        self._chunks = 0
        self._is_full = False

    def continuation(self) -> FileTarget:
        """Return the file of the frames that come after it was closed."""
        return self._first.continuation()

    def write(self, chunks: Iterable[Chunk], *, application_id: str, recording_id: str) -> None:
        """Write chunks as they come, then the footer. Each chunk is with the operating system before the next is asked for."""
        names = {"application_id": application_id, "recording_id": recording_id}
        coming = iter(chunks)
        static: list[Chunk] = []
        self._following = next(coming, None)
        while True:
            LazyChunkStream.from_iter(self._part(coming, static)).write_rrd(self._path_of_handle(), **names)
            self.mark_whole()
            if self._following is None:
                return
            self._go_on_in_another_file()

    def _path_of_handle(self) -> Path:
        """Return a path of the open file itself, whatever lies at :attr:`path` by now: Rerun opens it once more."""
        by_handle = Path(f"/proc/self/fd/{self._handle}")
        return by_handle if by_handle.exists() else self.path

    def _part(self, coming: Iterator[Chunk], static: list[Chunk]) -> Iterator[Chunk]:
        """Return the chunks of one file: static ones, which each file has, and those that come until it is full."""
        yield from tuple(static)
        chunk, self._following = self._following, None
        while chunk is not None:
            if chunk.is_static:
                static.append(chunk)
            self._chunks += 1
            yield chunk
            chunk = next(coming, None)
            if self._is_full:
                self._following = chunk
                if chunk is not None:
                    with contextlib.suppress(OSError):  # it is tried again when this file is finished
                        self._claim_next()
                return

    def _claim_next(self) -> tuple[FileTarget, int]:
        """Return the next file, claimed. The black box is beside it before this one is finished: of a finished one there is none."""
        if self._next is None:
            another = self.target.next_part()
            handle, _ = another.claim()
            self._next = another, handle
            self.memory.move(box_of(another.path))
        return self._next

    def _go_on_in_another_file(self) -> None:
        another, handle = self._claim_next()
        assert self._handle is not None, "it is open"
        self._finished.append((self.path, self._handle))
        self._begin_file()
        self.target, self._handle, self._next = another, handle, None

    def error(self) -> OSError | None:
        """Return an error if the file was removed, replaced or overwritten, else None."""
        if self._handle is None:
            return None
        is_there = False
        with contextlib.suppress(FileNotFoundError):
            is_there = os.path.samestat(os.fstat(self._handle), self.path.stat())
        if not is_there:
            return FileNotFoundError(f"{self.path} was removed or replaced while it was being recorded")
        self._look_for_damage(self._handle)
        return OSError(f"{self.path} was overwritten while it was being recorded") if self._is_damaged else None

    def _look_for_damage(self, handle: int) -> None:
        """Compare the last bytes: if somebody else cuts the file off, writing goes on where it was, and leaves a hole."""
        size, last = self._end
        if _last_bytes(handle, size) != last:
            self._is_damaged = True

    def size(self) -> int:
        """Return how many bytes are with the operating system."""
        if self._handle is not None:
            return sum(os.fstat(handle).st_size for _, handle in (*self._finished, (self.path, self._handle)))
        return sum(path.stat().st_size for path in self._paths if path.exists())

    def mark_whole(self) -> None:
        """Note that all that was written so far is whole."""
        if self._handle is not None:
            size = os.fstat(self._handle).st_size
            self._end = size, _last_bytes(self._handle, size)
        self._is_full = self._chunks >= CHUNKS_PER_FILE

    def truncate(self) -> None:
        """Cut off what isn't whole: Rerun refuses a file that ends within a message."""
        if self._handle is not None:
            os.ftruncate(self._handle, self._end[0])

    def embed(self, layout: rrb.Blueprint, *, application_id: str) -> None:
        """Put a layout into the finished files."""
        assert self._handle is not None, "it is open"
        encoded = encode(layout, application_id)
        for path, handle in (*self._finished, (self.path, self._handle)):
            add_layout(path, encoded, handle=handle)  # by its handle: it may have been moved away, or be read-only

    @property
    def _paths(self) -> list[Path]:
        return [*(path for path, _ in self._finished), self.path]

    def files(self) -> list[Path]:
        """Return the files of the recording that there are so far."""
        return self._first.recorded(self._paths)

    def rename(self, suffix: str) -> None:
        """Add a suffix to the names of the finished files: ``run.rrd`` and ``"a"`` make ``run_a.rrd``."""
        stem = self._first.path.stem
        for path in self._paths:
            path.rename(path.with_name(path.name.replace(stem, f"{stem}_{suffix}", 1)))

    def replace_earlier(self) -> None:
        """Remove the file that this one replaces, and its parts."""
        replaced = self._replaced
        if replaced is not None:
            replaced.unlink(missing_ok=True)
        self._first.remove_earlier(replaced)
        self.memory.replace_earlier()
        self._replaced = None

    def discard(self) -> None:
        """Let go of the path and remove the file; one that it replaced is back then."""
        self.memory.remove()
        if self._handle is not None:
            self.path.unlink(missing_ok=True)
        if self._replaced is not None:
            self._replaced.replace(self.path)
            self._replaced = None
        self.memory.restore_earlier()
        self._release()

    def leave(self) -> None:
        """Leave the files to the parent of this forked process."""
        for handle in self._handles:
            leave(handle)

    def close(self) -> None:
        """Let go of the path."""
        self.replace_earlier()
        self._release()

    def _release(self) -> None:
        self.memory.remove()
        for handle in self._handles:
            os.close(handle)
        self._handle = self._next = None

    @property
    def _handles(self) -> list[int]:
        if self._handle is None:
            return []
        after = [] if self._next is None else [self._next[1]]
        return [*(handle for _, handle in self._finished), self._handle, *after]


def _last_bytes(handle: int, size: int) -> bytes:
    """Return the last of the first ``size`` bytes of a file; none on Windows, where nobody can cut off an open file."""
    if sys.platform == "win32":
        return b""
    count = min(size, 64)
    return os.pread(handle, count, size - count)
