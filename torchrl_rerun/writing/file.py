"""Sinks: where chunks go. Here a file; a sink is used by the writer's thread alone, once it is open."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import rerun.blueprint as rrb
from rerun.chunk import Chunk, LazyChunkStream

from torchrl_rerun.errors import FileInUseError
from torchrl_rerun.paths import check_name, target_of
from torchrl_rerun.rrd.blueprints import add_layout, encode
from torchrl_rerun.rrd.locks import is_locked, lock
from torchrl_rerun.rrd.runs import FILE_OF_WORKER, check_folder, family, make_folder, parts_of

CHUNKS_PER_FILE = 1 << 16
"""Chunks after which a recording goes on in another file. Rerun keeps an index of a file's chunks in memory, for its footer:
in a run of days it would be gigabytes, and nothing could open the file."""


class FileSink:
    """An ``.rrd`` file; of a long recording several, one after the other: ``run.rrd``, ``run.part_1.rrd`` and so on.

    Each of them can be opened by itself, and all together are shown as one recording. A finished one may be moved away.

    It is written with :meth:`rerun.chunk.LazyChunkStream.write_rrd`, chunk by chunk without a buffer of its own, and not
    with the file sink of ``rr.RecordingStream``: on a full disk that one never returns from ``disconnect()``, and the
    process never exits (rerun-sdk 0.41).

    Args:
        path: the file to write; missing parent folders are made when it is opened. Of a link that is written to which it
            leads, and its parts and the files of workers lie beside that.
        overwrite: replace an existing file; its parts go with it. What another live recorder writes stays.
        base: the path that the user gave, of which this is a sibling; None: this is it.
        first: the file of which this continues the recording; None: this is the first.
        run: the file with which the run began that goes on; None: it begins.

    Attributes:
        path: the file that is written.

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
        self.path = target_of(path)
        self.overwrite = overwrite
        self._base = base or self.path
        self._first = first or self.path
        self._run = run
        self._finished: list[tuple[Path, int]] = []  # the files before this one; their locks are held to the end
        self._following: Chunk | None = None
        self._handle: int | None = None
        self._replaced: Path | None = None
        self._begin_file()
        if base is not None:
            return  # a sibling of one that was checked
        if self.path.suffix != ".rrd" or self.path.is_dir():
            raise ValueError(f"{os.fspath(path)!r} is not a file to record to; give a path that ends in '.rrd'")
        check_name(self.path)
        check_folder(self.path.parent)

    @property
    def label(self) -> str:
        """What messages call it."""
        return self.path.name

    @property
    def location(self) -> str:
        """Where it is found."""
        return str(self.path)

    @property
    def identity(self) -> str:
        """What recorders that share it have in common."""
        return str(self._first)

    @property
    def for_workers(self) -> str:
        """What becomes of it in several workers."""
        return (
            f"each writes a file of its own beside {self.label} ({self.sibling('worker_0').label}, ...), whole when the "
            "batch is closed"
        )

    def next_part(self) -> FileSink:
        """The sink of what comes after this file: ``run.part_1.rrd``, or the next that isn't there."""
        part = 1
        while (path := self._first.with_name(f"{self._first.stem}.part_{part}.rrd")).exists():
            part += 1
        return FileSink(path, base=self._base, first=self._first)

    def continuation(self) -> FileSink:
        """The sink of what comes after :meth:`close`."""
        return self.next_part()

    def resumed(self) -> FileSink:
        """The sink of a run that goes on after a restart: this one, or ``run.resumed_1.rrd`` and so on."""
        path, number = self._first, 0
        while path.exists():
            number += 1
            path = self._first.with_name(f"{self._first.stem}.resumed_{number}.rrd")
        return FileSink(path, base=self._base, run=self._first) if number else self

    def earlier(self) -> list[Path]:
        """The files of the run that were there before this sink was opened."""
        if self._run is None:
            return []
        return [path for path in (self._run, *parts_of(self._run)) if path.exists() and path != self.path]

    def elsewhere(self) -> list[Path]:
        """Return the files of this run from recorders on the other side: inside the batch, or outside if this is a worker's."""
        if self._base != self._first and FILE_OF_WORKER.fullmatch(self._first.name):
            return [self._base] if self._base.exists() else []
        folder = self._base.parent
        found = ((path, FILE_OF_WORKER.fullmatch(path.name)) for path in (folder.iterdir() if folder.is_dir() else ()))
        return sorted(path for path, worker in found if worker is not None and worker["run"] == self._base.stem)

    def sibling(self, part: str) -> FileSink:
        """The sink of a file beside this one: ``run.rrd`` and ``"worker_3"`` make ``run.worker_3.rrd``."""
        path = self._base.with_name(f"{self._base.stem}.{part}.rrd")
        return FileSink(path, overwrite=self.overwrite, base=self._base)

    def family(self) -> list[int]:
        """The numbers of the workers that write beside this one; empty if this isn't a worker's file."""
        return family(self._first)

    def check_free(self) -> None:
        """Raise FileExistsError if the file exists."""
        if self.path.exists():
            raise FileExistsError(f"{self.path} exists; choose another path or pass overwrite=True")

    def open(self) -> None:
        """Claim the path.

        Raises:
            FileInUseError: another live recorder writes to it.
            FileExistsError: the file exists and may not be replaced.
            OSError: it can't be created.
        """
        make_folder(self.path.parent)
        if self.overwrite and self.path.exists() and not is_locked(self.path):
            # Kept until it is known that there is something to replace it.
            self._replaced = self.path.with_name(f".{self.path.name}.replaced")
            self.path.replace(self._replaced)
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
        self._handle = handle
        self._begin_file()

    def _begin_file(self) -> None:
        self._end: tuple[int, bytes] = 0, b""  # where the file ended when all in it was whole, and its last bytes
        self._is_damaged = False
        self._chunks = 0
        self._is_full = False

    def write(self, chunks: Iterable[Chunk], *, application_id: str, recording_id: str) -> None:
        """Write chunks as they come, then the footer. Each chunk is with the operating system before the next is asked for."""
        names = {"application_id": application_id, "recording_id": recording_id}
        coming = iter(chunks)
        static: list[Chunk] = []
        self._following = next(coming, None)
        while True:
            LazyChunkStream.from_iter(self._part(coming, static)).write_rrd(self.path, **names)
            self.settle()
            if self._following is None:
                return
            self._go_on_in_another_file()

    def _part(self, coming: Iterator[Chunk], static: list[Chunk]) -> Iterator[Chunk]:
        """The chunks of one file: what doesn't change, which each file has, and what comes until it is full."""
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
                return

    def _go_on_in_another_file(self) -> None:
        another = self.next_part()
        another.open()
        assert self._handle is not None, "it is open"
        self._finished.append((self.path, self._handle))
        self._begin_file()
        self.path, self._handle = another.path, another._handle  # noqa: SLF001 - of the same class

    def trouble(self) -> OSError | None:
        """What became of the file, if what was written can't be found any more."""
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
        """Writing goes on where it was in a file that somebody else has cut off, and leaves a hole before it."""
        size, last = self._end
        if _last_bytes(handle, size) != last:
            self._is_damaged = True

    def check(self) -> None:
        """Raise what became of the file, if what was written can't be found any more."""
        trouble = self.trouble()
        if trouble is not None:
            raise trouble

    def size(self) -> int:
        """Bytes that are with the operating system."""
        if self._handle is not None:
            return sum(os.fstat(handle).st_size for _, handle in (*self._finished, (self.path, self._handle)))
        return sum(path.stat().st_size for path in self.paths() if path.exists())

    def settle(self) -> None:
        """All that was written is whole."""
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

    def paths(self) -> list[Path]:
        """The files of this recording."""
        return [*(path for path, _ in self._finished), self.path]

    def files(self) -> list[Path]:
        """The files of this recording that are where they were written."""
        return [path for path in self.paths() if path.exists()]

    def keep(self) -> None:
        """There is something to keep: remove the file that this one replaces, and its parts."""
        if self._replaced is None:
            return
        self._replaced.unlink(missing_ok=True)
        self._replaced = None
        for part in parts_of(self._first):
            if not is_locked(part):  # our own are locked, too
                with contextlib.suppress(OSError):  # what can't be removed must not cost the recording that has begun
                    part.unlink()

    def discard(self) -> None:
        """Let go of the path and remove the file; one that it replaced is back then."""
        if self._handle is not None:
            self.path.unlink(missing_ok=True)
        if self._replaced is not None:
            self._replaced.replace(self.path)
            self._replaced = None
        self.close()

    def close(self) -> None:
        """Let go of the path."""
        self.keep()
        if self._handle is not None:
            for handle in (*(handle for _, handle in self._finished), self._handle):
                os.close(handle)
            self._handle = None


def _last_bytes(handle: int, size: int) -> bytes:
    """The last of the first ``size`` bytes of a file; nothing on Windows, where nobody can cut off an open file."""
    if sys.platform == "win32":
        return b""
    count = min(size, 64)
    return os.pread(handle, count, size - count)
