"""The description of a recording: its streams, by the moment in which they have rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from torchrl_rerun.kinds.entity_paths import EntityPaths
from torchrl_rerun.kinds.keys import Key
from torchrl_rerun.kinds.schema import Moment, TimedStream
from torchrl_rerun.kinds.streams import Stream


class Description:
    """The streams of a recording, as far as they are known.

    Args:
        reserved: entity paths that no stream may have.

    Attributes:
        ends: the flags that end an environment's episode.
        reward: where the first reward is among the streams of steps; None if no returns are recorded.
    """

    def __init__(self, *, reserved: Sequence[str] = ()) -> None:
        self.ends: tuple[Key, ...] = ()
        self.reward: int | None = None
        self._streams: list[list[Stream]] = [[] for _ in Moment]
        self._paths = EntityPaths(reserved=reserved)

    def add(self, moment: Moment, streams: Sequence[Stream], ends: Sequence[Key]) -> list[Stream]:
        """Note the streams of a moment. Return them, each with an entity path of its own.

        Args:
            moment: when the streams have rows.
            streams: the streams; running returns come last.
            ends: the flags that end an environment's episode; empty if they aren't known yet.
        """
        self.ends = tuple(ends) or self.ends
        assigned = [*map(self._paths.assign, streams)]
        if assigned:
            self._streams[moment] = assigned
        if moment is Moment.STEPPED:
            self.reward = next((i for i, stream in enumerate(assigned) if stream.key in self.reward_keys), None)
        return assigned

    def at(self, moment: Moment) -> Sequence[Stream]:
        """Return the streams of a moment."""
        return self._streams[moment]

    def vary(self, key: Key, dtype: str) -> Iterator[tuple[Stream, Moment, Stream, int]]:
        """Describe a key as one whose rows vary in shape.

        Args:
            key: the key.
            dtype: the dtype of its rows from now on. It holds all numbers of the dtype so far.

        Returns:
            For each of its streams: the stream as it was, its moment, the stream as it is, and where its values are.
        """
        for moment in Moment:
            for at, before in enumerate(self._streams[moment]):
                if before.key == key:
                    stream = self._streams[moment][at] = varying(before, dtype)
                    yield before, moment, stream, at

    @property
    def streams(self) -> list[Stream]:
        """All streams, in the order of the moments."""
        return [stream for streams in self._streams for stream in streams]

    @property
    def described(self) -> list[TimedStream]:
        """All streams, and when they have rows."""
        return [(stream, moment) for moment in Moment for stream in self._streams[moment]]

    @property
    def returns(self) -> list[Stream]:
        """The streams of running returns."""
        return [stream for stream in self._streams[Moment.OBSERVED] if stream.reward_key]

    @property
    def reward_keys(self) -> set[Key]:
        """The rewards of which running returns are recorded."""
        return {stream.reward_key for stream in self.returns}


def varying(stream: Stream, dtype: str) -> Stream:
    """Return a stream of rows of a dtype that vary in shape; the shape so far stays the usual one."""
    return replace(stream, dtype=dtype, varies=True, device="")
