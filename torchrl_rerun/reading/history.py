"""History: what a recording holds of one environment, put together to steps in TorchRL's own form."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from tensordict import NonTensorData, TensorDict, TensorDictBase, lazy_stack

from torchrl_rerun.errors import warn
from torchrl_rerun.kinds.endings import Endings, Ends
from torchrl_rerun.kinds.episode import Episode
from torchrl_rerun.kinds.schema import Described, Moment, Schema
from torchrl_rerun.kinds.streams import Key, Stream, name_of
from torchrl_rerun.reading.padding import (
    Form,
    as_tensor,
    filling,
    give_agents,
    largest,
    mask_name,
    padded,
    put,
    shapes_of,
    taken,
)
from torchrl_rerun.reading.pictures import Stored, decoded, from_keyframe, is_video, row_of, stored_in
from torchrl_rerun.reading.rows import (
    Held,
    Places,
    Rows,
    held_of,
    in_order,
    is_of_kind,
    joined,
    places_in,
    rows_in,
    together,
)
from torchrl_rerun.rrd.frame_codes import ALL, FrameCodes, Span, episode_span
from torchrl_rerun.rrd.parts import RecordingPart

_EPOCH = datetime.fromtimestamp(0, UTC)


class Run(Protocol):
    """A recording, in one or several parts.

    Attributes:
        parts: what follows one another.
        schema: what it says of itself.
    """

    @property
    def parts(self) -> Sequence[RecordingPart]: ...  # noqa: D102

    @property
    def schema(self) -> Schema: ...  # noqa: D102


@dataclass(frozen=True)
class Transitions:
    """Steps from a recorded frame to the next one of the same episode, ``[n]``.

    Attributes:
        frames: all frames that are recorded, whichever key has a row there.
        at: at which of them a step leads to the one behind it.
    """

    frames: Places
    at: npt.NDArray[np.intp]

    def __len__(self) -> int:
        return len(self.at)

    def __getitem__(self, part: slice) -> Transitions:
        return Transitions(self.frames, self.at[part])

    @property
    def before(self) -> FrameCodes:
        """The frames from which they lead."""
        return self.frames.codes[self.at]

    @property
    def after(self) -> FrameCodes:
        """The frames to which they lead."""
        return self.frames.codes[self.at + 1]

    @property
    def span(self) -> Span:
        """From the first to the last of their frames."""
        return int(self.before[0]), int(self.after[-1])

    def alone(self) -> Transitions:
        """They alone, with no frames but theirs."""
        first, end = int(self.at[0]), int(self.at[-1]) + 2
        return Transitions(self.frames[first:end], self.at - first)

    def unbroken(self) -> list[Transitions]:
        """The parts of which each step follows the one before it."""
        ends = np.flatnonzero(self.before[1:] != self.after[:-1]) + 1
        bounds = [0, *ends.tolist(), len(self)]
        return [self[first:end] for first, end in itertools.pairwise(bounds) if end > first]


class _Coming(NamedTuple):
    """Pictures that aren't decoded yet.

    Attributes:
        places: where those are that are wanted.
        stored: these, and of a video those without which they can't be decoded. The number of each is its ``frame``; -1:
            it isn't wanted.
    """

    places: Places
    stored: Sequence[Stored]


class Values(NamedTuple):
    """What is recorded of a key at one side of steps.

    Attributes:
        is_next: whether it is what they led to.
        values: ``[n, ...]``, filled where there is none.
        is_there: where there are some, ``[n]``.
    """

    is_next: bool
    values: npt.NDArray[Any]
    is_there: npt.NDArray[np.bool_]


class History:
    """One environment of a recording.

    Args:
        run: the recording.
        env: the environment's index.
    """

    def __init__(self, run: Run, env: int) -> None:
        self.run = run
        self.env = env
        self._has_told = False

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
        common = _common([lane.places for lane in lanes])  # a kill comes between one agent's rows and the next one's
        return Rows(common, np.stack([lane.values[lane.places.find(common)] for lane in lanes], axis=1))

    def places(self, stream: Stream, span: Span = ALL) -> Places:
        """Where a key has rows, which are not decoded."""
        return _common([places_in(self._held(stream, lane, span)) for lane in range(stream.lanes)])

    def _of_lane(self, stream: Stream, lane: int, span: Span) -> Rows:
        if not stream.is_picture:
            return rows_in(self._held(stream, lane, span), stream)
        coming = self._coming(stream, lane, span)
        [values] = _placed(stream, coming, [np.arange(len(coming.places))])
        pictures = Rows(coming.places, values)
        if not stream.is_object:
            return pictures
        no_pictures = (held for held in self._held(stream, lane, span) if not is_of_kind(stream, held))
        others = rows_in(no_pictures, stream)
        both = joined([pictures.places, others.places]), np.concatenate([pictures.values, others.values])
        return in_order(Rows(*both))

    def _coming(self, stream: Stream, lane: int, span: Span) -> _Coming:
        """The pictures in a span, not decoded; of a video what can be decoded, from the keyframe before it on."""
        since = span
        if is_video(stream) and span != ALL:
            since = span[0] >> 32 << 32, span[1]  # each episode begins with a keyframe
        held = [each for each in self._held(stream, lane, since) if is_of_kind(stream, each)]
        stored, places = (
            [each for _, batch in held for each in stored_in(stream, batch)],
            joined(each.places for each in held),
        )
        wanted = np.flatnonzero(places.codes >= span[0])
        order = places[wanted].order
        wanted = wanted if order is None else wanted[order]
        numbers = np.full(len(stored), -1)
        numbers[wanted] = np.arange(len(wanted))
        stored = [each._replace(frame=number) for each, number in zip(stored, numbers.tolist(), strict=True)]
        if since != span:
            starts = [at for at, each in enumerate(stored) if each.is_keyframe and _code(each) <= span[0]]
            stored = stored[starts[-1] if starts else 0 :]
        stored = list(from_keyframe(stored))
        decodable = {each.frame for each in stored}
        return _Coming(*_without_lost(places[wanted], stored, decodable))

    def stored(self, stream: Stream, lane: int, span: Span) -> Iterator[Stored]:
        """The pictures of a key, of one agent, as they are stored: a chunk at a time in memory."""
        return (each for _, batch in self._held(stream, lane, span) for each in stored_in(stream, batch))

    def _held(self, stream: Stream, lane: int, span: Span) -> Iterator[Held]:
        return held_of(self.run.parts, stream, self.run.schema.path_of(stream, self.env, lane), span)

    # --- steps ---

    def transitions(self, wanted: Sequence[Described], span: Span = ALL, *, is_whole: bool = False) -> Transitions:
        """From where to where there are steps, without reading any values.

        Args:
            wanted: of which keys.
            span: where.
            is_whole: only those at which no key is missing.
        """
        places = {stream.key: self.places(stream, span) for stream, _ in wanted}
        found = self._transitions(wanted, places, span)
        if not is_whole:
            return found
        there = np.ones(len(found), np.bool_)
        for stream, moment in wanted:
            is_there = places[stream.key].find(found.frames) >= 0
            if moment is not Moment.STEPPED:
                there &= is_there[found.at]
            if moment is not Moment.ACTED:
                there &= is_there[found.at + 1]
        return Transitions(found.frames, found.at[there])

    def steps(
        self, wanted: Sequence[Described], span: Span = ALL, at: Transitions | None = None, form: Form | None = None
    ) -> TensorDict:
        """Steps: what was seen and done at t at the root, what came of it below ``"next"``.

        A key of which a value is missing, or whose values differ in shape, has a mask beside it.

        Args:
            wanted: of which keys.
            span: where.
            at: which of them, as :meth:`transitions` says of the same keys or more; None: all.
            form: of several steps that are to fit together; None: what these need.
        """
        form = Form() if form is None else form
        name = mask_name(self.run.schema)
        at, read = self._read(wanted, span, at)
        root, following = TensorDict(batch_size=[len(at)]), TensorDict(batch_size=[len(at)])
        for stream, values in read:
            lacks = stream.key in form.masked or any(not each.is_there.all() for each in values)
            found, masks = [each.values for each in values], [each.is_there for each in values]
            if stream.varies:
                found, masks, lacks = _of_one_size(stream, found, form, lacks=lacks)
            for each, rows, mask in zip(values, found, masks, strict=True):
                part = following if each.is_next else root
                put(part, stream, rows)
                if lacks:
                    part.set((name, *stream.key), torch.from_numpy(mask))
        for part in root, following:
            give_agents(part, (stream for stream, _ in wanted))
        return root.set("next", following)

    def values(self, wanted: Sequence[Described], span: Span, at: Transitions) -> Iterator[tuple[Stream, list[Values]]]:
        """Yield the values of each key at some steps, as arrays: before them, after them, or both, as the key is seen.

        Values that differ in shape are objects.

        Args:
            wanted: of which keys.
            span: where.
            at: which steps, as :meth:`transitions` says of the same keys or more.
        """
        return self._read(wanted, span, at)[1]

    def moments(self, wanted: Sequence[Described], span: Span = ALL) -> TensorDictBase:
        """Steps as the environment gave them: a key that is missing at a step is not in it, and values have their own shapes.

        If any is missing or varies they are a lazy stack.

        Args:
            wanted: of which keys.
            span: where.
        """
        at, read = self._read(wanted, span, None)
        root, following = TensorDict(batch_size=[len(at)]), TensorDict(batch_size=[len(at)])
        uneven: list[tuple[Stream, Values]] = []
        for stream, values in read:
            for each in values:
                if stream.varies or not each.is_there.all():
                    uneven.append((stream, each))
                else:
                    put(following if each.is_next else root, stream, each.values)
        for part in root, following:
            give_agents(part, (stream for stream, _ in wanted))
        steps = root.set("next", following)
        if not uneven:
            return steps
        apart = [step.copy() for step in steps.unbind(0)]
        for step in apart:
            step.set("next", step.get("next").copy())
        for stream, each in uneven:
            for row in np.flatnonzero(each.is_there).tolist():
                [value] = as_tensor(stream, each.values[row : row + 1])
                part = apart[row].get("next") if each.is_next else apart[row]
                part.set(stream.key, NonTensorData(value) if stream.dtype == "object" else value)
        for step in apart:
            for part in step, step.get("next"):
                give_agents(part, (stream for stream, _ in uneven))
        return lazy_stack(apart)

    def _read(
        self, wanted: Sequence[Described], span: Span, at: Transitions | None
    ) -> tuple[Transitions, Iterator[tuple[Stream, list[Values]]]]:
        """Steps, and what is recorded of keys before and after each."""
        read = {
            # Agents' pictures are put together, which needs all of them.
            stream.key: self.rows(stream, span)
            if stream.agents or stream.is_object or not stream.is_picture
            else self._coming(stream, 0, span)
            for stream, _ in wanted
        }
        if at is None:
            at = self._transitions(wanted, {key: rows.places for key, rows in read.items()}, span)
            self._say_apart(at)
        return at, self._taken(wanted, read, at)

    def _taken(
        self, wanted: Sequence[Described], read: dict[Key, Rows | _Coming], at: Transitions
    ) -> Iterator[tuple[Stream, list[Values]]]:
        for stream, moment in wanted:
            rows = read.pop(stream.key)
            row_of = rows.places.find(at.frames)
            sides = [
                is_next for is_next, without in ((False, Moment.STEPPED), (True, Moment.ACTED)) if moment is not without
            ]
            numbers = [row_of[at.at + is_next] for is_next in sides]
            found = _taken(stream, rows, numbers)
            yield (
                stream,
                [
                    Values(is_next, values, rows_at >= 0)
                    for is_next, values, rows_at in zip(sides, found, numbers, strict=True)
                ],
            )

    def _transitions(self, wanted: Sequence[Described], places: Mapping[Key, Places], span: Span) -> Transitions:
        of = {moment: [places[stream.key] for stream, which in wanted if which is moment] for moment in Moment}
        frames = self._frames(of, places, span)
        acted = together(of[Moment.ACTED])
        if len(frames) and len(acted):  # what was done at the last frame of a part that isn't here makes none
            frames = together([frames, acted[acted.codes > frames.codes[0]]])
        return Transitions(frames, np.flatnonzero(frames.codes[1:] - frames.codes[:-1] == 1))

    def _frames(self, of: Mapping[Moment, Sequence[Places]], places: Mapping[Key, Places], span: Span) -> Places:
        """Where there are frames: all keys that are read, and others if they may lack some.

        Raises:
            KeyError: no recorded key says it.
        """
        described = [each for each in self.run.schema.described if not each[0].shared]
        observed = [stream for stream, moment in described if moment is Moment.OBSERVED]
        if observed:
            rest = [stream for stream in observed if stream.key not in places]
            known = [stream for stream in observed if stream.key in places]
            found = [self.places(each, span) for each in self._completers(rest, known)]
            return together([*of[Moment.OBSERVED], *of[Moment.STEPPED], *found])
        stepped = [stream for stream, moment in described if moment is Moment.STEPPED]
        if not stepped:
            raise KeyError("neither observations nor rewards nor flags are recorded: there are no steps to give back")
        after = together(of[Moment.STEPPED] or [self.places(min(stepped, key=_cost), span)])
        codes = np.unique(np.concatenate([after.codes - 1, after.codes]))
        return Places(codes, np.zeros_like(codes))

    def _completers(self, rest: Sequence[Stream], known: Sequence[Stream]) -> list[Stream]:
        """Return the keys beside those that are known which say where there are frames.

        The return that the recorder works out has a row at each frame, and so has a key with as many rows. Without it each key
        may be missing at frames of its own: all are read that cost little.
        """
        if not any(stream.sums for stream in (*rest, *known)):
            little = [stream for stream in rest if not (stream.is_picture or stream.is_bulky)]
            if little:
                return little
        most = self._completer(rest, known)
        return [] if most is None else [most]

    def _completer(self, rest: Sequence[Stream], known: Sequence[Stream]) -> Stream | None:
        """The key that has more rows than those that are known, by the files' indexes; None: none has."""
        if not rest:
            return None
        most = min(rest, key=lambda stream: (-self._count(stream, unknown=1 if stream.sums else 0), _cost(stream)))
        if any(self._count(stream, unknown=0) >= self._count(most, unknown=1) for stream in known):
            return None
        return most

    def _count(self, stream: Stream, *, unknown: int) -> int:
        """How many rows a key has, by the index; ``unknown`` if there is none."""
        counts = [part.count(self.run.schema.path_of(stream, self.env)) for part in self.run.parts]
        return sum(count for count in counts if count is not None) if None not in counts else unknown

    def _say_apart(self, at: Transitions) -> None:
        """Warn, once, if frames were left out, so that recorded ones are no neighbours."""
        codes = at.frames.codes
        is_apart = (codes[1:] - codes[:-1] > 1) & (codes[1:] >> 32 == codes[:-1] >> 32)
        if is_apart.any() and not self._has_told:
            self._has_told = True
            warn(
                f"{int(is_apart.sum()):,} of the recorded frames don't follow the one before them, since frames between them "
                f"were not recorded (skip, triggers, switch()): {len(at):,} steps are given, none across such a gap. "
                "episode[key] gives all rows of a key"
            )

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
            (places.codes, *map(_numbers, batch.select(["step", "log_time"])))
            for places, batch in self._held(spine, 0, ALL)
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

    def _raised(self, stream: Stream, ends: FrameCodes) -> npt.NDArray[np.bool_]:
        """A flag where episodes end, ``[n, numbers]``; down where it isn't known."""
        rows = self.rows(stream)
        codes = rows.places.codes
        there = _holds(codes, ends)
        raised = np.zeros((len(ends), math.prod(stream.shape)), bool)
        raised[there] = rows.values[_at(codes, ends[there])].reshape(int(there.sum()), -1)
        return raised

    def _returns(self, sums: Stream, ends: FrameCodes) -> npt.NDArray[np.float64]:
        """What the rewards added up to where episodes end: the mean over agents; NaN where it isn't known."""
        rows = self.rows(sums)
        there = _holds(rows.places.codes, ends)
        returns = np.full(len(ends), np.nan)
        returns[there] = rows.values[_at(rows.places.codes, ends[there])].reshape(int(there.sum()), -1).mean(axis=1)
        return returns

    def episode_transitions(
        self, wanted: Sequence[Described], episodes: Sequence[int]
    ) -> tuple[list[Transitions], Form]:
        """Return the transitions of each of some episodes, and what all their values need to fit together.

        Each chunk from the first to the last of the episodes is read once.

        Args:
            wanted: the keys.
            episodes: the numbers of the episodes.
        """
        span = episode_span(min(episodes))[0], episode_span(max(episodes))[1]
        places, shapes = {}, {}
        for stream, _ in wanted:
            if stream.varies:
                rows = self.rows(stream, span)
                places[stream.key], shapes[stream.key] = rows.places, shapes_of(rows.values)
            else:
                places[stream.key] = self.places(stream, span)
        found = self._transitions(wanted, places, span)
        before = found.before
        ends = [np.searchsorted(before, [first, last + 1]) for first, last in map(episode_span, episodes)]
        several = [found[first:end] for first, end in ends]
        at = Transitions(found.frames, np.concatenate([each.at for each in several]))
        masked = {key for key, sizes in shapes.items() if len(sizes) > 1}
        for stream, moment in wanted:
            row_of = places[stream.key].find(at.frames)
            if any((row_of[frames] < 0).any() for frames in _frames_of(moment, at)):
                masked.add(stream.key)
        return several, Form(frozenset(masked), {key: largest(sizes) for key, sizes in shapes.items()})


