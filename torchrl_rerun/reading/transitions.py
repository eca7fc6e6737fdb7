"""Transitions: which recorded frames of an environment a step leads from and to, found without decoding any value."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from torchrl_rerun.kinds.keys import Key
from torchrl_rerun.kinds.schema import Moment, TimedStream
from torchrl_rerun.kinds.streams import Stream
from torchrl_rerun.reading.history import History
from torchrl_rerun.reading.padding import Form, largest, shapes_of
from torchrl_rerun.reading.rows import RowFrames, together
from torchrl_rerun.rrd.frame_codes import ALL, FrameCodes, Span, episode_span


@dataclass(frozen=True)
class Transitions:
    """Steps from a recorded frame to the next one of the same episode, ``n`` of them.

    Attributes:
        frames: all recorded frames, whichever key has a row there.
        at: int64 ``[n]``: the row in ``frames`` that each step leads from. It leads to the row behind.
    """

    frames: RowFrames
    at: npt.NDArray[np.intp]

    def __len__(self) -> int:
        return len(self.at)

    def __getitem__(self, part: slice) -> Transitions:
        return Transitions(self.frames, self.at[part])

    @property
    def before(self) -> FrameCodes:
        """The codes of the frames that the steps lead from, ``[n]``."""
        return self.frames.codes[self.at]

    @property
    def after(self) -> FrameCodes:
        """The codes of the frames that the steps lead to, ``[n]``."""
        return self.frames.codes[self.at + 1]

    @property
    def span(self) -> Span:
        """The first and the last of their frames."""
        return int(self.before[0]), int(self.after[-1])

    def alone(self) -> Transitions:
        """Return the same steps with no frames but theirs."""
        first, end = int(self.at[0]), int(self.at[-1]) + 2
        return Transitions(self.frames[first:end], self.at - first)

    def unbroken(self) -> list[Transitions]:
        """Return the parts in which each step begins where the one before it ends."""
        ends = np.flatnonzero(self.before[1:] != self.after[:-1]) + 1
        bounds = [0, *ends.tolist(), len(self)]
        return [self[first:end] for first, end in itertools.pairwise(bounds) if end > first]


def transitions(
    history: History, wanted: Sequence[TimedStream], span: Span = ALL, *, is_whole: bool = False
) -> Transitions:
    """Return the steps of an environment.

    Args:
        history: the environment.
        wanted: the keys.
        span: the frames.
        is_whole: leave out the steps at which a key is missing.
    """
    places = {stream.key: history.places(stream, span) for stream, _ in wanted}
    found = transitions_at(history, wanted, places, span)
    if not is_whole:
        return found
    there = np.ones(len(found), np.bool_)
    for stream, moment in wanted:
        is_there = places[stream.key].find(found.frames) >= 0
        for frames in frames_of(moment, found):
            there &= is_there[frames]
    return Transitions(found.frames, found.at[there])


def episode_transitions(
    history: History, wanted: Sequence[TimedStream], episodes: Sequence[int]
) -> tuple[list[Transitions], Form]:
    """Return the steps of each of some episodes, and what all their values need to fit together.

    Each chunk from the first to the last of the episodes is read once.

    Args:
        history: the environment.
        wanted: the keys.
        episodes: the numbers of the episodes.
    """
    span = episode_span(min(episodes))[0], episode_span(max(episodes))[1]
    places, shapes = {}, {}
    for stream, _ in wanted:
        if stream.varies:
            rows = history.rows(stream, span)
            places[stream.key], shapes[stream.key] = rows.places, shapes_of(rows.values)
        else:
            places[stream.key] = history.places(stream, span)
    found = transitions_at(history, wanted, places, span)
    before = found.before
    ends = [np.searchsorted(before, [first, last + 1]) for first, last in map(episode_span, episodes)]
    several = [found[first:end] for first, end in ends]
    at = Transitions(found.frames, np.concatenate([each.at for each in several]))
    masked = {key for key, sizes in shapes.items() if len(sizes) > 1}
    for stream, moment in wanted:
        row_of = places[stream.key].find(at.frames)
        if any((row_of[frames] < 0).any() for frames in frames_of(moment, at)):
            masked.add(stream.key)
    return several, Form(frozenset(masked), {key: largest(sizes) for key, sizes in shapes.items()})


def frames_of(moment: Moment, at: Transitions) -> list[npt.NDArray[np.intp]]:
    """Return the frames at which steps hold a key, before them and after them, as far as the key is seen there."""
    return [frames for frames, without in ((at.at, Moment.STEPPED), (at.at + 1, Moment.ACTED)) if moment is not without]


def transitions_at(
    history: History, wanted: Sequence[TimedStream], places: Mapping[Key, RowFrames], span: Span
) -> Transitions:
    """Return the steps of an environment.

    Args:
        history: the environment.
        wanted: the keys.
        places: the frames at which each key has a row.
        span: the frames.
    """
    of = {moment: [places[stream.key] for stream, which in wanted if which is moment] for moment in Moment}
    frames = _frames(history, of, places, span)
    acted = together(of[Moment.ACTED])
    if len(frames) and len(acted):  # an action at the last frame of a part that isn't here makes no step
        frames = together([frames, acted[acted.codes > frames.codes[0]]])
    return Transitions(frames, np.flatnonzero(frames.codes[1:] - frames.codes[:-1] == 1))


def _frames(
    history: History, of: Mapping[Moment, Sequence[RowFrames]], places: Mapping[Key, RowFrames], span: Span
) -> RowFrames:
    """Return the recorded frames, by the keys that are read, and by others if those may lack some.

    Raises:
        KeyError: no recorded key tells the frames.
    """
    described = [each for each in history.recording.schema.described if not each[0].shared]
    observed = [stream for stream, moment in described if moment is Moment.OBSERVED]
    if observed:
        rest = [stream for stream in observed if stream.key not in places]
        known = [stream for stream in observed if stream.key in places]
        found = [history.places(each, span) for each in _completers(history, rest, known)]
        return together([*of[Moment.OBSERVED], *of[Moment.STEPPED], *found])
    stepped = [stream for stream, moment in described if moment is Moment.STEPPED]
    if not stepped:
        raise KeyError("neither observations nor rewards nor flags are recorded: there are no steps to give back")
    after = together(of[Moment.STEPPED] or [history.places(min(stepped, key=cost), span)])
    codes = np.unique(np.concatenate([after.codes - 1, after.codes]))
    return RowFrames(codes, np.zeros_like(codes))


def _completers(history: History, rest: Sequence[Stream], known: Sequence[Stream]) -> list[Stream]:
    """Return the keys, beside those that are known, that tell which frames are recorded.

    The return that the recorder works out has a row at each frame, and so has a key with as many rows. Without a return
    each key may be missing at frames of its own, and all keys are read that cost little.
    """
    if not any(stream.reward_key for stream in (*rest, *known)):
        little = [stream for stream in rest if not (stream.is_picture or stream.is_bulky)]
        if little:
            return little
    if not rest:
        return []
    most = min(rest, key=lambda stream: (-_count(history, stream, unknown=1 if stream.reward_key else 0), cost(stream)))
    if any(_count(history, stream, unknown=0) >= _count(history, most, unknown=1) for stream in known):
        return []
    return [most]


def _count(history: History, stream: Stream, *, unknown: int) -> int:
    """Return how many rows a key has, by the index; ``unknown`` if there is none."""
    count = history.count(stream)
    return unknown if count is None else count


def cost(stream: Stream) -> tuple[bool, int]:
    """Return by which keys are ordered from cheap to dear to read."""
    return stream.is_picture, stream.row_bytes
