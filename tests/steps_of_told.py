"""The steps that a recording of :class:`killed_anywhere.Told` holds."""

from __future__ import annotations

from torchrl_rerun import load


def steps_in(place):
    """Return the numbers of the steps of each environment, in order."""
    found: dict[int, list[int]] = {}
    for episode in load(place):
        clock = episode.tensordict(["clock"])["next", "clock"]
        found.setdefault(episode.properties.env, []).extend(clock[:, 0].long().tolist())
    return found
