"""A recording in progress: steps of all environments in, a Rerun recording out.

This is what every front end feeds, whatever its environments look like; it knows arrays, and nothing of TorchRL.
"""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import rerun as rr
import rerun.blueprint as rrb
from rerun.chunk import Chunk

from torchrl_rerun.blueprint import layout
from torchrl_rerun.buffer import Buffer, Track
from torchrl_rerun.columns import ChunkFactory
from torchrl_rerun.episodes import Episodes, Rows, resolve_envs
from torchrl_rerun.schema import Moment, Source, property_chunk
from torchrl_rerun.sinks import FileSink, RecordingError
from torchrl_rerun.streams import Key, Stream
from torchrl_rerun.writer import Writer

Values = Mapping[Key, npt.NDArray[Any]]
"""Per key, the values of all environments: ``[envs, *stream.shape]``, or object arrays ``[envs]``."""


@dataclass(frozen=True)
class Options:
    """How it is recorded: the part of the recorder's arguments that isn't about TorchRL."""

    logged_envs: int | slice | Sequence[int] | str | None = None
    blueprint: bool | rrb.Blueprint = True
    application_id: str | None = None
    recording_id: str | None = None
    buffer_bytes: int = 64 << 20
    flush_seconds: float = 5.0


class Recording:
    """Counts episodes, buffers steps and has them written to a sink.

    Args:
        sink: an open sink; it is closed with the recording.
        source: the environments.
        options: how to record them.
        recording_id: id of the Rerun recording.
        episodes: counters to go on from.

    Raises:
        IndexError: ``logged_envs`` names an environment that isn't there.
    """

    def __init__(
        self,
        sink: FileSink,
        source: Source,
        options: Options,
        *,
        recording_id: str,
        episodes: Episodes | None = None,
    ) -> None:
        self.source = source
        self._sink = sink
        self._options = options
        chosen = resolve_envs(options.logged_envs, source.envs)
        self._select = None if len(chosen) == source.envs else np.array(chosen, np.intp)
        self.envs = [source.first_env + env for env in chosen]
        self.episodes = episodes or Episodes(len(chosen))
        self.recording_id = recording_id
        self.application_id = options.application_id or source.name or "torchrl_rerun"
        self._tracks: list[Track] = []
        self._sums: list[Stream] = []
        self._expected = [0] * len(Moment)
        self._factory = ChunkFactory(self.envs, source.fps)
        self._writer: Writer | None = None
        self._buffer = Buffer(len(chosen), options.buffer_bytes, self._hand_over, self._alive, options.flush_seconds)
        self._error: Exception | None = None
        self._warned = False
        self._closed = False
        self.process = os.getpid()

    # --- what is recorded ---

    @property
    def streams(self) -> list[Stream]:
        """All streams, in the order in which they were described."""
        return [stream for track in self._tracks for stream in track.streams]

    @property
    def path(self) -> Path:
        """The file that is written."""
        return self._sink.path

    @property
    def alive(self) -> bool:
        """Whether this recording is open, and of this process."""
        return not self._closed and self.process == os.getpid()

    def describe(self, moment: Moment, streams: Sequence[Stream]) -> None:
        """Say what is seen at a moment, before the first values of it.

        Args:
            moment: when the streams have rows. Those that sum up a reward are observed.
            streams: what they are.
        """
        if not streams:
            return
        track = Track(tuple(streams), moment)
        self._tracks.append(track)
        self._sums += [stream for stream in streams if stream.sums]
        self._expected[moment] += len(streams)
        self._announce(track)

    def _announce(self, track: Track) -> None:
        self._buffer.tracks = tuple(self._tracks)
        if self._writer is None:
            self._writer = Writer(
                self._sink,
                chunks=self._factory.chunks,
                done=self._buffer.give_back,
                application_id=self.application_id,
                recording_id=self.recording_id,
            )
            info = rr.archetypes.RecordingInfo(name=self._sink.path.stem, start_time=time.time_ns())
            self._writer.put([Chunk.from_property("RecordingInfo", info)])
        described = [(stream, track.moment) for track in self._tracks for stream in track.streams]
        self._writer.put([property_chunk(self.source, self.envs, described), *self._factory.static([track])])

    # --- steps ---

    def reset(self, values: Values, mask: npt.NDArray[np.bool_] | None = None) -> None:
        """Environments were reset.

        Args:
            values: what was observed, for all environments.
            mask: bool ``[envs]``, which ones were reset; None: all. The values of the others are not looked at.
        """
        rows = self._rows(mask)
        if rows is not None and not len(rows):
            return
        self.episodes.begin(rows)
        self._append(rows, self._with_sums(values, {}, rows), {}, {}, self.episodes.position)

    def step(self, acted: Values, observed: Values, stepped: Values, mask: npt.NDArray[np.bool_] | None = None) -> None:
        """Environments were stepped.

        Args:
            acted: what the policy wrote, for all environments; it belongs to their frames before this one.
            observed: what was observed then, for all environments.
            stepped: what else came of it, rewards for one, for all environments.
            mask: bool ``[envs]``, which ones were stepped; None: all. The values of the others are not looked at.
        """
        rows = self._rows(mask)
        if rows is not None and not len(rows):
            self.episodes.steps += 1
            return
        before = self.episodes.position.copy()
        self.episodes.advance(rows)
        self._append(rows, self._with_sums(observed, stepped, rows), stepped, acted, before)

    def never_reset(self, mask: npt.NDArray[np.bool_] | None = None) -> npt.NDArray[np.bool_] | None:
        """Which of the environments of ``mask`` would be stepped without ever having been reset; None: none of them."""
        fresh = self.episodes.never_begun(self._rows(mask))
        if fresh is not None and not len(fresh):
            return None
        out = np.zeros(self.source.envs, np.bool_)
        at = np.arange(len(self.envs)) if fresh is None else fresh
        out[at if self._select is None else self._select[at]] = True
        return out

    def _rows(self, mask: npt.NDArray[np.bool_] | None) -> Rows:
        if mask is None:
            return None
        if self._select is not None:
            mask = mask[self._select]
        return None if mask.all() else np.flatnonzero(mask)

    def _append(
        self, rows: Rows, observed: Values, stepped: Values, acted: Values, before: npt.NDArray[np.int64]
    ) -> None:
        moments = (observed, stepped, acted)  # in the order of Moment
        for values, expected in zip(moments, self._expected, strict=True):
            if values and len(values) != expected:
                self._split_where_keys_are_missing(moments)
                break
        block = self._buffer.frame()
        if block is None:
            self._warn_of_failure()
            return
        for number, track in enumerate(self._tracks):
            values = moments[track.moment]
            if track.streams[0].key in values:
                position = before if track.moment is Moment.ACTED else self.episodes.position
                block.append(number, rows, position, self._selected(values))
        if not self._alive():
            self._warn_of_failure()

    def _selected(self, values: Values) -> Values:
        """The values of those environments that are recorded."""
        if self._select is None:
            return values
        return {key: value if len(value) != self.source.envs else value[self._select] for key, value in values.items()}

    def _with_sums(self, observed: Values, stepped: Values, rows: Rows) -> Values:
        """What was observed, and the running sums of the rewards."""
        if not self._sums:
            return observed
        rewards = self._selected({stream.sums: stepped[stream.sums] for stream in self._sums if stream.sums in stepped})
        sums = {stream.key: self.episodes.returns(stream, rewards.get(stream.sums), rows) for stream in self._sums}
        return {**observed, **sums}

    def _split_where_keys_are_missing(self, moments: Sequence[Values]) -> None:
        """Keys that now come without the others of their track get a track of their own: each has its own rows then."""
        for number, track in enumerate(self._tracks):
            there = tuple(stream for stream in track.streams if stream.key in moments[track.moment])
            if there and len(there) < len(track.streams):
                missing = tuple(stream for stream in track.streams if stream not in there)
                self._tracks[number] = Track(there, track.moment)
                self._tracks.append(Track(missing, track.moment))
                self._buffer.tracks = tuple(self._tracks)

    # --- out ---

    def dump(self) -> None:
        """Return when everything so far is with the sink.

        Raises:
            RecordingError: it isn't, and why.
        """
        if not self.alive:
            return
        self._buffer.flush()
        if self._writer is not None:
            self._writer.flush()
        self._raise_failure()

    def close(self) -> None:
        """Dump, write the layout and end the recording. Closing again does nothing.

        Raises:
            RecordingError: something could not be written, and why.
        """
        if not self.alive:
            return
        self._closed = True
        self._buffer.flush()
        if self._writer is None:
            self._sink.close()
            return
        self._writer.finish()
        try:
            self._raise_failure()
            self._embed_layout()
        finally:
            self._sink.close()

    def abandon(self) -> None:
        """Stop, and remove the file: what was begun can't be recorded as the user asked."""
        self._closed = True
        if self._writer is not None:
            self._writer.finish()
        self._sink.discard()

    def fail(self, error: Exception) -> None:
        """Stop recording because of an error of our own; it is raised by the next :meth:`dump` or :meth:`close`."""
        self._error = self._error or error
        self._warn_of_failure()

    def _embed_layout(self) -> None:
        wanted = self._options.blueprint
        if wanted is False:
            return
        try:
            made = layout(self.streams, self._shown_envs(), self.source.fps) if wanted is True else wanted
            self._sink.embed(made, application_id=self.application_id)
        except Exception as error:
            warnings.warn(f"the recording is complete, but has no layout: {error}", RuntimeWarning, stacklevel=2)

    def _shown_envs(self) -> list[int]:
        """Those recorded here and in the files of the other workers, which the viewer shows as one recording."""
        here = [env - self.source.first_env for env in self.envs]
        numbers = self._sink.family()
        return [number * self.source.envs + env for number in numbers for env in here] if numbers else self.envs

    def _hand_over(self, block: Any) -> None:
        assert self._writer is not None, "blocks exist only once something was described"
        self._writer.put(block)

    def _alive(self) -> bool:
        return self._error is None and self._writer is not None and self._writer.alive()

    @property
    def lost_frames(self) -> int:
        """Frames that were recorded and could not be written."""
        return self._buffer.lost_frames + (self._writer.lost_frames if self._writer is not None else 0)

    def _failure(self) -> RecordingError | None:
        error = self._error or (self._writer.error if self._writer is not None else None)
        if error is None:
            error = self._sink.trouble()
        if error is None:
            return None
        lost = self.lost_frames + (self._buffer.waiting_frames if not self._alive() else 0)
        failure = RecordingError(f"recording to {self._sink.path} failed, {lost} frames were lost: {error}")
        failure.__cause__ = error
        return failure

    def _raise_failure(self) -> None:
        failure = self._failure()
        if failure is not None:
            raise failure

    def _warn_of_failure(self) -> None:
        if self._warned:
            return
        self._warned = True
        failure = self._failure()
        warnings.warn(f"{failure} (training goes on; dump() and close() will raise this)", RuntimeWarning, stacklevel=2)
