"""Colours of the lines of a plot and of the states of a lane: distinct on a dark background, and for colour-blind eyes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import rerun as rr

from torchrl_rerun.kinds.endings import DONE, TERMINATED, TRUNCATED

PALETTE = (0x4E9BE6FF, 0xF2A33AFF, 0x5FC08BFF, 0xE4638CFF, 0xA98BEFFF, 0xE8D44DFF, 0x3FC6CFFF, 0xD98A5AFF)

TONES = ((0x00, 0.0), (0xFF, 0.5), (0x00, 0.4))
"""White or black, and its share, that the colours of the palette are mixed with when it is used again."""

FLAG_COLORS = {DONE: 0xA0A8B8FF, TERMINATED: 0xE5484DFF, TRUNCATED: 0xF2A33AFF}
"""Colours of flags that are up, by the last parts of their keys."""


def color(number: int) -> int:
    """Return the colour of a line or a state by its position. The first 24 are distinct.

    >>> [f"{color(number):08X}" for number in (0, 1, 8, 16, 24)]
    ['4E9BE6FF', 'F2A33AFF', 'A6CDF2FF', '2F5D8AFF', '4E9BE6FF']
    """
    times, position = divmod(number, len(PALETTE))
    other, share = TONES[times % len(TONES)]
    red, green, blue, alpha = PALETTE[position].to_bytes(4)
    return int.from_bytes((*(round(part + (other - part) * share) for part in (red, green, blue)), alpha))


def series_style(names: Sequence[str], colors: Sequence[int]) -> Iterable[Any]:
    """Return the names and colours of the lines of a plot."""
    style: Iterable[Any] = rr.SeriesLines.columns(names=list(names), colors=np.array(colors, np.uint32)).partition(
        [len(names)]
    )
    return style
