"""Counters: frame, step and episode of each recorded environment, on the environment's thread."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from torchrl_rerun.blocks.events import NO_ENVS, EnvIndices, Event
from torchrl_rerun.kinds.timelines import COLUMNS, EPISODE, EPISODE_STEP, FRAME, LOG_TIME, REGROUPED, STEP, Positions


class Progress(NamedTuple):
    """Where a run is, for a program that goes on with it.

    Attributes:
        steps: number of calls of ``env.step``.
        episodes: the number of each environment's episode, ``[envs]``.
        frames: number of frames in the recording that goes on. Default: another recording begins.
    """

    steps: int
    episodes: npt.NDArray[np.int64]
    frames: int = 0


class Counters:
    """Counts frames, steps and episodes of ``envs`` environments.

    An episode runs from a reset to the step that ends it, per environment, counted from 0 per environment. ``frame``
    grows by one with each recorded reset or step call, whatever environments it concerns; ``step`` counts the calls of
    ``env.step``.

    Attributes:
        frames: number of frames.
        steps: number of calls of ``env.step``.
        all_begun: whether it is known that all environments have been reset.

    >>> counters = Counters(2)
    >>> counters.apply(counters.event(None, 0, is_step=False))
    >>> counters.apply(counters.event(np.array([1]), 5, is_step=True))
    >>> counters.positions().tolist()  # frame, step, episode, episode_step, time and regroupings of each environment
    [[0, 0, 0, 0, 0, 0], [1, 1, 0, 1, 5, 0]]
    """

    def __init__(self, envs: int) -> None:
        self.frames = 0
        self.steps = 0
        self._episode = np.full(envs, -1, np.int64)
        self._episode_step = np.zeros(envs, np.int64)
        self._regrouped = np.zeros(envs, np.int64)
        self._more_steps = 0  # of all environments, to be added
        self._stamps = np.zeros((envs, 3), np.int64)  # frame, step and time of the last frame of each
        # The last event, while it was one of all environments: then `_stamps` waits to be filled in.
        self._shared: Event | None = None
        self._seen: Event | None = None
        self.all_begun = False

    @property
    def progress(self) -> Progress:
        """The number of steps, and of the episode of each environment."""
        return Progress(self.steps, self._episode.copy())

    def resume(self, progress: Progress) -> None:
        """Go on at the position of another program, as far as the environments are the same."""
        self.steps, self.frames = progress.steps, progress.frames
        known = min(len(self._episode), len(progress.episodes))
        self._episode[:known] = progress.episodes[:known]
        self._stamps[:, 1] = progress.steps

    def grow(self, envs: int) -> None:
        """Follow more environments, which haven't been reset."""
        more = envs - len(self._episode)
        self._episode = np.append(self._episode, np.full(more, -1))
        self._episode_step = np.append(self._episode_step, np.full(more, -self._more_steps))
        self._regrouped = np.append(self._regrouped, np.zeros(more, np.int64))
        self._stamps = np.concatenate([self._stamps, np.zeros((more, 3), np.int64)])
        self.all_begun = False

    def count(self, *, frames: int = 0, steps: int = 0) -> None:
        """Count frames and steps of which nothing is known but their number."""
        self.frames += frames
        self.steps += steps

    def event(
        self,
        rows: EnvIndices,
        now: int,
        *,
        is_step: bool,
        picked: tuple[EnvIndices, EnvIndices] | None = None,
        begun: EnvIndices = None,
    ) -> Event:
        """Return the next event, and change nothing.

        Args:
            rows: the environments that are stepped or reset.
            now: its time, in nanoseconds since the epoch.
            is_step: whether they are stepped, not reset.
            picked: the environments whose frame before, and whose frame after it is recorded. Default: all of ``rows``.
            begun: of a reset, the environments whose episodes begin. Default: all of ``rows``.
        """
        before, after = (rows, rows) if picked is None else picked
        return Event(self.frames, self.steps + is_step, now, is_step, rows, before, after, begun)

    def apply(self, event: Event) -> None:
        """Count an event: a frame if it is recorded; a further step of an episode, or the beginning of another one."""
        rows = event.rows
        is_recorded = event.after is rows or event.is_recorded
        touched = slice(None) if rows is None else rows
        begins = touched if event.begun is None else event.begun
        # No function is called from here on, so that Ctrl-C comes before all of it, or after.
        if event.is_step:
            self.steps = event.step
            if rows is None:
                self._more_steps += 1
            else:
                self._episode_step[rows] += 1
        else:
            if event.begun is not None:
                self._regrouped[touched] += 1
            self._episode[begins] += 1
            self._episode_step[begins] = -self._more_steps
            self._regrouped[begins] = 0
        if is_recorded:
            self.frames += 1
        if rows is None:
            self._shared = event
        else:
            if self._shared is not None:
                self._stamps[:] = self._shared[:3]
                self._shared = None
            self._stamps[rows] = event[:3]
        self._seen = event

    def amend(self, event: Event, amended: Event) -> None:
        """Put another event in the place of the last one. More environments may be recorded in its frame.

        Args:
            event: the last event that was counted.
            amended: the event in its place, the same step of the same environments.
        """
        if self._seen is event:
            frames = self.frames + amended.is_recorded - event.is_recorded
            # No function is called from here on, so that Ctrl-C comes before all of it, or after.
            self.frames = frames
            if self._shared is event:
                self._shared = amended
            self._seen = amended

    def positions(self) -> Positions:
        """Return the position of each environment at its last frame, ``[envs, 6]``. Before the first reset the episode is -1."""
        if self._shared is not None:
            self._stamps[:] = self._shared[:3]
            self._shared = None
        self._episode_step += self._more_steps
        self._more_steps = 0
        latest = np.empty((len(self._episode), COLUMNS), np.int64)
        latest[:, [FRAME, STEP, LOG_TIME]] = self._stamps
        latest[:, EPISODE] = self._episode
        latest[:, EPISODE_STEP] = self._episode_step
        latest[:, REGROUPED] = self._regrouped
        return latest

    def has_seen(self, event: Event) -> bool:
        """Return whether an event was the last one that was counted."""
        return self._seen is event

    def of(self, rows: EnvIndices) -> npt.NDArray[np.int64]:
        """Return the numbers of the episodes that environments are in."""
        return self._episode if rows is None else self._episode[rows]

    def begun(self) -> int:
        """Return the number of episodes that have begun in all environments together."""
        return int(self._episode.sum()) + len(self._episode)

    def never_begun(self, rows: EnvIndices) -> EnvIndices:
        """Return those of ``rows`` that were never reset."""
        if self.all_begun:
            return NO_ENVS
        fresh = self._episode < 0
        self.all_begun = not fresh.any()
        return np.flatnonzero(fresh) if rows is None else rows[fresh[rows]]
