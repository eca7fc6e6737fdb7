"""History: what a recording holds of one environment, put together to steps in TorchRL's own form."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from tensordict import NonTensorData, NonTensorStack, TensorDict

from torchrl_rerun.chunks import ALL, Codes, Part, Span, episode_span
from torchrl_rerun.decoding import Stored, decoded, from_keyframe, stored_in
from torchrl_rerun.endings import Endings, Ends
from torchrl_rerun.images import row_of
from torchrl_rerun.keeping import Episode
from torchrl_rerun.rows import Held, Rows, codes_in, held_of, rows_in
from torchrl_rerun.schema import Described, Moment, Schema
from torchrl_rerun.streams import Key, Stream, entity_path, name_of

_EPOCH = datetime.fromtimestamp(0, UTC)


class Run(Protocol):
    """A recording, in one or several parts.

    Attributes:
        parts: what follows one another.
        schema: what it says of itself.
    """

    @property
    def parts(self) -> Sequence[Part]: ...  # noqa: D102

    @property
    def schema(self) -> Schema: ...  # noqa: D102


class Transitions(NamedTuple):
    """Steps of which everything is known that is wanted, ``[n]``.

    Attributes:
        before: the frames from which they lead.
        after: those to which they lead.
    """

    before: Codes
    after: Codes

    @property
    def span(self) -> Span:
        """From the first to the last of their frames."""
        return int(self.before[0]), int(self.after[-1])


class _Coming(NamedTuple):
    """Pictures that aren't decoded yet.

    Attributes:
        codes: where those are that are wanted.
        stored: these, and of a video those without which they can't be decoded.
    """

    codes: Codes
    stored: Sequence[Stored]


class History:
    """One environment of a recording.

    Args:
        run: the recording.
        env: the environment's index.
    """

    def __init__(self, run: Run, env: int) -> None:
        self.run = run
        self.env = env

    def described(self, keys: Sequence[Key] | None) -> list[Described]:
        """How keys are recorded; None: all but the returns that the recorder worked out, and what another one holds.

        Raises:
            KeyError: one isn't.
        """
        schema = self.run.schema
        by_key = {stream.key: (stream, moment) for stream, moment in schema.described}
        if keys is None:
            keys = [key for key, (stream, _) in by_key.items() if not stream.sums]
        for key in keys:
            if key not in by_key:
                raise KeyError(f"{name_of(key)} is not recorded, but {', '.join(map(name_of, by_key))}")
        is_elsewhere = self.env != schema.envs[0]
        return [by_key[key] for key in keys if not (by_key[key][0].shared and is_elsewhere)]

    # --- rows ---

    def rows(self, stream: Stream, span: Span = ALL) -> Rows:
        """The rows of a key, of all agents together."""
        lanes = [self._of_lane(stream, lane, span) for lane in range(stream.lanes)]
        if not stream.agents:
            return lanes[0]
        common = _common([lane.codes for lane in lanes])  # a kill comes between one agent's rows and the next one's
        return Rows(common, np.stack([lane.values[_at(lane.codes, common)] for lane in lanes], axis=1))

    def codes(self, stream: Stream, span: Span = ALL) -> Codes:
        """Where a key has rows, which are not decoded."""
        return _common([codes_in(self._held(stream, lane, span)) for lane in range(stream.lanes)])

    def _of_lane(self, stream: Stream, lane: int, span: Span) -> Rows:
        if not stream.is_picture:
            return rows_in(self._held(stream, lane, span), stream)
        coming = self._coming(stream, lane, span)
        [values] = _placed(stream, coming, [coming.codes])
        return Rows(coming.codes, values)

    def _coming(self, stream: Stream, lane: int, span: Span) -> _Coming:
        """The pictures in a span, not decoded; of a video what can be decoded, from the keyframe before it on."""
        since = span
        if stream.is_video and span != ALL:
            since = span[0] >> 32 << 32, span[1]  # each episode begins with a keyframe
        stored = list(self.stored(stream, lane, since))
        if since != span:
            starts = [number for number, each in enumerate(stored) if each.is_keyframe and _code(each) <= span[0]]
            stored = stored[starts[-1] if starts else 0 :]
        stored = list(from_keyframe(stored))
        codes = np.sort(np.array([code for each in stored if (code := _code(each)) >= span[0]], np.int64))
        return _Coming(codes, stored)

    def stored(self, stream: Stream, lane: int, span: Span) -> Iterator[Stored]:
        """The pictures of a key, of one agent, as they are stored: a chunk at a time in memory."""
        return (each for _, batch in self._held(stream, lane, span) for each in stored_in(batch))

    def _held(self, stream: Stream, lane: int, span: Span) -> Iterator[Held]:
        env = None if self.run.schema.split == "episode" else self.env
        return held_of(self.run.parts, entity_path(stream, env, lane), span)

    # --- steps ---

    def transitions(self, wanted: Sequence[Described], span: Span = ALL) -> Transitions:
        """From where to where there are steps, without reading any values."""
        return self._transitions(wanted, {stream.key: self.codes(stream, span) for stream, _ in wanted}, span)

    def steps(self, wanted: Sequence[Described], span: Span = ALL, at: Transitions | None = None) -> TensorDict:
        """Steps: what was seen and done at t at the root, what came of it below ``"next"``.

        Args:
            wanted: of which keys.
            span: where.
            at: which of them, as :meth:`transitions` says of the same keys or more; None: all.
        """
        read = {
            # Agents' pictures are put together, which needs all of them.
            stream.key: self.rows(stream, span)
            if stream.agents or not stream.is_picture
            else self._coming(stream, 0, span)
            for stream, _ in wanted
        }
        before, after = at or self._transitions(wanted, {key: rows.codes for key, rows in read.items()}, span)
        out = TensorDict(batch_size=[len(before)])
        following = TensorDict(batch_size=[len(before)])
        for stream, moment in wanted:
            places = []
            if moment is not Moment.STEPPED:
                places.append((out, before))
            if moment is not Moment.ACTED:
                places.append((following, after))
            found = _taken(stream, read.pop(stream.key), [codes for _, codes in places])
            for (part, _), values in zip(places, found, strict=True):
                _set(part, stream, values)
        return out.set("next", following)

    def _transitions(self, wanted: Sequence[Described], codes: dict[Key, Codes], span: Span) -> Transitions:
        of = {moment: [codes[stream.key] for stream, which in wanted if which is moment] for moment in Moment}
        frames = _common(of[Moment.OBSERVED]) if of[Moment.OBSERVED] else self._frames(span)
        before, after = frames[:-1], frames[1:]
        is_whole = before >> 32 == after >> 32
        for acted in of[Moment.ACTED]:
            is_whole &= _holds(acted, before)
        for stepped in of[Moment.STEPPED]:
            is_whole &= _holds(stepped, after)
        return Transitions(before[is_whole], after[is_whole])

    def _frames(self, span: Span) -> Codes:
        """Where something was observed, where no observation is wanted.

        Raises:
            KeyError: no recorded key says it.
        """
        described = [each for each in self.run.schema.described if not each[0].shared]
        observed = [stream for stream, moment in described if moment is Moment.OBSERVED]
        if observed:
            return self.codes(min(observed, key=_cost), span)
        stepped = [stream for stream, moment in described if moment is Moment.STEPPED]
        if stepped:
            after = self.codes(min(stepped, key=_cost), span)
            return np.unique(np.concatenate([after - 1, after]))
        raise KeyError("neither observations nor rewards nor flags are recorded: there are no steps to give back")

    # --- episodes ---

    def episodes(self) -> list[Episode]:
        """What the episodes came to, as far as they are recorded. What ended before its first step is none."""
        streams = [stream for stream, _ in self.run.schema.described if not stream.shared]
        sums = next((stream for stream in streams if stream.sums), None)
        endings = Endings(self.run.schema.ends)
        flags = [stream for stream in streams if stream.key in endings.keys]
        if not streams:
            return []
        spine = sums or min(flags or streams, key=_cost)
        held = [
            (codes, *map(_numbers, batch.select(["step", "log_time"]))) for codes, batch in self._held(spine, 0, ALL)
        ]
        if not held:
            return []
        codes, step, time = (np.concatenate(columns) for columns in zip(*held, strict=True))
        last = np.append(np.flatnonzero(codes[1:] >> 32 != codes[:-1] >> 32), len(codes) - 1)
        first = np.append(0, last[:-1] + 1)
        ends = codes[last]
        returns = np.full(len(last), np.nan) if sums is None else self._returns(sums, ends)
        raised = {stream.key: self._raised(stream, ends) for stream in flags}
        ended = endings.of(raised.get, len(ends)) or Ends(*np.zeros((2, len(ends)), bool))
        terminated, truncated = ended
        numbers, lengths = ends >> 32, ends & 0xFFFFFFFF
        first_steps = step[first] - (codes[first] & 0xFFFFFFFF)
        return [
            Episode(
                env=self.env,
                episode=int(numbers[i]),
                episode_return=float(returns[i]),
                length=int(lengths[i]),
                terminated=bool(terminated[i]),
                truncated=bool(truncated[i]),
                interrupted=not (terminated[i] or truncated[i]),
                first_step=int(first_steps[i]),
                start_time=_EPOCH + timedelta(microseconds=int(time[first[i]]) // 1000),
            )
            for i in np.flatnonzero(lengths)
        ]

    def _raised(self, stream: Stream, ends: Codes) -> npt.NDArray[np.bool_]:
        """A flag where episodes end, ``[n, numbers]``; down where it isn't known."""
        rows = self.rows(stream)
        there = _holds(rows.codes, ends)
        raised = np.zeros((len(ends), math.prod(stream.shape)), bool)
        raised[there] = rows.values[_at(rows.codes, ends[there])].reshape(int(there.sum()), -1)
        return raised

    def _returns(self, sums: Stream, ends: Codes) -> npt.NDArray[np.float64]:
        """What the rewards added up to where episodes end: the mean over agents; NaN where it isn't known."""
        rows = self.rows(sums)
        there = _holds(rows.codes, ends)
        returns = np.full(len(ends), np.nan)
        returns[there] = rows.values[_at(rows.codes, ends[there])].reshape(int(there.sum()), -1).mean(axis=1)
        return returns

    def episode_transitions(self, wanted: Sequence[Described], episodes: Iterable[int]) -> list[Transitions]:
        """The same as :meth:`transitions` for each of some episodes, read in one go."""
        before, after = self.transitions(wanted)
        ends = [np.searchsorted(before, [first, last + 1]) for first, last in map(episode_span, episodes)]
        return [Transitions(before[first:end], after[first:end]) for first, end in ends]


