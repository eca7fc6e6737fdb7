"""The history of one environment in a recording: its keys, and the rows of each in the order of its frames."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from torchrl_rerun.errors import warn
from torchrl_rerun.kinds.keys import Key, name_of
from torchrl_rerun.kinds.schema import TimedStream
from torchrl_rerun.kinds.streams import Stream
from torchrl_rerun.reading.pictures import EncodedPicture, encoded_in, is_video
from torchrl_rerun.reading.recordings import StoredRecording
from torchrl_rerun.reading.rows import (
    DecodedRows,
    RawRows,
    RowFrames,
    in_order,
    is_of_kind,
    joined,
    places_in,
    raw_rows_of,
    rows_in,
)
from torchrl_rerun.reading.undecoded import UndecodedPictures, decoded_at, undecoded_in
from torchrl_rerun.rrd.frame_codes import ALL, Span


class History:
    """One environment of a recording.

    Args:
        recording: the recording.
        env: index of the environment.

    Attributes:
        recording: the recording.
        env: index of the environment.
    """

    def __init__(self, recording: StoredRecording, env: int) -> None:
        self.recording = recording
        self.env = env
        self._has_warned = False

    def described(self, keys: Sequence[Key] | None) -> list[TimedStream]:
        """Return how keys are recorded.

        Args:
            keys: the keys; None: all but the returns that the recorder worked out. A value that stands for all
                environments is recorded with the first environment alone, and left out of the others.

        Raises:
            KeyError: a key isn't recorded.
        """
        schema = self.recording.schema
        by_key = {stream.key: (stream, moment) for stream, moment in schema.described}
        if keys is None:
            keys = [key for key, (stream, _) in by_key.items() if not stream.reward_key]
        for key in keys:
            if key not in by_key:
                raise KeyError(f"{name_of(key)} is not recorded, but {', '.join(map(name_of, by_key))}")
        is_elsewhere = self.env != schema.envs[0]
        return [by_key[key] for key in keys if not (by_key[key][0].shared and is_elsewhere)]

    def rows(self, stream: Stream, span: Span = ALL) -> DecodedRows:
        """Return the rows of a key, of all agents together, decoded."""
        of_agents = [self._rows_of(stream, agent, span) for agent in range(stream.agent_count)]
        if not stream.agents:
            return of_agents[0]
        common = _common(
            [rows.places for rows in of_agents]
        )  # a kill comes between one agent's rows and the next one's
        return DecodedRows(common, np.stack([rows.values[rows.places.find(common)] for rows in of_agents], axis=1))

    def places(self, stream: Stream, span: Span = ALL) -> RowFrames:
        """Return the frames at which a key has rows, for all agents."""
        return _common([places_in(self.held(stream, agent, span)) for agent in range(stream.agent_count)])

    def count(self, stream: Stream) -> int | None:
        """Return how many rows a key has; None: only reading them tells."""
        counts = [part.count(self.recording.schema.path_of(stream, self.env)) for part in self.recording.parts]
        return None if None in counts else sum(count for count in counts if count is not None)

    def stored(self, stream: Stream, agent: int, span: Span) -> Iterator[EncodedPicture]:
        """Yield the pictures of a key and an agent as they are stored, with one chunk at a time in memory."""
        return (each for _, batch in self.held(stream, agent, span) for each in encoded_in(stream, batch))

    def undecoded(self, stream: Stream, agent: int, span: Span) -> UndecodedPictures:
        """Return the pictures of a key and an agent, encoded. Of a video those are left out that can't be decoded."""
        since = span
        if is_video(stream) and span != ALL:
            since = span[0] >> 32 << 32, span[1]  # each episode begins with a keyframe
        held = [each for each in self.held(stream, agent, since) if is_of_kind(stream, each)]
        return undecoded_in(stream, held, span, since)

    def warn_of_gaps(self, places: RowFrames, steps: int) -> None:
        """Warn, once, if frames were left out, so that recorded ones are no neighbours.

        Args:
            places: the recorded frames.
            steps: the number of steps between neighbours.
        """
        codes = places.codes
        is_apart = (codes[1:] - codes[:-1] > 1) & (codes[1:] >> 32 == codes[:-1] >> 32)
        if is_apart.any() and not self._has_warned:
            self._has_warned = True
            warn(
                f"{int(is_apart.sum()):,} of the recorded frames don't follow the one before them, since frames between them "
                f"were not recorded (skip, triggers, switch()): {steps:,} steps are given, none across such a gap. "
                "episode[key] gives all rows of a key"
            )

    def _rows_of(self, stream: Stream, agent: int, span: Span) -> DecodedRows:
        if not stream.is_picture:
            return rows_in(self.held(stream, agent, span), stream)
        encoded = self.undecoded(stream, agent, span)
        [values] = decoded_at(stream, encoded, [np.arange(len(encoded.places))])
        if not stream.is_object:
            return DecodedRows(encoded.places, values)
        no_pictures = (held for held in self.held(stream, agent, span) if not is_of_kind(stream, held))
        others = rows_in(no_pictures, stream)
        both = joined([encoded.places, others.places]), np.concatenate([values, others.values])
        return in_order(DecodedRows(*both))

    def held(self, stream: Stream, agent: int = 0, span: Span = ALL) -> Iterator[RawRows]:
        """Yield the rows of a key and an agent, chunk by chunk, not decoded."""
        path = self.recording.schema.path_of(stream, self.env, agent)
        return raw_rows_of(self.recording.parts, stream, path, span)


def _common(several: Sequence[RowFrames]) -> RowFrames:
    """Return the frames at which all agents have rows."""
    first, *others = several
    for places in others:
        if not np.array_equal(first.codes, places.codes):
            first = first[places.find(first) >= 0]
    return first
