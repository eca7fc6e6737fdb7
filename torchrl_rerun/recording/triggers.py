"""Triggers: which frames of which environments are recorded, decided as they come."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from torchrl_rerun.blocks.events import NO_ENVS, EnvIndices
from torchrl_rerun.errors import warn
from torchrl_rerun.recording.options import Options, Trigger


class Selection:
    """Follows the environments and picks the frames to record.

    Args:
        envs: number of environments.
        options: the triggers, the length of a recording, and ``skip``.

    Attributes:
        takes_all: whether all frames are recorded, now and just before; if so it needn't be called.

    >>> selection = Selection(2, Options(episode_trigger=lambda episode: episode % 2 == 0, recording_length=1))
    >>> selection.reset(None, np.array([0, 1]))  # the episodes that the environments are in now
    array([0])
    >>> selection.step(None, 1, None)
    (array([0]), array([0]))
    >>> selection.step(None, 2, None)  # the action that the first one's last frame led to
    (array([0]), array([], dtype=int64))
    """

    def __init__(self, envs: int, options: Options) -> None:
        self._options = options
        self._everyone = np.arange(envs)
        self._is_enabled = True
        self._was_recorded = np.ones(envs, np.bool_)  # the last frame of each
        self._is_running = np.full(envs, not options.has_triggers)
        self._length = np.zeros(envs, np.int64)  # frames since the recording that runs was started
        self._since = np.zeros(envs, np.int64)  # steps since the episode began, or a trigger started a recording
        self._has_warned = False
        self.takes_all = options.selects_all_frames

    @property
    def calls_nobody(self) -> bool:
        """Whether no trigger of the user is called."""
        return not self._options.has_triggers

    def grow(self, envs: int) -> None:
        """Follow more environments, which haven't been reset."""
        more = envs - len(self._everyone)
        self._everyone = np.arange(envs)
        self._was_recorded = np.append(self._was_recorded, np.ones(more, np.bool_))
        self._is_running = np.append(self._is_running, np.full(more, not self._options.has_triggers))
        self._length = np.append(self._length, np.zeros(more, np.int64))
        self._since = np.append(self._since, np.zeros(more, np.int64))

    def switch(self, *, enabled: bool) -> None:
        """Record frames, or record none. A recording that a trigger has started waits meanwhile."""
        self._is_enabled = enabled
        self.takes_all = False

    def reset(self, envs: EnvIndices, episodes: npt.NDArray[np.int64], begun: EnvIndices = None) -> EnvIndices:
        """Return the environments whose frame is recorded when they are reset.

        Args:
            envs: the environments that are reset.
            episodes: the numbers of the episodes that begin.
            begun: the environments whose episodes begin. Default: all of ``envs``. In the others some groups of agents are
                reset, which is recorded if the frame before is.
        """
        envs_begun = envs if begun is None else begun
        at = self._at(envs_begun)
        self._since[at] = 0
        if self._options.has_triggers:
            if not self._options.recording_length:
                self._is_running[at] = False
            if self._options.episode_trigger is not None and self._is_enabled:
                trigger = self._options.episode_trigger
                self._start([env for env, n in zip(at, episodes, strict=True) if self._asked(trigger, int(n))])
        picked = self._picked(envs_begun, at, None)
        if begun is None:
            return picked
        regrouped = np.setdiff1d(self._at(envs), at)
        taken = regrouped[self._was_recorded[regrouped]] if self._is_enabled else NO_ENVS
        return self._all_or(np.union1d(self._at(picked), taken), envs)

    def step(self, envs: EnvIndices, step: int, ended: npt.NDArray[np.bool_] | None) -> tuple[EnvIndices, EnvIndices]:
        """Return the environments whose frame before, and whose frame after a step is recorded.

        Args:
            envs: the environments that are stepped.
            step: number of calls of ``env.step`` so far, this one included.
            ended: mask of the environments whose episodes end, ``[envs]``; None: no episode does.
        """
        if not (self._is_enabled or self._was_recorded.any()):
            return NO_ENVS, NO_ENVS
        at = self._at(envs)
        before = at[self._was_recorded[at]]
        self._since[at] += 1
        trigger = self._options.step_trigger
        if trigger is not None and self._is_enabled and self._asked(trigger, step - 1):
            self._start(at)
        return self._all_or(before, envs), self._picked(envs, at, ended)

    def end(self, envs: EnvIndices, after: EnvIndices, ended: npt.NDArray[np.bool_]) -> EnvIndices:
        """Return the environments whose frame after the last step is recorded, now that more of their ends are known.

        Args:
            envs: the environments that were stepped.
            after: the environments whose frame is recorded so far.
            ended: mask of the environments whose episodes end with it, ``[envs]``.
        """
        at = self._at(envs)
        late = at[ended[at] & self._is_running[at] & ~self._was_recorded[at]] if self._is_enabled else NO_ENVS
        if self._options.skip == 1 or not len(late):
            return after
        self._was_recorded[late] = True
        return self._all_or(np.union1d(self._at(after), late), envs)

    def _asked(self, trigger: Trigger, number: int) -> bool:
        """Call the user's function. If it fails the frames are recorded: those that aren't are lost for good."""
        try:
            return bool(trigger(number))
        except Exception as error:
            if not self._has_warned:
                self._has_warned = True
                warn(f"{trigger!r} failed at {number}: {error!r}; what it fails at is recorded", RuntimeWarning)
            return True

    def _at(self, envs: EnvIndices) -> npt.NDArray[np.intp]:
        return self._everyone if envs is None else envs

    def _start(self, at: list[int] | npt.NDArray[np.intp]) -> None:
        self._is_running[at] = True
        self._length[at] = self._since[at] = 0

    def _picked(self, envs: EnvIndices, at: npt.NDArray[np.intp], ended: npt.NDArray[np.bool_] | None) -> EnvIndices:
        taken = self._is_running[at] & self._is_enabled
        if self._options.recording_length and self._options.has_triggers and self._is_enabled:
            self._length[at] += taken
            self._is_running[at] &= self._length[at] <= self._options.recording_length
        if self._options.skip > 1:
            is_due = self._since[at] % self._options.skip == 0
            taken &= is_due if ended is None else is_due | ended[at]
        self._was_recorded[at] = taken
        self.takes_all = self._is_enabled and self._options.selects_all_frames and bool(self._was_recorded.all())
        return self._all_or(at[taken], envs)

    def _all_or(self, picked: npt.NDArray[np.intp], envs: EnvIndices) -> EnvIndices:
        """Return ``picked``; as None if these are all environments."""
        if not len(picked):
            return NO_ENVS
        return None if envs is None and len(picked) == len(self._was_recorded) else picked
