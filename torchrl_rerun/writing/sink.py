"""Sinks: where a recording is kept, a file, a folder of them, or nowhere."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

import rerun.blueprint as rrb
from rerun.chunk import Chunk


class Sink(Protocol):
    """Where a recording is kept: a file, a folder of them, or nowhere.

    Attributes:
        label: what messages call it.
        location: where it is found.
        identity: what recorders that share it have in common.
        for_workers: what becomes of it in several workers.
    """

    @property
    def label(self) -> str: ...  # noqa: D102

    @property
    def location(self) -> str: ...  # noqa: D102

    @property
    def identity(self) -> str: ...  # noqa: D102

    @property
    def for_workers(self) -> str: ...  # noqa: D102

    def check_free(self) -> None:
        """Raise FileExistsError if an earlier run is there. Nothing is touched."""

    def open(self) -> None:
        """Claim it."""

    def sibling(self, part: str) -> Sink:
        """The sink of another recorder that shares it."""

    def continuation(self) -> Sink:
        """The sink of what comes after :meth:`close`."""

    def resumed(self) -> Sink:
        """The sink of what comes after a restart of the program."""

    def earlier(self) -> list[Path]:
        """The files of the run that were there before this sink was opened."""

    def elsewhere(self) -> list[Path]:
        """Return the files of this run from recorders on the other side: inside the batch, or outside if this is a worker's."""

    def family(self) -> list[int]:
        """The numbers of the workers that record beside this one; empty if this isn't a worker's."""

    def write(self, chunks: Iterable[Chunk], *, application_id: str, recording_id: str) -> None:
        """Write chunks as they come; to be asked for the next one means that those before are kept."""

    def settle(self) -> None:
        """All that was written is whole."""

    def truncate(self) -> None:
        """Cut off what isn't."""

    def trouble(self) -> OSError | None:
        """What became of it, if what was written can't be found any more."""

    def check(self) -> None:
        """Raise that."""

    def size(self) -> int:
        """Bytes that are kept."""

    def files(self) -> list[Path]:
        """The files that there are so far."""

    def keep(self) -> None:
        """There is something to keep: what it replaces can go."""

    def embed(self, layout: rrb.Blueprint, *, application_id: str) -> None:
        """Add the layout that the viewer opens with."""

    def discard(self) -> None:
        """Let go of it, and leave nothing."""

    def close(self) -> None:
        """Let go of it."""


class NoFile:
    """No file: what is recorded is for live viewers, or for a recording stream, alone.

    Args:
        identity: what recorders that share it have in common.
        for_workers: what becomes of it in several workers; None: each sends by itself.
    """

    overwrite = False

    def __init__(self, identity: str, *, for_workers: str | None = None) -> None:
        self.identity = identity
        self.label = self.location = identity
        self.for_workers = for_workers or f"each sends to {identity} by itself"

    def sibling(self, part: str) -> NoFile:
        """The same: viewers tell recorders apart by what they send."""
        del part
        return self

    def continuation(self) -> NoFile:
        """The same."""
        return self

    def resumed(self) -> NoFile:
        """The same."""
        return self

    def earlier(self) -> list[Path]:
        """There are none."""
        return []

    elsewhere = earlier

    def family(self) -> list[int]:
        """Unknown."""
        return []

    def write(self, chunks: Iterable[Chunk], *, application_id: str, recording_id: str) -> None:
        """Let the chunks come, for those who take them on their way."""
        del application_id, recording_id
        for _ in chunks:
            pass

    def trouble(self) -> OSError | None:
        """None: there is nothing that could be lost."""
        return None

    def check(self) -> None:
        """There is nothing that could be lost."""

    def size(self) -> int:
        """Nothing."""
        return 0

    def files(self) -> list[Path]:
        """None."""
        return []

    def settle(self) -> None:
        """There is nothing that could end too early."""

    truncate = settle

    def embed(self, layout: rrb.Blueprint, *, application_id: str) -> None:
        """Viewers have got theirs already."""

    def check_free(self) -> None:
        """Do nothing: viewers hold no earlier run."""

    def open(self) -> None:
        """There is nothing to claim."""

    def keep(self) -> None:
        """There is nothing to keep."""

    discard = close = keep
