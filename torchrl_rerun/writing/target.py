"""Targets: what a recording goes to, a file, a folder of them, or nothing but live viewers; and what takes its chunks there."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

import rerun.blueprint as rrb
from rerun.chunk import Chunk

from torchrl_rerun.blocks.memory import Heap, Memory
from torchrl_rerun.writing.episode_folder import EpisodeFolder


class Target(Protocol):
    """A place to record to. It holds nothing open, so that it can be copied into worker processes.

    Attributes:
        label: its name in messages.
        path: the file or folder; None if there is none.
        identity: text that recorders have in common if they share the target.
        for_workers: what several workers write, as a sentence for messages.
    """

    @property
    def label(self) -> str: ...  # noqa: D102

    @property
    def path(self) -> Path | None: ...  # noqa: D102

    @property
    def identity(self) -> str: ...  # noqa: D102

    @property
    def for_workers(self) -> str: ...  # noqa: D102

    def check_free(self) -> None:
        """Raise FileExistsError if an earlier run is there. Nothing is touched."""

    def open(self) -> ChunkWriter:
        """Claim the place, and return what takes chunks there.

        Raises:
            FileInUseError: another live recorder writes there.
            FileExistsError: there is something that may not be replaced.
            OSError: it can't be written.
        """

    def sibling(self, part: str) -> Target:
        """Return the target of another recorder that shares this one, such as ``"worker_3"``."""

    def resumed(self) -> Target:
        """Return the target of the run's frames after a restart of the program."""

    def earlier(self) -> list[Path]:
        """Return the files of the run that were there before this target was opened."""

    def elsewhere(self) -> list[Path]:
        """Return the files of this run from recorders on the other side: inside the batch, or outside if this is a worker's."""

    def family(self) -> list[int]:
        """Return the numbers of the workers that record beside this one; empty if this isn't a worker's."""


class ChunkWriter(Protocol):
    """Takes the chunks of a recording, on the writer's thread, and keeps them.

    Attributes:
        target: the target that it was opened from.
        label: its name in messages.
        location: where it is found.
        episodes: the folder in which each episode has a recording of its own; None if all are in one recording.
        memory: where what waits to be written lies. It is given back when the target is let go of.
    """

    @property
    def memory(self) -> Memory: ...  # noqa: D102

    @property
    def target(self) -> Target: ...  # noqa: D102

    @property
    def label(self) -> str: ...  # noqa: D102

    @property
    def location(self) -> str: ...  # noqa: D102

    @property
    def episodes(self) -> EpisodeFolder | None: ...  # noqa: D102

    def continuation(self) -> Target:
        """Return the target of the frames that come after :meth:`close`."""

    def write(self, chunks: Iterable[Chunk], *, application_id: str, recording_id: str) -> None:
        """Write chunks as they come, then finish.

        Args:
            chunks: a generator. An implementation may ask for the next chunk only when the operating system has the one before:
                the generator releases the memory of that chunk then.
            application_id: the id by which the viewer groups recordings.
            recording_id: the id of the recording.
        """

    def mark_whole(self) -> None:
        """Note that all that was written so far is whole."""

    def truncate(self) -> None:
        """Cut off the bytes that were written since the last call of :meth:`mark_whole`."""

    def error(self) -> OSError | None:
        """Return an error if the recording can't be found any more, else None."""

    def size(self) -> int:
        """Return how many bytes are kept."""

    def files(self) -> list[Path]:
        """Return the files of the recording that there are so far."""

    def replace_earlier(self) -> None:
        """Remove what this recording replaces: there is something in its place now."""

    def embed(self, layout: rrb.Blueprint, *, application_id: str) -> None:
        """Add the layout that the viewer opens with to the finished recording."""

    def rename(self, suffix: str) -> None:
        """Add a suffix to the name of the finished recording."""

    def discard(self) -> None:
        """Let go of the target, and leave it as it was before it was opened."""

    def close(self) -> None:
        """Let go of the target."""

    def leave(self) -> None:
        """Leave the target to the parent of this forked process."""


class LiveTarget:
    """No file: all that is recorded is for live viewers, or for a recording stream.

    Args:
        identity: text that recorders have in common if they share the target.
        for_workers: what several workers write. Default: each sends by itself.
    """

    path = None

    def __init__(self, identity: str, *, for_workers: str | None = None) -> None:
        self.identity = identity
        self.label = identity
        self.for_workers = for_workers or f"each sends to {identity} by itself"

    def check_free(self) -> None:
        """Do nothing: viewers hold no earlier run."""

    def open(self) -> ChunkWriter:
        """Return what takes chunks, and keeps none."""
        return _LiveWriter(self)

    def sibling(self, part: str) -> LiveTarget:
        """Return this target: viewers tell recorders apart by what they send."""
        del part
        return self

    def resumed(self) -> LiveTarget:
        """Return this target."""
        return self

    def earlier(self) -> list[Path]:
        """Return no files: none are written."""
        return []

    def elsewhere(self) -> list[Path]:
        """Return no files: none are written."""
        return []

    def family(self) -> list[int]:
        """Return no workers: they aren't known."""
        return []


class _LiveWriter:
    """Takes chunks and keeps none: viewers have got theirs when a chunk comes here."""

    episodes = None

    def __init__(self, target: LiveTarget) -> None:
        self.target = target
        self.label = self.location = target.label
        self.memory = Heap()

    def continuation(self) -> LiveTarget:
        return self.target

    def write(self, chunks: Iterable[Chunk], *, application_id: str, recording_id: str) -> None:
        del application_id, recording_id
        for _ in chunks:
            pass

    def mark_whole(self) -> None:
        pass

    def truncate(self) -> None:
        pass

    def error(self) -> OSError | None:
        return None

    def size(self) -> int:
        return 0

    def files(self) -> list[Path]:
        return []

    def replace_earlier(self) -> None:
        pass

    def embed(self, layout: rrb.Blueprint, *, application_id: str) -> None:
        pass

    def rename(self, suffix: str) -> None:
        pass

    def discard(self) -> None:
        pass

    def close(self) -> None:
        pass

    def leave(self) -> None:
        pass
