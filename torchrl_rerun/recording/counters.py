"""Counters: frame, step and episode of each recorded environment, on the environment's thread."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from torchrl_rerun.blocks.events import NO_ENVS, EnvIndices, Event
from torchrl_rerun.blocks.positions import advance
from torchrl_rerun.kinds.timelines import COLUMNS, EPISODE, EPISODE_STEP, FRAME, LOG_TIME, STEP, Positions


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
        # Positions, and the events since then that concern some environments, or are resets: to evaluate each at once would
        # take longer than all else that a reset takes. One tuple, for other threads read it; replaced, never changed.
        self._settled: tuple[Positions, tuple[_Later, ...]] = _before_the_first_reset(envs), ()
        self._more_steps = 0  # of all environments since then
        self._shared: Event | None = None  # the last of these steps
        self._seen: Event | None = None
        self.all_begun = False

    @property
    def progress(self) -> Progress:
        """The number of steps, and of the episode of each environment."""
        return Progress(self.steps, self._episodes())

    def resume(self, progress: Progress) -> None:
        """Go on at the position of another program, as far as the environments are the same."""
        self.steps, self.frames = progress.steps, progress.frames
        settled = self.positions().copy()
        known = min(len(settled), len(progress.episodes))
        settled[:known, EPISODE] = progress.episodes[:known]
        settled[:, STEP] = progress.steps
        self._settle(settled)

    def grow(self, envs: int) -> None:
        """Follow more environments, which haven't been reset."""
        before = self.positions()
        self._settle(np.concatenate([before, _before_the_first_reset(envs - len(before))]))
        self.all_begun = False

    def count(self, *, frames: int = 0, steps: int = 0) -> None:
        """Count frames and steps of which nothing is known but their number."""
        self.frames += frames
        self.steps += steps

    def event(
        self,
        envs: EnvIndices,
        now: int,
        *,
        is_step: bool,
        picked: tuple[EnvIndices, EnvIndices] | None = None,
        begun: EnvIndices = None,
    ) -> Event:
        """Return the next event, and change nothing.

        Args:
            envs: the environments that are stepped or reset.
            now: its time, in nanoseconds since the epoch.
            is_step: whether they are stepped, not reset.
            picked: the environments whose frame before, and whose frame after it is recorded. Default: all of ``envs``.
            begun: of a reset, the environments whose episodes begin. Default: all of ``envs``.
        """
        before, after = (envs, envs) if picked is None else picked
        return Event(self.frames, self.steps + is_step, now, is_step, envs, before, after, begun)

    def apply(self, event: Event) -> None:
        """Count an event: a frame if it is recorded; a further step of an episode, or the beginning of another one."""
        is_recorded = event.envs_after is event.envs or event.is_recorded
        if event.is_step and event.envs is None:
            settled, steps, shared = self._settled, self._more_steps + 1, event
        else:
            positions, later = self._settled
            settled, steps, shared = (positions, (*later, (self._more_steps, self._shared, event))), 0, None
            if len(later) == MOST_LATER:
                settled = _advanced(*settled), ()
        # No function is called from here on, so that Ctrl-C comes before all of it, or after.
        self._settled, self._more_steps, self._shared = settled, steps, shared
        if event.is_step:
            self.steps = event.step
        if is_recorded:
            self.frames += 1
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
            self._seen = amended

    def positions(self) -> Positions:
        """Return the position of each environment at its last frame, ``[envs, 6]``. Before the first reset the episode is -1."""
        return _after_steps(_advanced(*self._settled), self._more_steps, self._shared)

    def _settle(self, positions: Positions) -> None:
        self._settled, self._more_steps, self._shared = (positions, ()), 0, None

    def _caught_up(self) -> Positions:
        """Evaluate the events that wait, and return the positions after them. Called on the environment's thread."""
        if self._settled[1]:
            self._settled = _advanced(*self._settled), ()
        return self._settled[0]

    def _episodes(self) -> npt.NDArray[np.int64]:
        """Return the number of each environment's episode, ``[envs]``."""
        return _advanced(*self._settled)[:, EPISODE]

    def has_seen(self, event: Event) -> bool:
        """Return whether an event was the last one that was counted."""
        return self._seen is event

    def episode_numbers(self, envs: EnvIndices) -> npt.NDArray[np.int64]:
        """Return the numbers of the episodes that environments are in. Called on the environment's thread."""
        episodes = self._caught_up()[:, EPISODE]
        return episodes if envs is None else episodes[envs]

    def begun(self) -> int:
        """Return the number of episodes that have begun in all environments together."""
        episodes = self._episodes()
        return int(episodes.sum()) + len(episodes)

    def never_begun(self, envs: EnvIndices) -> EnvIndices:
        """Return those of ``envs`` that were never reset. Called on the environment's thread."""
        if self.all_begun:
            return NO_ENVS
        fresh = self._caught_up()[:, EPISODE] < 0
        self.all_begun = not fresh.any()
        return np.flatnonzero(fresh) if envs is None else envs[fresh[envs]]


MOST_LATER = 16
"""Upper bound on the events that are evaluated later: at the beginning of a block, say."""

_Later = tuple[int, Event | None, Event]
"""Number of steps of all environments before an event, the last of these, and the event."""


def _advanced(positions: Positions, later: tuple[_Later, ...]) -> Positions:
    """Return positions after events."""
    for steps, shared, event in later:
        positions = advance(_after_steps(positions, steps, shared), event)
    return positions


def _after_steps(positions: Positions, steps: int, shared: Event | None) -> Positions:
    """Return positions after steps of all environments, the last of which is given; None: there are none.

    As ``advance_together`` has it, in less than half of the time.
    """
    if shared is None:
        return positions
    after = positions.copy()
    after[:, FRAME], after[:, STEP], after[:, LOG_TIME] = shared[:3]
    after[:, EPISODE_STEP] += steps
    return after


def _before_the_first_reset(envs: int) -> Positions:
    positions = np.zeros((envs, COLUMNS), np.int64)
    positions[:, EPISODE] = -1
    return positions
