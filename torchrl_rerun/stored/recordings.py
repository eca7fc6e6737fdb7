"""Recordings as a source: what was recorded comes again, each environment's episodes one after the other."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from tensordict import LazyStackedTensorDict, TensorDictBase

from torchrl_rerun.export.steps import check_same, told
from torchrl_rerun.reading.episodes import LoadedEpisode
from torchrl_rerun.reading.load import load
from torchrl_rerun.reading.steps import uneven_steps
from torchrl_rerun.rrd.frame_codes import episode_span
from torchrl_rerun.stored.pieces import Piece, Stored, spans, told_together


def recordings(*paths: Path) -> Stored:
    """Return what ``RerunRecorder`` recorded, all environments side by side.

    Raises:
        ValueError: there is no recording, no whole step is in it, or there are recordings of different environments.
        FileNotFoundError: there is nothing.
    """
    found = load(paths)
    path = told_together(paths)
    if not found:
        raise ValueError(f"{path} holds no steps")
    of_each: dict[int, list[LoadedEpisode]] = {}
    for episode in found:
        _check_same(episode, found[0])
        of_each.setdefault(episode.properties.env, []).append(episode)
    schema = found[0].schema
    streams = [stream for stream, _ in schema.described if not stream.sums]
    lengths = [sum(each.properties.length for each in episodes) for episodes in of_each.values()]
    return Stored(
        f"{path}: recordings",
        max(lengths),
        lambda: _side_by_side(path, [_Environment(episodes) for episodes in of_each.values()]),
        env_name=schema.source.name,
        fps=schema.source.fps,
        kinds={stream.key: stream.kind for stream in streams},
        names={stream.key: stream.names for stream in streams if stream.names},
        image_format={stream.key: stream.image_format for stream in streams if stream.image_format is not None},
    )


def _check_same(episode: LoadedEpisode, first: LoadedEpisode) -> None:
    name, of_first = (each.schema.source.name for each in (episode, first))
    if name != of_first:
        raise ValueError(f"{told(episode)} is of {name}, and {told(first)} of {of_first}: take one run at a time")
    found, wanted = ([each for each in of.schema.described if not each[0].sums] for of in (episode, first))
    check_same(episode, found, wanted)


class _Environment:
    """What is still to come of one environment."""

    def __init__(self, episodes: list[LoadedEpisode]) -> None:
        self._coming = iter(episodes)
        self.is_over = False
        self.seed: int | None = None
        self._at = 0
        self._steps: TensorDictBase | None = None
        self._next()

    def _next(self) -> None:
        """The next episode that has steps."""
        for episode in self._coming:
            span = episode_span(episode.properties.episode)
            steps = uneven_steps(episode.history, episode.history.described(None), span)
            if len(steps):
                self._steps, self._at, self.seed = steps, 0, episode.properties.seed
                return
        self.is_over = True

    @property
    def left(self) -> int:
        assert self._steps is not None, "there is an episode"
        return len(self._steps) - self._at

    @property
    def begins(self) -> bool:
        return self._at == 0

    @property
    def bytes_per_moment(self) -> float:
        assert self._steps is not None, "there is an episode"
        return float(self._steps.bytes()) / len(self._steps)

    def take(self, count: int) -> TensorDictBase:
        """Its next steps. Of one that is over there are none: anything of the right shape stands in for them."""
        assert self._steps is not None, "there is an episode"
        if self.is_over:
            return self._steps[-1:].expand(count).clone()
        taken = self._steps[self._at : self._at + count]
        self._at += count
        if self._at == len(self._steps):
            self._next()
        return taken


def _side_by_side(path: str, environments: list[_Environment]) -> Iterator[Piece]:
    # What a killed process left may have no whole step of some.
    environments = [each for each in environments if not each.is_over]
    if not environments:
        raise ValueError(f"{path} holds no whole steps")
    while True:
        running = [each for each in environments if not each.is_over]
        if not running:
            return
        bytes_per_moment = sum(each.bytes_per_moment for each in running)
        _, count = next(spans(0, min(each.left for each in running), bytes_per_moment))
        begins = np.array([each.begins and not each.is_over for each in environments])
        seeds = [each.seed for each in environments]
        stepped = torch.tensor([not each.is_over for each in environments])
        parts = [each.take(count) for each in environments]
        if len(parts) == 1:
            yield Piece(parts[0], begins, seeds)
            continue
        together: TensorDictBase = LazyStackedTensorDict.maybe_dense_stack(parts, 0)
        yield Piece(together.set("_step", stepped.unsqueeze(-1).expand(len(parts), count)), begins, seeds)