# --- codes ---


def _numbers(column: pa.Array) -> npt.NDArray[np.int64]:
    numbers: npt.NDArray[np.int64] = column.cast(pa.int64()).to_numpy()
    return numbers


def _code(each: Stored) -> int:
    return each.episode << 32 | each.episode_step


def _frames_of(moment: Moment, at: Transitions) -> list[npt.NDArray[np.intp]]:
    """The frames of a key in each part of steps that holds it: before them, and after them."""
    return [frames for frames, without in ((at.at, Moment.STEPPED), (at.at + 1, Moment.ACTED)) if moment is not without]


def _placed(stream: Stream, coming: _Coming, wanted: Sequence[npt.NDArray[np.intp]]) -> list[npt.NDArray[Any]]:
    """Pictures, decoded once, for each of several lists of which are wanted: none is in memory beside these."""
    shape = () if stream.is_object else stream.kind.recorded_shape(stream)
    places: list[list[int]] = []
    placed: list[npt.NDArray[Any]] = []
    for numbers in wanted:
        is_there = numbers >= 0
        place = np.full(len(coming.places), -1)
        place[numbers[is_there]] = np.flatnonzero(is_there)
        places.append(place.tolist())
        is_whole = bool(is_there.all())
        size = (len(numbers), *shape)
        placed.append(np.empty(size, stream.storage) if is_whole else np.full(size, filling(stream), stream.storage))
    for picture in decoded(stream, coming.stored):
        if picture.frame < 0:
            continue
        row = row_of(stream, picture.pixels)
        for numbers_at, pictures in zip(places, placed, strict=True):
            if (at := numbers_at[picture.frame]) >= 0:
                pictures[at] = row
    return placed


