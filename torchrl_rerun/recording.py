"""A recording in progress: steps of all environments in, a Rerun recording out.

This is what every front end feeds, whatever its environments look like; it knows arrays, and nothing of TorchRL.
"""

from __future__ import annotations

import functools
import os
import time
import warnings
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import rerun as rr
import rerun.blueprint as rrb
from rerun.chunk import Chunk

from torchrl_rerun.blueprint import layout
from torchrl_rerun.buffer import Arrays, Block, Buffer, Track
from torchrl_rerun.columns import ChunkFactory
from torchrl_rerun.episodes import Episodes, Event, Rows, resolve_envs
from torchrl_rerun.schema import Moment, Source, property_chunk
from torchrl_rerun.sinks import FileSink, RecordingError
from torchrl_rerun.streams import Key, Stream
from torchrl_rerun.sums import Sums
from torchrl_rerun.writer import Writer


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
        continues: the recording whose counters go on, if it was of as many environments.

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
        continues: Recording | None = None,
    ) -> None:
        self.source = source
        self._sink = sink
        self._options = options
        chosen = resolve_envs(options.logged_envs, source.envs)
        self._select = _selection(chosen, source.envs)
        self.envs = [source.first_env + env for env in chosen]
        self.episodes, self._sums = Episodes(len(chosen)), Sums()
        if continues is not None and continues.source.batch_size == source.batch_size:
            self.episodes, self._sums = continues.episodes, continues._sums  # noqa: SLF001 - of the same class
        self.recording_id = recording_id
        self.application_id = options.application_id or source.name or "torchrl_rerun"
        self._factory = ChunkFactory(self.envs, source.fps, self._sums)
        self._writer: Writer | None = None
        self._described: list[list[Stream]] = [[] for _ in Moment]
        self._small = self._buffer(options.buffer_bytes)
        self._bulky = self._buffer(options.buffer_bytes)
        self._error: Exception | None = None
        self._failed_at: int | None = None
        self._warned = False
        self._closed = False
        self.process = os.getpid()

    def _buffer(self, capacity: int) -> Buffer:
        return Buffer(len(self.envs), capacity, self._hand_over, self._alive, self._options.flush_seconds)

    # --- what is recorded ---

    @property
    def streams(self) -> list[Stream]:
        """All streams, in the order in which they were described."""
        return [stream for streams in self._described for stream in streams]

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
            streams: what they are; sums come last.
        """
        if not streams:
            return
        self._described[moment] = list(streams)
        tracks = [*_tracks(moment, streams, {stream.sums for stream in self.streams})]
        for buffer, bulk in ((self._small, False), (self._bulky, True)):
            added = [track for track, is_bulky in tracks if is_bulky is bulk]
            if added:
                buffer.tracks = (*buffer.tracks, *added)
        self._share_out()
        self._announce([track for track, _ in tracks])

    def _share_out(self) -> None:
        """Divide the bound on what waits: small rows get what full blocks of them need, and up to half of it."""
        both = self._options.buffer_bytes
        if self._small.tracks and self._bulky.tracks:
            small = min(both // 2, self._small.bytes_at_most)
            self._small.capacity, self._bulky.capacity = small, both - small

    def _announce(self, tracks: Sequence[Track]) -> None:
        if self._writer is None:
            self._writer = Writer(self._sink, application_id=self.application_id, recording_id=self.recording_id)
            info = rr.archetypes.RecordingInfo(name=self._sink.path.stem, start_time=time.time_ns())
            self._writer.put([Chunk.from_property("RecordingInfo", info)])
        described = [(stream, moment) for moment in Moment for stream in self._described[moment]]
        self._writer.put([property_chunk(self.source, self.envs, described), *self._factory.static(tracks)])

    # --- steps ---

    def reset(self, observed: Arrays, mask: npt.NDArray[np.bool_] | None = None) -> None:
        """Environments were reset.

        Args:
            observed: what was observed, for all environments: an array ``[envs, *stream.shape]`` for each stream that
                was described for this moment but the sums; None for what is missing.
            mask: bool ``[envs]``, which ones were reset; None: all. The values of the others are not looked at.
        """
        rows = self._rows(mask)
        if rows is None or len(rows):
            self._append(self.episodes.event(rows, time.time_ns(), is_step=False), (observed, None, None))

    def step(self, acted: Arrays, observed: Arrays, stepped: Arrays, mask: npt.NDArray[np.bool_] | None = None) -> None:
        """Environments were stepped.

        Args:
            acted: what the policy wrote, for all environments; it belongs to their frames before this one.
            observed: what was observed then, for all environments.
            stepped: what else came of it, rewards for one, for all environments.
            mask: bool ``[envs]``, which ones were stepped; None: all. The values of the others are not looked at.
        """
        rows = self._rows(mask)
        if rows is None or len(rows):
            self._append(self.episodes.event(rows, time.time_ns(), is_step=True), (observed, stepped, acted))
        else:
            self.episodes.steps += 1

    def never_reset(self, mask: npt.NDArray[np.bool_] | None = None) -> npt.NDArray[np.bool_] | None:
        """Which of the environments of ``mask`` would be stepped without ever having been reset; None: none of them."""
        fresh = self.episodes.never_begun(self._rows(mask))
        if fresh is not None and not len(fresh):
            return None
        out = np.zeros(self.source.envs, np.bool_)
        at = np.arange(len(self.envs)) if fresh is None else fresh
        out[at if self._select is None else np.arange(len(out))[self._select][at]] = True
        return out

    def _rows(self, mask: npt.NDArray[np.bool_] | None) -> Rows:
        if mask is None:
            return None
        if self._select is not None:
            mask = mask[self._select]
        return None if mask.all() else np.flatnonzero(mask)

    def _append(self, event: Event, moments: tuple[Arrays, Arrays | None, Arrays | None]) -> None:
        if self._select is not None:
            observed, stepped, acted = (self._selected(arrays) for arrays in moments)
            moments = observed or (), stepped, acted
        for arrays in moments:
            for array in arrays or ():
                if array is None:  # `in` would compare arrays
                    self._split_where_keys_are_missing(moments)
        for buffer in (self._small, self._bulky):
            if buffer.tracks and not buffer.add(event, moments, self.episodes.positions):
                self._warn_of_failure()
                break
        self.episodes.apply(event)
        if self._writer is not None and self._writer.error is not None:
            self._warn_of_failure()

    def _selected(self, arrays: Arrays | None) -> Arrays | None:
        """The values of those environments that are recorded."""
        if not arrays:
            return arrays
        select, envs = self._select, self.source.envs
        return [array if array is None or len(array) != envs else array[select] for array in arrays]

    def _split_where_keys_are_missing(self, moments: Sequence[Arrays | None]) -> None:
        """Keys that now come without the others of their track get a track of their own: each has its own rows then."""
        for buffer in (self._small, self._bulky):
            tracks: list[Track] = []
            for track in buffer.tracks:
                values = moments[track.moment]
                there = [i for i in track.at if values is not None and values[i] is not None]
                if there and len(there) < len(track.at):
                    tracks += [track.part(there), track.part([i for i in track.at if i not in there])]
                else:
                    tracks.append(track)
            if len(tracks) > len(buffer.tracks):
                buffer.tracks = tuple(tracks)

    # --- out ---

    def dump(self) -> None:
        """Return when everything so far is with the sink.

        Raises:
            RecordingError: it isn't, and why.
        """
        if not self.alive:
            return
        self._flush()
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
        self._flush()
        if self._writer is None:  # nothing was written: an empty file would be in the way of the next try
            try:
                self._raise_failure()
            finally:
                self._sink.discard()
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
        if self._error is None:
            self._error, self._failed_at = error, self.episodes.frames
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

    def _flush(self) -> None:
        self._small.flush()
        self._bulky.flush()

    def _hand_over(self, buffer: Buffer, block: Block) -> None:
        assert self._writer is not None, "blocks exist only once something was described"
        self._writer.put(self._factory.chunks(block), functools.partial(buffer.give_back, block))

    def _alive(self) -> bool:
        return self._error is None and self._writer is not None and self._writer.alive()

    @property
    def written_frames(self) -> int:
        """How many frames, from the first one on, are with the sink in full."""
        first = [self._small.oldest_waiting, self._bulky.oldest_waiting, self._failed_at]
        return min([frame for frame in first if frame is not None], default=self.episodes.frames)

    def _failure(self) -> RecordingError | None:
        error = self._error or (self._writer.error if self._writer is not None else None)
        lost = self.episodes.frames - self.written_frames
        if error is None:
            error, lost = self._sink.trouble(), self.episodes.frames
        if error is None:
            return None
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


def _selection(chosen: Sequence[int], envs: int) -> slice | npt.NDArray[np.intp] | None:
    """What picks the environments ``chosen`` out of an array of all of them; None: they are all."""
    if len(chosen) == envs:
        return None
    if list(chosen) == list(range(chosen[0], chosen[-1] + 1)):
        return slice(chosen[0], chosen[-1] + 1)  # a view, where an array of indices would copy
    return np.array(chosen, np.intp)


def _tracks(moment: Moment, streams: Sequence[Stream], summed: Collection[Key]) -> Iterator[tuple[Track, bool]]:
    """Streams as tracks: small ones, bulky ones and sums by themselves; and whether they are bulky.

    Rewards are never among the bulky ones: a block must hold them and their sums.
    """
    places: dict[bool, list[int]] = {False: [], True: []}
    for i, stream in enumerate(streams):
        if not stream.sums:
            places[stream.is_bulky and stream.key not in summed].append(i)
    for is_bulky, at in places.items():
        if at:
            yield Track(moment, tuple(streams[i] for i in at), tuple(at)), is_bulky
    sums = tuple(stream for stream in streams if stream.sums)
    if sums:
        yield Track(moment, sums), False
