"""Recordings of episodes: their names and ids, and the chunks that each of them has."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta

from rerun.chunk import Chunk

from torchrl_rerun.chunks.chunks import assets_of, static_chunks
from torchrl_rerun.chunks.episode_rows import EpisodeRows
from torchrl_rerun.kinds.assets import asset_chunks
from torchrl_rerun.kinds.episode import Episode
from torchrl_rerun.kinds.keys import Key
from torchrl_rerun.kinds.schema import Source, TimedStream, episode_chunk, info_chunk, property_chunk

_EPOCH, _MICROSECOND = datetime.fromtimestamp(0, UTC), timedelta(microseconds=1)


MOST_IN_EACH = 16 << 10
"""Bytes of a chunk of what doesn't change that each recording has. Larger ones, such as meshes, are shared."""


def free_suffix(stem: str, is_taken: Callable[[str], bool]) -> str:
    """Return the suffix that makes a name free if another episode has it: nothing, ``_2``, ``_3`` and so on.

    Args:
        stem: the name.
        is_taken: returns whether an episode has a name.

    >>> free_suffix("a", {"a", "a_2"}.__contains__)
    '_3'
    """
    number, added = 1, ""
    while is_taken(f"{stem}{added}"):
        number += 1
        added = f"_{number}"
    return added


class EpisodeRecordings:
    """The recordings of the episodes of one run, each of one episode.

    Args:
        source: the environments.
        run_id: id of the run.
        described: the streams of each environment.
        ends: the flags that end episodes.

    Attributes:
        source: the environments.
        shared: the chunks that all recordings have in common, and that are written once: assets, and the shapes of meshes.
    """

    def __init__(
        self, source: Source, run_id: str, described: Sequence[TimedStream] = (), ends: Sequence[Key] = ()
    ) -> None:
        self.source = source
        self._run_id = run_id
        self.describe(described, ends)

    def describe(self, described: Sequence[TimedStream], ends: Sequence[Key]) -> None:
        """Note the description, which each recording contains from now on.

        Args:
            described: the streams of each environment.
            ends: the flags that end episodes.
        """
        self._described, self._ends = tuple(described), tuple(ends)
        self._schemas: dict[int, Chunk] = {}
        streams = [stream for stream, _ in self._described]
        static = [(chunk, chunk.to_record_batch().nbytes) for chunk in static_chunks(streams, [None])]
        self._static = [chunk for chunk, size in static if size <= MOST_IN_EACH]
        self.shared = [chunk for chunk, size in static if size > MOST_IN_EACH]
        self.shared += asset_chunks(assets_of(streams))

    def name(self, rows: EpisodeRows) -> str:
        """Return the name of an episode's file, without its suffix and ``.rrd``."""
        return f"env_{self._number(rows)}_episode_{rows.episode:06}"

    def recording_id(self, rows: EpisodeRows, suffix: str) -> str:
        """Return the id of an episode's recording. The viewer shows the first letters alone."""
        return f"e{self._number(rows)}_ep{rows.episode:06}{suffix}_{self._run_id}"

    def _number(self, rows: EpisodeRows) -> str:
        """Return the environment index with as many digits as any has, so that names sort."""
        return f"{rows.env:0{len(str(self.source.first_env + self.source.envs - 1))}}"

    def chunks(self, rows: EpisodeRows, episode: Episode, stem: str, before: Iterable[Chunk] = ()) -> Iterator[Chunk]:
        """Yield the chunks of a recording.

        Args:
            rows: the rows.
            episode: the properties of the episode.
            stem: the name of the recording.
            before: chunks of rows that come before them.
        """
        began = episode.start_time
        # A float of seconds since the epoch would be a microsecond off at times.
        yield info_chunk(stem, 0 if began is None else (began - _EPOCH) // _MICROSECOND * 1000)
        yield self._schema_of(episode.env)
        yield episode_chunk(episode)
        yield from self._static
        yield from before
        yield from rows.chunks()

    def _schema_of(self, env: int) -> Chunk:
        if env not in self._schemas:
            self._schemas[env] = property_chunk(self.source, [env], self._described, ends=self._ends, split="episode")
        return self._schemas[env]
