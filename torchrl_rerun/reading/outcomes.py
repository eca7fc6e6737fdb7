"""Outcomes: what the episodes of an environment came to, worked out from the rows of a recording of several."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from torchrl_rerun.kinds.endings import Endings, Ends
from torchrl_rerun.kinds.episode import Episode, returns_of
from torchrl_rerun.kinds.streams import Stream
from torchrl_rerun.reading.history import History
from torchrl_rerun.reading.transitions import cost
from torchrl_rerun.rrd.frame_codes import FrameCodes

_EPOCH = datetime.fromtimestamp(0, UTC)


def outcomes(history: History) -> list[Episode]:
    """Return what the episodes of an environment came to, as far as they are recorded.

    An episode that was reset before its first step is left out.
    """
    schema = history.recording.schema
    streams = [stream for stream, _ in schema.described if not stream.shared]
    sums = next((stream for stream in streams if stream.reward_key), None)
    endings = Endings(schema.ends)
    flags = [stream for stream in streams if stream.key in endings.keys]
    if not streams:
        return []
    held = [
        (places.codes, *map(_numbers, batch.select(["step", "log_time"])))
        for places, batch in history.held(_longest(history, streams, sums or min(flags or streams, key=cost)))
    ]
    if not held:
        return []
    codes, step, time = (np.concatenate(columns) for columns in zip(*held, strict=True))
    last = np.append(np.flatnonzero(codes[1:] >> 32 != codes[:-1] >> 32), len(codes) - 1)
    first = np.append(0, last[:-1] + 1)
    ends = codes[last]
    returns = np.full(len(last), np.nan) if sums is None else _returns(history, sums, ends)
    raised = {stream.key: _raised(history, stream, ends) for stream in flags}
    terminated, truncated = endings.ended(raised.get, len(ends)) or Ends(*np.zeros((2, len(ends)), bool))
    numbers, lengths = ends >> 32, ends & 0xFFFFFFFF
    first_steps = step[first] - (codes[first] & 0xFFFFFFFF)
    return [
        Episode(
            env=history.env,
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


def _longest(history: History, streams: Sequence[Stream], usual: Stream) -> Stream:
    """Return the key that tells the frames: the usual one, unless a kill has left more pictures than numbers."""
    counts = {
        stream.key: history.count(stream) or 0 for stream in (usual, *(each for each in streams if each.is_picture))
    }
    most = max(counts, key=counts.__getitem__)
    return next(stream for stream in streams if stream.key == most)


def _raised(history: History, stream: Stream, ends: FrameCodes) -> npt.NDArray[np.bool_]:
    """Return a flag at the frames where episodes end, bool ``[n, numbers]``; False if it isn't known."""
    rows = history.rows(stream)
    codes = rows.places.codes
    there = _holds(codes, ends)
    raised = np.zeros((len(ends), math.prod(stream.shape)), bool)
    raised[there] = rows.values[np.searchsorted(codes, ends[there])].reshape(-1, raised.shape[1])
    return raised


def _returns(history: History, sums: Stream, ends: FrameCodes) -> npt.NDArray[np.float64]:
    """Return the returns at the frames where episodes end, ``[n]``; NaN: not known."""
    rows = history.rows(sums)
    codes = rows.places.codes
    there = _holds(codes, ends)
    returns = np.full(len(ends), np.nan)
    returns[there] = returns_of(rows.values[np.searchsorted(codes, ends[there])])
    return returns


def _holds(codes: FrameCodes, wanted: FrameCodes) -> npt.NDArray[np.bool_]:
    """Return which of the wanted codes are among some codes."""
    if not len(codes):
        return np.zeros(len(wanted), bool)
    held: npt.NDArray[np.bool_] = codes[np.minimum(np.searchsorted(codes, wanted), len(codes) - 1)] == wanted
    return held


def _numbers(column: pa.Array) -> npt.NDArray[np.int64]:
    numbers: npt.NDArray[np.int64] = column.cast(pa.int64()).to_numpy()
    return numbers