# --- codes ---


def _numbers(column: pa.Array) -> npt.NDArray[np.int64]:
    numbers: npt.NDArray[np.int64] = column.cast(pa.int64()).to_numpy()
    return numbers


def _code(each: Stored) -> int:
    return each.episode << 32 | each.episode_step


def _placed(stream: Stream, coming: _Coming, wanted: Sequence[Codes]) -> list[npt.NDArray[Any]]:
    """Pictures, decoded once, for each of several lists of where they are wanted: none is in memory beside these."""
    shape = () if stream.dtype == "object" else stream.held_shape
    placed = [np.empty((len(codes), *shape), stream.storage) for codes in wanted]
    for picture in decoded(stream, coming.stored):
        row, code = row_of(stream, picture.pixels), picture.episode << 32 | picture.episode_step
        for codes, values in zip(wanted, placed, strict=True):
            at = int(np.searchsorted(codes, code))
            if at < len(codes) and codes[at] == code:
                values[at] = row
    return placed


def _taken(stream: Stream, rows: Rows | _Coming, wanted: Sequence[Codes]) -> list[npt.NDArray[Any]]:
    """The values at some rows, for each of several lists of these, which share no memory."""
    if isinstance(rows, _Coming):
        return _placed(stream, rows, wanted)
    first, *others = (rows.values[_at(rows.codes, codes)] for codes in wanted)
    return [first, *(values.copy() for values in others)]


