"""The front end: turn what Gymnasium's and Stable-Baselines3's environments return into resets and steps of a recording."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from torchrl_rerun.blocks.block import FrameValues
from torchrl_rerun.errors import warn
from torchrl_rerun.kinds.endings import Ends
from torchrl_rerun.kinds.keys import Key
from torchrl_rerun.kinds.streams import Stream
from torchrl_rerun.recording import workers
from torchrl_rerun.recording.controls import Switchable
from torchrl_rerun.recording.env_specs import ENV_SPEC
from torchrl_rerun.recording.episode_log import checked_annotations
from torchrl_rerun.recording.life import close_quietly, describing
from torchrl_rerun.recording.looks import Look, Taken
from torchrl_rerun.recording.opening import Opening
from torchrl_rerun.recording.recording import Recording
from torchrl_rerun.recording.session import Facts, Session
from torchrl_rerun.wrappers.describing import Describer
from torchrl_rerun.wrappers.plan import About, Plan
from torchrl_rerun.wrappers.stepped import Mask, Seeds, Stepped, Within


class FrontEnd(Switchable):
    """Open a recording at the first frame, make the plan, and pass resets and steps on by it.

    Args:
        session: the options of the recorder, and what its sink stands for.
        about: the environments.
        env: the environment, to be looked at.
        looks: what it is asked for.

    Attributes:
        recording: the recording in progress; None before the first frame.
        lock: held while the front end is used.
    """

    def __init__(self, session: Session, about: About, env: Any, looks: Sequence[Look[Any]]) -> None:
        super().__init__()
        self.session = session
        self.lock = threading.RLock()
        self._about = about
        self._env = env
        self._looks = looks
        self._plan: Plan | None = None
        self._describer = Describer(session.options, about, looks, self._vary)
        self._opening = Opening(session, self.close_quietly)
        self._has_lost_rows = self._has_warned = False
        self._down_rows = np.zeros((about.envs or 1, 1), np.bool_)
        self._down: Any = False if about.envs is None else np.zeros(about.envs, np.bool_)

    # --- life ---

    @contextlib.contextmanager
    def at_rest(self) -> Iterator[Recording | None]:
        """Hold the lock, and give the recording."""
        with self.lock:
            yield self.recording

    def close_quietly(self) -> None:
        """Close the recording; an error is a warning, for nobody is there to catch it."""
        if self.recording is not None:
            close_quietly(self.recording)

    @property
    def is_recording(self) -> bool:
        """Whether a recording is in progress."""
        return self.recording is not None and self.recording.alive

    @property
    def must_know_seeds(self) -> bool:
        """Whether seeds are recorded, as properties of episodes."""
        return self.session.options.split == "episode"

    def lacks_beside_actions(self, key: Key) -> bool:
        """Return whether a key of the policy's can't be recorded any more: it was missing at the first step.

        Args:
            key: the key, which the options don't leave out.
        """
        acted = None if self._plan is None else self._plan.acted
        wanted = self.session.options.in_keys
        return (
            acted is not None
            and (wanted is None or key in wanted)
            and all(reader.stream.key != key for reader in acted)
        )

    # --- resets and steps ---

    def reset(self, observation: Any, info: Any, mask: Mask = None, seeds: Seeds = ()) -> None:
        """Record that environments were reset.

        Args:
            observation: the observation of all environments.
            info: what they said beside it.
            mask: the environments that were reset. Default: all.
            seeds: the seed of each environment.

        Raises:
            KeyError, IndexError, ValueError, OSError: at the first frame, if the user's options don't fit.
        """
        with self.lock:
            recording = self._opened(mask, is_step=False)
            if recording is None:
                return
            root = (observation, info, self._down, self._down, self._down)
            if self._plan is None:
                with describing(recording):
                    self._plan = self._describer.observe(recording, self._env, root)
            if self._plan is None or not recording.alive:
                return
            try:
                self._reset(recording, self._plan.observed.arrays(root), mask, seeds)
            except Exception as error:  # training goes on: the next `dump()` raises it
                recording.fail(error)

    def step(
        self,
        stepped: Stepped,
        mask: Mask = None,
        ends: Ends | None = None,
        within: Within | None = None,
        seeds: Seeds = (),
    ) -> None:
        """Record that environments were stepped, and reset within the step.

        Args:
            stepped: what the call of ``step`` took and returned.
            mask: the environments that were stepped. Default: all.
            ends: which episodes ended. Default: none did.
            within: the environments that were reset within the step. Default: none were.
            seeds: the seed of each environment.

        Raises:
            KeyError, IndexError, ValueError, OSError: at the first frames, if the user's options don't fit.
        """
        with self.lock:
            recording, plan = self.recording, self._plan
            if recording is None or plan is None or plan.stepped is None or not recording.takes_frames:
                recording = self._begun_stepping(stepped, mask)
                plan = self._plan
            if recording is None or plan is None or plan.stepped is None or plan.acted is None:
                return
            try:
                observed = plan.observed.arrays(stepped.observed)
                begun = None
                if not recording.all_begun:
                    mask, begun = self._without_those_never_reset(recording, mask, ends, within)
                last, outcomes = observed, plan.stepped.arrays(stepped.outcome)
                if within is not None:
                    last = plan.observed.replace_rows(observed, within.mask, within.last)
                    if plan.observed.has_lost_rows and not self._has_lost_rows:
                        self._tell_lost_rows(recording)
                looks: Sequence[Taken] = ()
                if self._looks:
                    gone = None if within is None else _of(within.mask)
                    last = [*last, *[None] * len(self._looks)]
                    looks = [look.at(self._the_env, gone) for look in self._looks]
                values = FrameValues(last, outcomes, plan.acted.arrays(stepped.acted))
                recording.step(values, mask, ends, looks=looks)
                if within is not None:
                    if within.properties and self.must_know_seeds:
                        _annotate(recording, within)
                    begun = within.mask if begun is None else begun | within.mask
                if begun is not None:
                    for at in plan.flags:
                        observed[at] = self._down_rows
                    self._reset(recording, observed, begun, seeds)
            except Exception as error:  # training goes on: the next `dump()` raises it
                recording.fail(error)

    def fail(self, error: Exception) -> None:
        """Stop recording because of an error of the package's own; the next :meth:`dump` or :meth:`close` raises it.

        Args:
            error: the error.
        """
        with self.lock:
            if self.recording is not None and self.recording.alive:
                self.recording.fail(error)
            elif self.recording is None and not self._has_warned:
                self._has_warned = True
                warn(f"nothing is recorded: {type(error).__name__}: {error}", RuntimeWarning)

    def _tell_lost_rows(self, recording: Recording) -> None:
        """Say once, in the schema and to the user, that last observations are lost."""
        self._has_lost_rows = True
        recording.describe_origin(last_observations="lost")
        warn(
            "the last observations of episodes are lost, and recorded as NaN (or 0): the environment resets within step(), and "
            "gives no info['final_obs']"
        )

    def count_step(self) -> None:
        """Count a call of ``step`` that stepped no environment, but reset some or all."""
        with self.lock:
            if self.recording is not None and self.recording.takes_frames:
                self.recording.step(FrameValues(), np.zeros(self._about.envs or 1, np.bool_))

    def _reset(self, recording: Recording, observed: list[Any], mask: Mask, seeds: Seeds) -> None:
        looks: Sequence[Taken] = ()
        if self._looks:
            observed = [*observed, *[None] * len(self._looks)]
            looks = [look.at(self._the_env) for look in self._looks]
        recording.reset(observed, mask, seeds, looks=looks)

    def _begun_stepping(self, stepped: Stepped, mask: Mask) -> Recording | None:
        """Return the recording, opened, and make the plan complete; return None if that failed."""
        recording = self._opened(mask, is_step=True)
        if recording is None:
            return None
        with describing(recording):
            if self._plan is None:  # after `close()`, in the middle of episodes
                self._plan = self._describer.observe(recording, self._env, stepped.observed)
            if self._plan.stepped is None:
                self._plan = self._describer.step(recording, self._plan, stepped.outcome, stepped.acted)
        return recording if recording.alive else None

    def _without_those_never_reset(
        self, recording: Recording, mask: Mask, ends: Ends | None, within: Within | None
    ) -> tuple[Mask, Mask]:
        """Return the environments whose step is recorded, and those whose episodes begin with the observation after it.

        Their observation before the step isn't known, so that the step is no transition. One that ended an episode which the
        recorder hasn't seen leaves nothing, unless the environment was reset within the step.
        """
        fresh = recording.never_reset(mask)
        if fresh is None:
            return mask, None
        begun = fresh.copy()
        if ends is not None and within is None:
            begun &= ~ends.either
        if mask is not None:
            begun &= mask
        return ~fresh if mask is None else mask & ~fresh, begun if begun.any() else None

    # --- opening ---

    def _opened(self, mask: Mask, *, is_step: bool) -> Recording | None:
        """Return the recording in progress, opened if need be; None if the frame can't be recorded."""
        recording = self.recording
        if recording is not None and recording.takes_frames:
            return recording
        recording = self._opening.open(recording, self._facts, self._about.batch_size, mask, is_step=is_step)
        if recording is not None:
            self.recording, self._plan = recording, None
            if not self._is_enabled:
                recording.switch(enabled=False)
        return recording

    def _facts(self) -> Facts:
        number = workers.number_in_batch()
        spec = _known(self._about.spec)
        return Facts(
            self._about.batch_size,
            _known(self._about.name),
            None if self.session.options.fps else _known(self._about.fps),
            is_worker=workers.in_worker_process(),
            worker=workers.number_among_processes() if number is None else number,
            origin={
                **self._about.origin,
                **({} if spec is None else {ENV_SPEC: spec}),
                **({"last_observations": "lost"} if self._has_lost_rows else {}),
            },
        )

    def _the_env(self) -> Any:
        return self._env

    def _vary(self, stream: Stream) -> Stream | None:
        return None if self.recording is None else self.recording.vary(stream)


def _annotate(recording: Recording, within: Within) -> None:
    """Add properties to the episodes that ended, unless the user has."""
    said = checked_annotations(dict(within.properties))
    for env in np.flatnonzero(within.mask) + recording.source.first_env:
        with contextlib.suppress(ValueError, IndexError):  # it isn't recorded, or is annotated already
            recording.annotate(int(env), said)


def _of(mask: npt.NDArray[np.bool_]) -> Callable[[], npt.NDArray[np.bool_]]:
    return lambda: mask


def _known(tell: Callable[[], Any]) -> Any:
    """Return a fact about the environment; None if its own code fails, which is no reason to stop."""
    try:
        return tell()
    except Exception:
        return None
