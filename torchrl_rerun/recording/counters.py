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
        self._settled = _before_the_first_reset(envs)  # replaced, never changed
        self._more_steps = 0  # of all environments since then
        self._shared: Event | None = None  # the last of these steps
        self._seen: Event | None = None
        self.all_begun = False

    @property
    def progress(self) -> Progress:
        """The number of steps, and of the episode of each environment."""
        return Progress(self.steps, self._settled[:, EPISODE])

    def resume(self, progress: Progress) -> None:
        """Go on at the position of another program, as far as the environments are the same."""
        self.steps, self.frames = progress.steps, progress.frames
        known = min(len(self._settled), len(progress.episodes))
        settled = self._settled.copy()
        settled[:known, EPISODE] = progress.episodes[:known]
        settled[:, STEP] = progress.steps
        self._settled = settled

    def grow(self, envs: int) -> None:
        """Follow more environments, which haven't been reset."""
        more = _before_the_first_reset(envs - len(self._settled))
        self._settle(np.concatenate([self.positions(), more]))
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
            settled, steps, shared = advance(self.positions(), event), 0, None
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
        shared = self._shared
        if shared is None:
            return self._settled
        # As `advance_together` has it, in less than half of the time.
        after = self._settled.copy()
        after[:, FRAME], after[:, STEP], after[:, LOG_TIME] = shared[:3]
        after[:, EPISODE_STEP] += self._more_steps
        return after

    def _settle(self, positions: Positions) -> None:
        self._settled, self._more_steps, self._shared = positions, 0, None

    def has_seen(self, event: Event) -> bool:
        """Return whether an event was the last one that was counted."""
        return self._seen is event

    def episode_numbers(self, envs: EnvIndices) -> npt.NDArray[np.int64]:
        """Return the numbers of the episodes that environments are in."""
        episodes = self._settled[:, EPISODE]
        return episodes if envs is None else episodes[envs]

    def begun(self) -> int:
        """Return the number of episodes that have begun in all environments together."""
        return int(self._settled[:, EPISODE].sum()) + len(self._settled)

    def never_begun(self, envs: EnvIndices) -> EnvIndices:
        """Return those of ``envs`` that were never reset."""
        if self.all_begun:
            return NO_ENVS
        fresh = self._settled[:, EPISODE] < 0
        self.all_begun = not fresh.any()
        return np.flatnonzero(fresh) if envs is None else envs[fresh[envs]]


def _before_the_first_reset(envs: int) -> Positions:
    positions = np.zeros((envs, COLUMNS), np.int64)
    positions[:, EPISODE] = -1
    return positions
