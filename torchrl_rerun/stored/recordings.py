"""Recordings as a source: the episodes of each environment one after another, all environments side by side."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from tensordict import LazyStackedTensorDict, TensorDictBase

from torchrl_rerun.export.steps import check_same, name_episode
from torchrl_rerun.reading.load import load
from torchrl_rerun.reading.loaded_episode import LoadedEpisode
from torchrl_rerun.reading.scenes import remember_assets_of
from torchrl_rerun.reading.steps import uneven_steps
from torchrl_rerun.rrd.file_part import FilePart
from torchrl_rerun.rrd.frame_codes import episode_span
from torchrl_rerun.stored.segments import Segment, StoredTrajectories, join_names, split_time


def open_recordings(*paths: Path) -> StoredTrajectories:
    """Return the trajectories of recordings.

    Args:
        paths: Recordings of one run, or folders of them.

    Raises:
        ValueError: No path holds a recording with a complete step, or the recordings are of different environments.
        FileNotFoundError: A path doesn't exist.
    """
    found = load(paths)
    name = join_names(paths)
    if not found:
        raise ValueError(f"{name} holds no steps")
    by_env: dict[int, list[LoadedEpisode]] = {}
    for episode in found:
        _check_same(episode, found[0])
        by_env.setdefault(episode.properties.env, []).append(episode)
    schema = found[0].schema
    streams = [stream for stream, _ in schema.described if not stream.reward_key]
    if any(True for stream in streams for _, kind in stream.drawing for _ in kind.assets()):
        parts = {id(part): part for episode in found for part in episode.history.recording.parts}
        remember_assets_of(part for part in parts.values() if isinstance(part, FilePart))  # to draw them again
    lengths = [sum(each.properties.length for each in episodes) for episodes in by_env.values()]
    return StoredTrajectories(
        f"{name}: recordings",
        max(lengths),
        lambda: _read_side_by_side(name, [_EpisodeQueue(episodes) for episodes in by_env.values()]),
        env_name=schema.source.name,
        fps=schema.source.fps,
        kinds={stream.key: stream.kind for stream in streams},
    )


def _check_same(episode: LoadedEpisode, first: LoadedEpisode) -> None:
    name, name_of_first = (each.schema.source.name for each in (episode, first))
    if name != name_of_first:
        raise ValueError(
            f"{name_episode(episode)} is of {name}, and {name_episode(first)} is of {name_of_first}: replay one run at a time"
        )
    found, wanted = ([each for each in of.schema.described if not each[0].reward_key] for of in (episode, first))
    check_same(episode, found, wanted)


class _EpisodeQueue:
    """Episodes of one environment that are still to be read."""

    def __init__(self, episodes: list[LoadedEpisode]) -> None:
        self._episodes = iter(episodes)
        self.is_empty = False
        self.seed: int | None = None
        self._at = 0
        self._steps: TensorDictBase | None = None
        self._open_next()

    def _open_next(self) -> None:
        """Open the next episode that has steps."""
        for episode in self._episodes:
            span = episode_span(episode.properties.episode)
            steps = uneven_steps(episode.history, episode.history.described(None), span)
            if len(steps):
                self._steps, self._at, self.seed = steps, 0, episode.properties.seed
                return
        self.is_empty = True

    @property
    def num_left(self) -> int:
        assert self._steps is not None, "an episode is open"
        return len(self._steps) - self._at

    @property
    def begins(self) -> bool:
        return self._at == 0

    @property
    def bytes_per_time_step(self) -> float:
        assert self._steps is not None, "an episode is open"
        return float(self._steps.bytes()) / len(self._steps)

    def take(self, count: int) -> TensorDictBase:
        """Return the next steps, ``[count]``. Return placeholders of the right shape if no episode is left."""
        assert self._steps is not None, "an episode is open"
        if self.is_empty:
            return self._steps[-1:].expand(count).clone()
        taken = self._steps[self._at : self._at + count]
        self._at += count
        if self._at == len(self._steps):
            self._open_next()
        return taken


def _read_side_by_side(name: str, queues: list[_EpisodeQueue]) -> Iterator[Segment]:
    # A killed process may leave environments without any complete step.
    queues = [each for each in queues if not each.is_empty]
    if not queues:
        raise ValueError(f"{name} holds no complete steps")
    while True:
        running = [each for each in queues if not each.is_empty]
        if not running:
            return
        bytes_per_time_step = sum(each.bytes_per_time_step for each in running)
        _, count = next(split_time(0, min(each.num_left for each in running), bytes_per_time_step))
        begins = np.array([each.begins and not each.is_empty for each in queues])
        seeds = [each.seed for each in queues]
        stepped = torch.tensor([not each.is_empty for each in queues])
        parts = [each.take(count) for each in queues]
        if len(parts) == 1:
            yield Segment(parts[0], begins, seeds)
            continue
        together: TensorDictBase = LazyStackedTensorDict.maybe_dense_stack(parts, 0)
        yield Segment(together.set("_step", stepped.unsqueeze(-1).expand(len(parts), count)), begins, seeds)
