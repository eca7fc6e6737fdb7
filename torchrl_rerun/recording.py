"""A recording in progress: steps of all environments in, a Rerun recording out.

This is what every front end feeds, whatever its environments look like; it knows arrays, and nothing of TorchRL.
"""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
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


@dataclass
class _Tracks:
    """The tracks of each moment, as numbers into the buffer's list, and which return sums up which reward."""

    tracks: list[Track] = field(default_factory=list)
    moments: list[Moment] = field(default_factory=list)
    rewards: dict[Key, Key] = field(default_factory=dict)

    def pairs(self) -> list[tuple[Track, Moment]]:
        return list(zip(self.tracks, self.moments, strict=True))

    def of(self, moment: Moment) -> list[Track]:
        return [track for track, when in self.pairs() if when is moment]


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
        self._layout = _Tracks()
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
        return [stream for track in self._layout.tracks for stream in track.streams]

    @property
    def path(self) -> Path:
        """The file that is written."""
        return self._sink.path

    @property
    def alive(self) -> bool:
        """Whether this recording can take more: it is open, of this process, and nothing has failed."""
        return not self._closed and self.process == os.getpid()

    def describe(self, moment: Moment, streams: Sequence[Stream], *, rewards: Mapping[Key, Key] | None = None) -> None:
        """Say what is seen at a moment, before the first values of it.

        Args:
            moment: when the streams have rows.
            streams: what they are.
            rewards: for streams of ``Moment.RETURNED``, the key of the reward that each sums up.
        """
        if not streams:
            return
        self._layout.tracks.append(Track(tuple(streams)))
        self._layout.moments.append(moment)
        self._layout.rewards.update(rewards or {})
        self._announce([self._layout.tracks[-1]])

    def _announce(self, tracks: Sequence[Track]) -> None:
        self._buffer.tracks = tuple(self._layout.tracks)
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
        described = [(stream, moment) for track, moment in self._layout.pairs() for stream in track.streams]
        self._writer.put([property_chunk(self.source, self.envs, described), *self._factory.static(tracks)])

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
        self._append({Moment.OBSERVED: values}, rows)

    def step(self, acted: Values, values: Values, mask: npt.NDArray[np.bool_] | None = None) -> None:
        """Environments were stepped.

        Args:
            acted: what the policy wrote, for all environments; it belongs to their frames before this one.
            values: what came of it: observations, rewards, flags, for all environments.
            mask: bool ``[envs]``, which ones were stepped; None: all. The values of the others are not looked at.
        """
        rows = self._rows(mask)
        if rows is not None and not len(rows):
            self.episodes.steps += 1
            return
        before = self.episodes.position.copy()
        self.episodes.advance(rows)
        self._append({Moment.ACTED: acted, Moment.OBSERVED: values, Moment.STEPPED: values}, rows, before)

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
        self, moments: Mapping[Moment, Values], rows: Rows, before: npt.NDArray[np.int64] | None = None
    ) -> None:
        selected = {moment: self._selected(values) for moment, values in moments.items()}
        selected[Moment.RETURNED] = self._returns(selected.get(Moment.STEPPED, {}), rows)
        self._split_where_keys_are_missing(selected)
        block = self._buffer.frame()
        if block is None:
            self._warn_of_failure()
            return
        for number, (track, moment) in enumerate(self._layout.pairs()):
            values = selected.get(moment)
            if values is None or track.streams[0].key not in values:
                continue
            position = before if moment is Moment.ACTED and before is not None else self.episodes.position
            block.append(number, rows, position, values)
        if not self._alive():
            self._warn_of_failure()

    def _selected(self, values: Values) -> Values:
        if self._select is None:
            return values
        return {key: value if len(value) != self.source.envs else value[self._select] for key, value in values.items()}

    def _returns(self, stepped: Values, rows: Rows) -> Values:
        rewards = {key: stepped[reward] for key, reward in self._layout.rewards.items() if reward in stepped}
        totals = self.episodes.returns(rewards, rows)
        for track in self._layout.of(Moment.RETURNED):
            for stream in track.streams:  # before the first step there is nothing to add up
                totals.setdefault(stream.key, np.zeros((len(self.envs), *stream.shape)))
        return totals

    def _split_where_keys_are_missing(self, selected: Mapping[Moment, Values]) -> None:
        """Keys that now come without the others of their track get a track of their own: each has its own rows then."""
        for number, (track, moment) in enumerate(self._layout.pairs()):
            if moment not in selected:
                continue
            there = tuple(stream for stream in track.streams if stream.key in selected[moment])
            if there and len(there) < len(track.streams):
                missing = tuple(stream for stream in track.streams if stream not in there)
                self._layout.tracks[number] = Track(there)
                self._layout.tracks.append(Track(missing))
                self._layout.moments.append(moment)
                self._buffer.tracks = tuple(self._layout.tracks)
                return self._split_where_keys_are_missing(selected)
        return None

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
