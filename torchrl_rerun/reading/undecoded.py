"""Undecoded pictures: those of a span, encoded, until it is known at which steps they are wanted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from torchrl_rerun.kinds.streams import Stream
from torchrl_rerun.reading.padding import filling
from torchrl_rerun.reading.pictures import EncodedPicture, decoded, encoded_in, from_keyframe, row_of
from torchrl_rerun.reading.rows import RawRows, RowFrames, joined
from torchrl_rerun.rrd.frame_codes import Span


class UndecodedPictures(NamedTuple):
    """Pictures that aren't decoded yet.

    Attributes:
        places: the frames of the wanted pictures.
        stored: the wanted pictures, and of a video those without which they can't be decoded. The ``frame`` of each is
            its row in ``places``; -1: it isn't wanted.
    """

    places: RowFrames
    stored: Sequence[EncodedPicture]


def undecoded_in(stream: Stream, held: Sequence[RawRows], span: Span, since: Span) -> UndecodedPictures:
    """Return the pictures in a span.

    Args:
        stream: the key.
        held: the chunks of the pictures.
        span: the frames that are wanted.
        since: the frames that were read, which for a video begin at or before the last keyframe before ``span``.
    """
    stored, places = (
        [each for _, batch in held for each in encoded_in(stream, batch)],
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
    return _decodable(places[wanted], list(from_keyframe(stored)))


def _decodable(places: RowFrames, stored: list[EncodedPicture]) -> UndecodedPictures:
    """Return the pictures that can be decoded: the first ones of a video may lack their keyframe."""
    rows = sorted({each.frame for each in stored} - {-1})
    if len(rows) == len(places):
        return UndecodedPictures(places, stored)
    numbers = {row: at for at, row in enumerate(rows)}
    kept = [each._replace(frame=numbers.get(each.frame, -1)) for each in stored]
    return UndecodedPictures(places[np.array(rows, np.intp)], kept)


def decoded_at(
    stream: Stream, undecoded: UndecodedPictures, wanted: Sequence[npt.NDArray[np.intp]]
) -> list[npt.NDArray[Any]]:
    """Return an array of pictures for each of several lists of rows. Each picture is decoded once.

    No picture is in memory beside these arrays.

    Args:
        stream: the key.
        undecoded: the pictures.
        wanted: the rows of each array; -1: there is none, and its place is filled.
    """
    shape = () if stream.is_object else stream.kind.recorded_shape(stream)
    rows: list[list[int]] = []
    arrays: list[npt.NDArray[Any]] = []
    for numbers in wanted:
        is_there = numbers >= 0
        row = np.full(len(undecoded.places), -1)
        row[numbers[is_there]] = np.flatnonzero(is_there)
        rows.append(row.tolist())
        size = (len(numbers), *shape)
        is_whole = bool(is_there.all())
        arrays.append(np.empty(size, stream.storage) if is_whole else np.full(size, filling(stream), stream.storage))
    for picture in decoded(stream, undecoded.stored):
        if picture.frame < 0:
            continue
        value = row_of(stream, picture.pixels)
        for row_in, array in zip(rows, arrays, strict=True):
            if (at := row_in[picture.frame]) >= 0:
                array[at] = value
    return arrays


def _code(each: EncodedPicture) -> int:
    return each.episode << 32 | each.episode_step