def _common(several: Sequence[Codes]) -> Codes:
    """Where all have rows."""
    first, *others = several
    for codes in others:
        if not np.array_equal(first, codes):
            first = np.intersect1d(first, codes, assume_unique=True)
    return first


def _holds(codes: Codes, wanted: Codes) -> npt.NDArray[np.bool_]:
    """Which of ``wanted`` are among them."""
    if not len(codes):
        return np.zeros(len(wanted), bool)
    held: npt.NDArray[np.bool_] = codes[np.minimum(np.searchsorted(codes, wanted), len(codes) - 1)] == wanted
    return held


def _at(codes: Codes, wanted: Codes) -> slice | npt.NDArray[np.intp]:
    """At which rows those are that are ``wanted``, all of which are there."""
    if not len(wanted):
        return slice(0, 0)
    first = int(np.searchsorted(codes, wanted[0]))
    if np.array_equal(codes[first : first + len(wanted)], wanted):
        return slice(first, first + len(wanted))
    return np.searchsorted(codes, wanted)


# --- values ---


def _cost(stream: Stream) -> tuple[bool, int]:
    """What it takes to read it."""
    return stream.is_picture, stream.row_bytes


def as_tensor(stream: Stream, values: npt.NDArray[Any]) -> Any:
    """Rows of a key as they were given to the recorder: a tensor, or a list of non-tensor data."""
    if stream.dtype == "object":
        return list(values)
    if not values.flags.writeable or not values.flags.c_contiguous:
        values = np.array(values, order="C")
    tensor = torch.from_numpy(values)
    return tensor.view(torch.bfloat16) if stream.dtype == "bfloat16" else tensor


def _set(tensordict: TensorDict, stream: Stream, values: npt.NDArray[Any]) -> None:
    if stream.dtype != "object":
        tensordict.set(stream.key, as_tensor(stream, values))
    elif math.prod(tensordict.batch_size):
        tensordict.set(stream.key, NonTensorStack(*(NonTensorData(value) for value in values)))