def _without_lost(places: Places, stored: list[Stored], decodable: set[int]) -> tuple[Places, list[Stored]]:
    """Places and pictures without those that can't be decoded: the first of a video may lack its keyframe."""
    if len(decodable - {-1}) == len(places):
        return places, stored
    kept = np.array(sorted(decodable - {-1}), np.intp)
    numbers = {number: at for at, number in enumerate(kept.tolist())}
    return places[kept], [each._replace(frame=numbers.get(each.frame, -1)) for each in stored]


def _taken(stream: Stream, rows: Rows | _Coming, wanted: Sequence[npt.NDArray[np.intp]]) -> list[npt.NDArray[Any]]:
    """The values at some rows, -1 for none, for each of several lists of these, which share no memory."""
    if isinstance(rows, _Coming):
        return _placed(stream, rows, wanted)
    first, *others = (taken(stream, rows.values, numbers) for numbers in wanted)
    return [first, *(values.copy() for values in others)]


def _of_one_size(
    stream: Stream, found: Sequence[npt.NDArray[Any]], form: Form, *, lacks: bool
) -> tuple[list[npt.NDArray[Any]], list[npt.NDArray[np.bool_]], bool]:
    """Values of shapes of their own, padded to one, with their masks, and whether these say anything."""
    shapes = {shape for values in found for shape in shapes_of(values)}
    size = largest([*shapes, form.shapes[stream.key]] if stream.key in form.shapes else shapes)
    pairs = [padded(stream, values, size) for values in found]
    return [values for values, _ in pairs], [mask for _, mask in pairs], lacks or len(shapes) > 1


def _common(several: Sequence[Places]) -> Places:
    """Where all have rows."""
    first, *others = several
    for places in others:
        if not np.array_equal(first.codes, places.codes):
            first = first[places.find(first) >= 0]
    return first


def _holds(codes: FrameCodes, wanted: FrameCodes) -> npt.NDArray[np.bool_]:
    """Which of ``wanted`` are among them."""
    if not len(codes):
        return np.zeros(len(wanted), bool)
    held: npt.NDArray[np.bool_] = codes[np.minimum(np.searchsorted(codes, wanted), len(codes) - 1)] == wanted
    return held


def _at(codes: FrameCodes, wanted: FrameCodes) -> slice | npt.NDArray[np.intp]:
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
