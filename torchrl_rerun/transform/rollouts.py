"""Rollouts: stored data of many frames, recorded as the resets and steps that it came from."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from tensordict import TensorDictBase
from torchrl.envs import EnvBase

from torchrl_rerun.errors import warn
from torchrl_rerun.kinds.keys import Key, name_of
from torchrl_rerun.transform import tensordicts
from torchrl_rerun.transform.continuity import Continuity, stepped_in
from torchrl_rerun.transform.describing import FirstStep
from torchrl_rerun.transform.front_end import FrontEnd
from torchrl_rerun.transform.interleaved import Interleaved
from torchrl_rerun.transform.padded_batches import Trajectories, padding_mask
from torchrl_rerun.transform.stepping import Mask

_LEAST_AT_ONCE, _MOST_AT_ONCE = 4, 4096
"""Bounds on the steps of a rollout that are compared and recorded at once. Fewer are quicker one by one."""

_BYTES_AT_ONCE = 32 << 20
"""Bytes of these steps, about."""


class Rollouts:
    """Record rollouts. One that goes on where the last one ended continues its episodes.

    Args:
        front_end: records the resets and steps.
    """

    def __init__(self, front_end: FrontEnd) -> None:
        self._front_end = front_end
        self._continuity = Continuity()
        self._trajectories = Trajectories()
        self._interleaved = Interleaved()
        self._displaced: Mask = None  # the environments that the last rollout has displaced

    def record(self, env: EnvBase | None, rollout: TensorDictBase, begins: bool | Sequence[bool] = False) -> None:
        """Record a rollout, padded or not.

        Args:
            env: the environment, for its specs; None: there is none.
            rollout: ``[*batch, time]``: root keys at t, ``("next", ...)`` keys at t + 1, of all environments; or
                ``[*trajectories, time]`` with the mask of a padded batch.
            begins: whether episodes begin with the rollout, though it looks as if it went on; or for each environment.
        """
        if not rollout.batch_size.numel():
            return
        mask = padding_mask(rollout)
        if mask is not None:
            recording = self._front_end.recording
            laid = self._trajectories.laid_out(rollout, mask, 0 if recording is None else recording.source.envs)
            self._make_room(self._trajectories.envs)
            self._record(env, laid.tensordict, laid.begins, laid.stepped)
            return
        self._interleaved.look(rollout, self._continuity.last)
        first = np.zeros((rollout.batch_size[:-1].numel(), rollout.batch_size[-1]), bool)
        first[:, :1] = np.asarray(begins, bool).reshape(-1, 1)
        self._record(env, rollout, first, stepped_in(rollout))

    def record_frame(self, env: EnvBase | None, frame: TensorDictBase) -> None:
        """Record one frame of a rollout.

        Args:
            env: the environment, for its specs.
            frame: ``[*batch]``: root keys at t, ``("next", ...)`` keys at t + 1.
        """
        rollout = frame.unsqueeze(-1)
        self._record(env, rollout, None, stepped_in(rollout))

    def _record(
        self,
        env: EnvBase | None,
        rollout: TensorDictBase,
        begins: npt.NDArray[np.bool_] | None,
        stepped: npt.NDArray[np.bool_] | None,
    ) -> None:
        """Record a rollout that isn't padded.

        Args:
            env: the environment, for its specs.
            rollout: ``[*batch, time]``.
            begins: bool ``[envs, time]``, where an episode begins, whatever the data looks like. Default: nowhere.
            stepped: bool ``[envs, time]``, which environments were stepped. Default: all at all times.
        """
        front_end = self._front_end
        front_end.record_unseen_step()
        front_end.revise_last_step()
        recording = front_end.recording
        has_come_back = front_end.displaced is not self._displaced  # the environments were reset or stepped since
        if has_come_back or recording is None or recording.process != os.getpid():
            self._continuity.forget()
        front_end.put_back()
        led_to = tensordicts.data_keys(rollout.get("next"))  # any of the steps may lack one of them, the first one too
        at_once = _steps_at_once(rollout)
        for at in range(0, rollout.batch_size[-1], at_once):
            some = slice(at, at + at_once)
            part, of_part = _between(rollout, at, at + at_once), None if stepped is None else stepped[:, some]
            found = self._continuity.begun(part, of_part)
            begun = found.episodes if begins is None else found.episodes | begins[:, some]
            if of_part is not None:
                begun = begun & of_part
            self._record_part(env, part, led_to, begun, regrouped=found.groups & ~begun, stepped=of_part)
        self._warn_of_late_outcomes(led_to)
        recording = front_end.recording
        if recording is not None and rollout.batch_size[:-1] == recording.source.batch_size:
            front_end.displace()
        self._displaced = front_end.displaced

    def _record_part(
        self,
        env: EnvBase | None,
        part: TensorDictBase,
        led_to: Sequence[Key],
        begun: npt.NDArray[np.bool_],
        *,
        regrouped: npt.NDArray[np.bool_],
        stepped: npt.NDArray[np.bool_] | None,
    ) -> None:
        """Record some steps of a rollout: at once if nothing of them needs one step after the other.

        Args:
            env: the environment, for its specs.
            part: ``[*batch, time]``.
            led_to: the keys that steps lead to.
            begun: the environments whose episodes begin before each step, ``[envs, time]``.
            regrouped: those of which only some groups of agents are reset, ``[envs, time]``.
            stepped: the environments that are stepped, ``[envs, time]``. Default: all, each time.
        """
        front_end, time = self._front_end, part.batch_size[-1]
        can_be_many = tensordicts.is_dense(part) and not regrouped.any()
        for at in range(time):
            if can_be_many and time - at >= _LEAST_AT_ONCE and front_end.takes_many():
                of_rest = None if stepped is None else stepped[:, at:]
                if front_end.steps(lambda: env, _between(part, at, time), begun[:, at:], of_rest):
                    return
                can_be_many = False
            self._transition(
                env,
                part[..., at],
                led_to,
                begun=begun[:, at],
                regrouped=regrouped[:, at],
                mask=None if stepped is None else stepped[:, at],
            )

    def _transition(
        self,
        env: EnvBase | None,
        frame: TensorDictBase,
        led_to: Sequence[Key],
        *,
        begun: npt.NDArray[np.bool_],
        regrouped: npt.NDArray[np.bool_],
        mask: Mask,
    ) -> None:
        following = frame.get("next")

        def env_of() -> EnvBase | None:
            return env

        if mask is not None:
            regrouped = regrouped & mask
        reset = begun | regrouped
        acted = self._front_end.acted(lambda: None, frame)
        if reset.any():
            observed = frame.select(*led_to, strict=False)
            self._front_end.reset(
                env_of,
                observed,
                None if reset.all() else reset,
                begun=begun if regrouped.any() else None,
                first_step=FirstStep(frame, acted, following),
            )
        if mask is None or mask.any():
            self._front_end.step(env_of, frame, acted, following, mask)

    def _make_room(self, envs: int) -> None:
        """Make room for more environments than were known: trajectories that don't end.

        Args:
            envs: the number of environments now.
        """
        front_end, recording = self._front_end, self._front_end.recording
        if recording is None or recording.process != os.getpid():
            return
        if len(recording.source.batch_size) != 1 or recording.source.envs >= envs:
            return
        recording.grow(envs)
        self._continuity.grow(envs)
        front_end.grow(envs)

    def _warn_of_late_outcomes(self, led_to: Sequence[Key]) -> None:
        """Warn of keys that steps lead to, but that are recorded as the policy's: no step had led to them at first."""
        plan, warned = self._front_end.plan, self._front_end.reader.warned
        if plan is None or not plan.is_complete:
            return
        late = [key for key in plan.acted.keys if key in led_to and key not in warned]
        if late:
            warned.update(late)
            warn(
                f"{', '.join(map(name_of, late))} is recorded as it goes into a step, and what steps lead to is not: the "
                "first ones that were recorded had it before them alone. Record a rollout first in which a step leads to it"
            )


def _between(rollout: TensorDictBase, first: int, last: int) -> TensorDictBase:
    """Return the steps ``[first, last)`` of a rollout; the rollout itself if these are all: to slice it costs as much as to record it."""
    return rollout if first == 0 and last >= rollout.batch_size[-1] else rollout[..., first:last]


def _steps_at_once(rollout: TensorDictBase) -> int:
    """Return the number of steps of a rollout that are compared and recorded at once."""
    time: int = rollout.batch_size[-1]
    if time <= _LEAST_AT_ONCE:  # single frames of a callback, for one: there is nothing to bound
        return time
    both = rollout, rollout.get("next")
    found = [tensordicts.value_of(data, key) for data in both for key in tensordicts.data_keys(data)]
    values = [value for value in found if isinstance(value, torch.Tensor) and not value.is_nested]
    step_bytes: int = sum(value.numel() * value.element_size() for value in values) // time
    return min(max(_BYTES_AT_ONCE // max(1, step_bytes), _LEAST_AT_ONCE), _MOST_AT_ONCE)
