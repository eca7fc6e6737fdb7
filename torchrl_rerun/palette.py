"""Colours of the lines of a plot and of the states of a lane: distinct on a dark background, and for colour-blind eyes."""

from __future__ import annotations

PALETTE = (
    *(0x4E9BE6FF, 0xF2A33AFF, 0x5FC08BFF, 0xE4638CFF, 0xA98BEFFF, 0xE8D44DFF, 0x3FC6CFFF, 0xD98A5AFF),
    *(0xA9CBF2FF, 0x9A6A1FFF, 0xA8E0C2FF, 0x9B3A5CFF, 0x6B4FC0FF, 0x9A8D2AFF, 0xA5E8ECFF, 0x8C5230FF),
)

FLAG_COLORS = {"done": 0xA0A8B8FF, "terminated": 0xE4638CFF, "truncated": 0xF2A33AFF}
"""Of flags that are up, by the last parts of their keys."""
