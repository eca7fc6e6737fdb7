"""The feed: tensordicts of an environment, turned into the steps of a recording that opens with the first of them."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import multiprocessing.util
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from tensordict import TensorDictBase
from torchrl.envs import EnvBase, Transform

from torchrl_rerun.errors import RecordingError, warn
from torchrl_rerun.kinds.endings import FLAGS, Endings, Ends
from torchrl_rerun.kinds.places import free_key
from torchrl_rerun.kinds.schema import Moment
from torchrl_rerun.kinds.streams import Key, Leaf, Stream, UnsupportedLeafError, as_key, describe, name_of
from torchrl_rerun.recording.last_step import PENDING, Pending, Revision
from torchrl_rerun.recording.recording import Recording
from torchrl_rerun.recording.session import Facts, Settings, open_recording
from torchrl_rerun.transform import specs
from torchrl_rerun.transform.calls import Call
from torchrl_rerun.transform.camera import PIXELS, Camera
from torchrl_rerun.transform.continuity import Continuity
from torchrl_rerun.transform.workers import in_worker, worker_number
from torchrl_rerun.writing.rerun_streams import OutOfReachError

Mask = npt.NDArray[np.bool_] | None
"""Which environments of the flattened batch are meant; None: all."""


Acted = dict[Key, Any] | list[Any]
"""The policy's values: of all keys that may be its, or once that is known of its keys in their order."""

_SOME_MOMENTS = 64
"""Of stored rollouts so many are looked at together."""

_SETTLING_SECONDS = 10.0
"""How long another thread waits for the transforms behind the recorder, at most."""

_BOOKKEEPING = {"is_init", "traj_ids"}
"""What collectors add behind the recorder; a recording tells all of it by its timelines."""

EnvOf = Callable[[], EnvBase | None]
"""Gives the environment, if there is one; asked only where its specs are needed, since finding it takes microseconds."""


class Feed:
    """Describes what it sees at the first reset and the first step, and passes on what comes.

    Args:
        settings: what the user asked for.
        behind: gives the transforms that come after the recorder, and may change what passes.

    Attributes:
        recording: the recording in progress; None before the first frame.
        lock: held while the feed is used: replay buffers call their transforms in several threads at once.
    """

    def __init__(self, settings: Settings, behind: Callable[[], Sequence[Transform]]) -> None:
        self._settings = settings
        self._behind = behind
        self.lock = threading.RLock()
        self.recording: Recording | None = None
        self._enabled = True
        self._camera = Camera() if settings.render else None
        self._forget_keys()
        self._continuity = Continuity()
        # Environments that were stepped before a stored rollout was recorded, and not since; None: none of them.
        self._displaced: Mask = None
        self._resets_itself = False
        self._resets_by_group = False
        self._warned_of_shape = False
        self._warned_of_change: set[Key] = set()
        self._warned_of_others = False
        self._around: tuple[str, ...] | None = None  # what the transforms of environments around this one are called
        # The step that is under way. Whoever steps keeps it: it leads to the environment, which would live as long as this.
        self._stepping: weakref.ref[Stepping] | None = None
        self._final: _Final | None = None
        self._process = os.getpid()
        self._is_elsewhere = False  # what is recorded to, and can't be had here

    @contextlib.contextmanager
    def at_rest(self) -> Iterator[None]:
        """Hold the lock once no other thread is in a transform behind the recorder, which may still change the flags of a step."""
        deadline = time.monotonic() + _SETTLING_SECONDS
        while True:
            with self.lock:
                is_settling = self._final is not None and self._final.is_to_come_elsewhere
                if is_settling and time.monotonic() > deadline:
                    is_settling = False
                    warn(
                        f"a transform behind the recorder has been at work for {_SETTLING_SECONDS:g} s: flags that it sets for "
                        "this step are not recorded"
                    )
                if not is_settling:
                    yield
                    return
            time.sleep(0.001)

    @property
    def enabled(self) -> bool:
        """Whether anything is recorded."""
        return self._enabled

    @enabled.setter
    def enabled(self, enabled: bool) -> None:
        self._enabled = enabled
        if self.recording is not None:
            self.recording.switch(enabled=enabled)

    def close_quietly(self) -> None:
        """Close the recording where nobody is there to catch an error."""
        if self.recording is not None and self.recording.is_on_writers_thread:
            # Garbage was collected there. To close a recording is to wait for its writer.
            threading.Thread(target=self.close_quietly, name="torchrl_rerun-closing").start()
            return
        self.catch_up()
        if self.recording is not None:
            try:
                self.recording.close()
            except RecordingError as error:
                warn(str(error), RuntimeWarning)

    def _forget_keys(self) -> None:
        self._skipped: set[Key] = set()
        self._is_described = False
        # What is read: of observations (None: not known yet), of all that comes of a step, the observations first, and
        # of what the policy wrote.
        self._of_observed: list[_Read] | None = None
        self._of_following: list[_Read] = []
        self._of_acted: list[_Read] = []
        self._endings = Endings(())
        self._present: TensorDictBase | None = None  # what was seen last, if groups of agents are reset apart

    # --- live ---

    def acted(self, env: EnvOf, root: TensorDictBase) -> Acted:
        """The policy's part of what goes into a step, as it is now: transforms may change it before it is stepped.

        Args:
            env: the environment, for its specs.
            root: what goes into the step.
        """
        if self._is_described and self.recording is not None and self.recording.alive:
            return self._values(self._of_acted, root)
        if self._settings.in_keys is not None:
            keys = list(self._settings.in_keys)
        else:
            known = env()
            keys = specs.data_keys(root) if known is None else [as_key(key) for key in known.action_keys]
        return {key: specs.value_of(root, key) for key in keys}

    def reset(
        self,
        env: EnvOf,
        observed: TensorDictBase,
        mask: Mask = None,
        *,
        begun: Mask = None,
        outcome: TensorDictBase | None = None,
        is_past: bool = False,
    ) -> None:
        """Environments were reset.

        Args:
            env: the environment, for its specs.
            observed: the data after the reset, of all environments.
            mask: which of them were reset.
            begun: whose episodes begin; None: those of all that were reset. Of the others some groups of agents were reset.
            outcome: the data after the first step where that is known already, for the rewards in it.
            is_past: they have been stepped since, and can't be rendered as they were.
        """
        recording = self._opened(env, observed, mask, is_step=False)
        if recording is None or not self._fits(recording, observed):
            return
        if self._displaced is not None:
            self._come_back(mask)
        if self._of_observed is None:
            with _describing(recording):
                self._describe_observed(recording, env(), observed, outcome)
        if self._of_observed is not None:
            try:
                arrays = self._arrays(self._of_observed, observed)
                render = None
                if self._camera is not None:
                    arrays.append(None)
                    render = None if is_past else self._camera.at(env)
                seeds = specs.seeds(env()) if recording.must_know_ends else ()
                recording.reset(arrays, mask, seeds, begun=begun, render=render)
                if self._resets_by_group:
                    self._present = observed
            except Exception as error:  # training goes on: it is kept for the next `dump()`
                recording.fail(error)

    def regroup(
        self, env: EnvOf, observed: TensorDictBase, resets: Mapping[Key, torch.Tensor], mask: Mask, begun: Mask
    ) -> None:
        """Groups of agents were reset, and others keep what they observed last, as in TorchRL's rollouts.

        Args:
            env: the environment, for its specs.
            observed: the data after the reset, of all environments.
            resets: by group, which agents were reset.
            mask: of which environments any agent was reset.
            begun: whose episodes begin.
        """
        if self._present is not None:
            observed = specs.regrouped(observed, self._present, resets)
        self.reset(env, observed, mask, begun=begun)

    def step(
        self,
        env: EnvOf,
        root: TensorDictBase,
        acted: Acted,
        following: TensorDictBase,
        mask: Mask = None,
        *,
        may_change: bool = False,
    ) -> None:
        """Environments were stepped.

        Args:
            env: the environment, for its specs.
            root: what went into the step.
            acted: the policy's part of it, see :meth:`acted`.
            following: what came of it.
            mask: which environments were stepped.
            may_change: whether transforms behind the recorder have yet to see what came of it.
        """
        recording = self.recording
        if recording is None or not recording.alive or not self._is_described:
            recording = self._begun_stepping(env, root, acted, following, mask)
        if recording is None or not self._fits(recording, following):
            return
        if not recording.all_begun:
            self._begin_those_never_reset(recording, env, root, following, mask)
        if self._displaced is not None:
            displaced = self._come_back(mask)
            if displaced.any():
                observed = _observed_in(root, following)
                self.reset(env, observed, None if displaced.all() else displaced, is_past=True)
        try:
            values = self._values(self._of_following, following)
            arrays = [*map(self._array, self._of_following, values)]
            count = len(self._of_observed or ())
            if self._resets_itself:
                keys = [read.key for read in self._of_following[:count]]
                arrays[:count] = specs.without_last_observations(keys, arrays[:count], env(), following)
            observed = arrays[:count]
            ends = self._ends(following) if recording.must_know_ends else None
            render = None
            if self._camera is not None:
                observed.append(None)
                render = self._camera.at(env, following)
            revise = None
            if may_change:
                self._final = _Final(following, self._stepping)
                revise = functools.partial(self._revised, self._final, values, [*map(_version_of, values)], arrays)
            recording.step(self._actions(acted), observed, arrays[count:], mask, ends, render=render, revise=revise)
            if self._resets_by_group:
                self._present = following
        except Exception as error:  # training goes on: it is kept for the next `dump()`
            recording.fail(error)

    def _come_back(self, mask: Mask) -> npt.NDArray[np.bool_]:
        """Return the environments in ``mask`` whose episode a stored rollout has interrupted, and count them as resumed."""
        assert self._displaced is not None, "a stored rollout came between"
        self._continuity.forget()
        back = self._displaced if mask is None else self._displaced & mask
        rest = self._displaced & ~back
        self._displaced = rest if rest.any() else None
        return back

    def _ends(self, following: TensorDictBase) -> Ends | None:
        """Whose episodes end with a step, from what came of it."""
        return self._endings.of(functools.partial(specs.flags_of, following), following.batch_size.numel())

    def enter(self, env: EnvOf, root: TensorDictBase) -> Stepping:
        """Environments are about to be stepped. Returns what the caller must keep until the next step.

        Args:
            env: the environment, for its specs.
            root: what goes into the step, before transforms in front of the recorder change it.
        """
        self.catch_up()
        self.settle()
        call = Call()
        if self._around is None:
            self._around = tuple(type(each).__name__ for each in specs.flat(call.outer_transforms()))
        stepping = Stepping(env, root, specs.value_at_root(root, "_step"), self.acted(env, root), call)
        self._stepping = weakref.ref(stepping)
        return stepping

    @property
    def _entered(self) -> Stepping | None:
        """The step that is under way, if it isn't recorded yet."""
        stepping = None if self._stepping is None else self._stepping()
        return None if stepping is None or stepping.is_recorded else stepping

    def leave(self, env: EnvOf, root: TensorDictBase, following: TensorDictBase) -> None:
        """Environments were stepped, and transforms behind the recorder have yet to see what came of it.

        Args:
            env: the environment, for its specs.
            root: what went into the base environment's step.
            following: what came of it.
        """
        entered = self._entered
        if entered is None:
            self.step(env, root, self.acted(env, root), following, may_change=True)
        elif following.batch_size == entered.root.batch_size:
            entered.is_recorded = True
            mask = _stepped(entered, following, specs.value_at_root(root, "_step"))
            self.step(env, root, entered.acted, following, mask, may_change=True)

    def finish(self, following: TensorDictBase) -> None:
        """All transforms have seen what came of a step.

        Args:
            following: what came of it.
        """
        self.catch_up(following)
        if self._final is not None:
            self._final.following = following
            self.settle()

    def catch_up(self, following: TensorDictBase | None = None) -> None:
        """Record the last step if nobody said that it was made, see :class:`~torchrl_rerun.transform.calls.Call`.

        Args:
            following: what came of it, if that is known.
        """
        entered = self._entered
        if entered is None or self.recording is None or not self.recording.alive:
            return
        if following is None:
            following = entered.call.following()
        if following is None or following.batch_size != entered.root.batch_size:
            return  # it goes on, on another thread perhaps, or has failed
        entered.is_recorded = True
        given = entered.call.partial_steps()
        nobody = torch.zeros(following.batch_size, dtype=torch.bool)
        mask = _stepped(entered, following, nobody if given is None else given)
        self.step(entered.env, entered.root, entered.acted, following, mask)

    def settle(self) -> None:
        """Look once more at the last step, before what it came to is gone."""
        self._final = None
        if self.recording is not None and self.recording.alive:
            self.recording.revise_last_step()

    def _revised(
        self, final: _Final, values: Sequence[Any], versions: Sequence[int], arrays: Sequence[Any], at_once: bool
    ) -> Revision | Pending | None:
        """What became of a step behind the recorder: its flags are recorded as they are in the end.

        Args:
            final: what came of the step in the end.
            values: what the recorder saw.
            versions: how often each of these had been written to by then.
            arrays: the same, as it was recorded.
            at_once: whether it can't be asked again later.
        """
        following, recording = final.following, self.recording
        if not at_once and final.is_to_come:
            return PENDING
        if recording is None or following.batch_size != recording.source.batch_size:
            return None
        reads, now = self._of_following, self._values(self._of_following, following)
        settled = [*arrays]
        changed = False
        for i, read in enumerate(reads):
            is_flag = read.key[-1] in FLAGS
            if now[i] is None:
                continue
            if now[i] is values[i] or _is_same_memory(now[i], values[i]):
                if _version_of(now[i]) == versions[i]:
                    continue
                # It was written to in place, and what is read now is another value than what was copied.
                if is_flag and arrays[i] is not None:
                    changed = True
                elif not self._warned_of_others:
                    self._warn_of_others(read.key)
                continue
            if read.stream.device:
                if is_flag and arrays[i] is not None:  # nobody waits to hear whether it is another one
                    settled[i], changed = now[i].reshape(arrays[i].shape), True
            elif _is_other(now[i], arrays[i]):
                if is_flag and now[i].numel() == arrays[i].size:
                    settled[i], changed = _plain(now[i], arrays[i].shape), True
                elif not self._warned_of_others:
                    self._warn_of_others(read.key)
        if not changed:
            return None
        count, nobody = len(self._of_observed or ()), np.zeros(following.batch_size.numel(), np.bool_)
        ends = (self._ends(following) or Ends(nobody, nobody)) if recording.must_know_ends else None
        return Revision(settled[:count], settled[count:], ends)

    def _warn_of_others(self, key: Key) -> None:
        """Say that what is recorded isn't what the rollout holds."""
        self._warned_of_others = True
        behind = list(dict.fromkeys(type(each).__name__ for each in self._behind()))
        behind += [name for name in self._around or () if name not in behind]
        who = " or ".join(behind) if behind else "a transform"
        warn(
            f"{name_of(key)} is recorded as it passes the recorder, and is not what the rollout holds: {who} changes it "
            "afterwards. Append the recorder last, to the outermost environment"
        )

    def _begun_stepping(
        self, env: EnvOf, root: TensorDictBase, acted: Acted, following: TensorDictBase, mask: Mask
    ) -> Recording | None:
        """The recording, opened, with all its keys described; None if that failed."""
        recording = self._opened(env, following, mask, is_step=True)
        if recording is None or self._is_described or not self._fits(recording, following):
            return recording
        self._begin_those_never_reset(recording, env, root, following, mask)
        if self._of_observed is None:  # after `close()`, in the middle of episodes
            with _describing(recording):
                self._describe_observed(recording, env(), _observed_in(root, following), following)
        if self._of_observed is not None:
            with _describing(recording):
                self._describe_stepped(recording, env(), root, acted, following)
        return recording if self._is_described else None

    def _begin_those_never_reset(
        self, recording: Recording, env: EnvOf, root: TensorDictBase, following: TensorDictBase, mask: Mask
    ) -> None:
        """Environments may have been reset before our time: what the policy saw is their first observation then."""
        fresh = recording.never_reset(mask)
        if fresh is not None:
            self.reset(env, _observed_in(root, following), fresh, is_past=True)

    # --- stored ---

    def rollout(
        self,
        env: EnvBase | None,
        rollout: TensorDictBase,
        begins: npt.NDArray[np.bool_] | None = None,
        stepped: npt.NDArray[np.bool_] | None = None,
    ) -> None:
        """Consecutive moments of a stored rollout.

        Args:
            env: the environment, for its specs; None: there is none.
            rollout: ``[*batch, time]``: root keys at t, ``("next", ...)`` keys at t + 1, of all environments.
            begins: bool ``[envs, time]``, where an episode begins, whatever the data looks like.
            stepped: bool ``[envs, time]``, which environments were stepped; None: all at all times.
        """
        self.catch_up()
        self.settle()
        self._displaced = None
        if self.recording is None or self.recording.process != os.getpid():
            self._continuity.forget()
        led_to = specs.data_keys(rollout.get("next"))  # which any of the steps may lack, the first one too
        for at in range(0, rollout.batch_size[-1], _SOME_MOMENTS):
            some = slice(at, at + _SOME_MOMENTS)
            part, of_part = rollout[..., some], None if stepped is None else stepped[:, some]
            found = self._continuity.begun(part, of_part)
            begun = found.episodes if begins is None else found.episodes | begins[:, some]
            for i, moment in enumerate(part.unbind(-1)):
                mask = None if of_part is None else of_part[:, i]
                regrouped = found.groups[:, i] & ~begun[:, i]
                self._transition(env, moment, led_to, begun=begun[:, i], regrouped=regrouped, mask=mask)
        if self._is_described:
            self._warn_of_late_outcomes(led_to)
        if self.recording is not None and rollout.batch_size[:-1] == self.recording.source.batch_size:
            self._displaced = np.ones(self.recording.source.envs, np.bool_)

    def _transition(
        self,
        env: EnvBase | None,
        moment: TensorDictBase,
        led_to: Sequence[Key],
        *,
        begun: npt.NDArray[np.bool_],
        regrouped: npt.NDArray[np.bool_],
        mask: Mask,
    ) -> None:
        following = moment.get("next")

        def env_of() -> EnvBase | None:
            return env

        if mask is not None:
            begun, regrouped = begun & mask, regrouped & mask
        reset = begun | regrouped
        if reset.any():
            observed = moment.select(*led_to, strict=False)
            self.reset(
                env_of,
                observed,
                None if reset.all() else reset,
                begun=begun if regrouped.any() else None,
                outcome=following,
            )
        if mask is None or mask.any():
            self.step(env_of, moment, self.acted(lambda: None, moment), following, mask)

    def make_room(self, envs: int) -> None:
        """More environments come than were known: trajectories of which there is no end.

        Args:
            envs: how many there are now.
        """
        recording = self.recording
        if recording is None or recording.process != os.getpid():
            return
        if len(recording.source.batch_size) != 1 or recording.source.envs >= envs:
            return
        recording.grow(envs)
        self._continuity.grow(envs)
        if not recording.alive:
            return  # what is read is found out again
        if self._of_observed is not None:
            self._of_observed = self._reading(recording, [read.stream for read in self._of_observed])
        self._of_following = self._reading(recording, [read.stream for read in self._of_following])
        self._of_acted = self._reading(recording, [read.stream for read in self._of_acted])

    # --- what is seen ---

    def _describe_observed(
        self, recording: Recording, env: EnvBase | None, observed: TensorDictBase, outcome: TensorDictBase | None
    ) -> None:
        self._resets_by_group = env is not None and specs.resets_by_group(env)
        if specs.is_pool(env):
            warn(
                "steps of an AsyncEnvPool by async_step_send(), async_step_and_maybe_reset_send() and their recv() pass no "
                "transform, and can't be recorded here: append the recorder to the environments in the pool"
            )
        if specs.hides_skipped_steps(env):
            warn(
                "steps that ConditionalSkip skips inside an inner environment are recorded as steps, with the values that the "
                "rollout repeats: append it to the environment to which the recorder is appended"
            )
        wanted = self._wanted(env, observed)
        actions = set() if env is None else {as_key(key) for key in env.action_keys}
        values = {key: specs.value_of(observed, key) for key in wanted if key not in actions}
        streams = self._streams(env, observed, {key: value for key, value in values.items() if value is not None})
        pictures = [] if self._camera is None else [self._rendered(self._camera, recording, env, observed)]
        self._of_observed = self._reading(recording, streams)
        rewards = specs.reward_leaves(env, observed, outcome)
        # Two rewards may have the same return, and the environment may have a key that is called so.
        taken = {*wanted, *specs.data_keys(observed), *(() if outcome is None else specs.data_keys(outcome))}
        sums = []
        for leaf in rewards:
            if self._settings.in_keys is None or leaf.key in self._settings.in_keys:
                key = free_key(return_key(leaf.key), taken)
                taken.add(key)
                sums.append(Stream(key, "scalars", "float64", leaf.shape, leaf.agents, sums=leaf.key))
        recording.describe(Moment.OBSERVED, [*streams, *pictures, *sums])

    def _rendered(self, camera: Camera, recording: Recording, env: EnvBase | None, observed: TensorDictBase) -> Stream:
        """The stream of what is rendered."""
        if (env is not None and PIXELS in specs.default_keys(env)) or specs.value_of(observed, PIXELS) is not None:
            raise ValueError(
                "render=True records pictures as 'pixels', which the environment gives already: leave out one of them"
            )
        leaf = camera.first(env, recording.envs[0] - recording.source.first_env)
        try:
            stream = self._described(leaf)
        except UnsupportedLeafError as reason:
            raise ValueError(f"render() gives no picture: {reason}") from reason
        if stream.kind != "image" and PIXELS not in self._settings.kinds:
            raise ValueError(f"render() gives no picture, but {leaf.dtype} of shape {leaf.shape}")
        self._warn_of_another_format(stream)
        return stream

    def _describe_stepped(
        self,
        recording: Recording,
        env: EnvBase | None,
        root: TensorDictBase,
        acted: Acted,
        following: TensorDictBase,
    ) -> None:
        assert isinstance(acted, dict), "what is the policy's is not known yet"
        rendered = () if self._camera is None else (PIXELS,)
        described = {*(read.key for read in self._of_observed or ()), *self._skipped, *rendered}
        wanted = [key for key in dict.fromkeys([*self._wanted(env, following), *acted]) if key not in described]
        values = {key: specs.value_of(following, key) for key in wanted}
        outcomes = {key: value for key, value in values.items() if value is not None}
        actions = {key: acted[key] for key in wanted if key not in outcomes and acted.get(key) is not None}
        missing = [key for key in wanted if key not in outcomes and key not in actions]
        if missing:
            self._report_missing(missing, root, following)
        if actions and env is not None:
            outputs = {*specs.default_keys(env)} - {as_key(key) for key in env.action_keys}
            self._warn_of_late_keys([key for key in actions if key in outputs])
        stepped = self._streams(env, following, outcomes)
        policy = self._streams(env, root, actions)
        self._of_following = [*(self._of_observed or ()), *self._reading(recording, stepped)]
        self._of_acted = self._reading(recording, policy)
        self._resets_itself = env is not None and specs.resets_itself(env)
        self._endings = Endings(specs.flag_keys(env, following))
        self._check_overrides({stream.key for stream in (*recording.streams, *stepped, *policy)} | self._skipped)
        recording.describe(Moment.STEPPED, stepped, self._endings.keys)
        recording.describe(Moment.ACTED, policy)
        recording.finish_describing()
        self._is_described = True

    def _wanted(self, env: EnvBase | None, tensordict: TensorDictBase) -> list[Key]:
        if self._settings.in_keys is not None:
            return list(self._settings.in_keys)
        return specs.default_keys(env) if env is not None else specs.data_keys(tensordict)

    def _streams(self, env: EnvBase | None, tensordict: TensorDictBase, values: Mapping[Key, Any]) -> list[Stream]:
        streams = []
        for key, value in values.items():
            if specs.is_group(value) and key in (self._settings.in_keys or ()):
                leaves = ", ".join(name_of((*key, *leaf)) for leaf in specs.data_keys(value))
                raise KeyError(f"{name_of(key)} is a group of keys; name those that are meant: {leaves}")
            try:
                stream = self._described(_leaf(key, value, tensordict, env))
            except UnsupportedLeafError as reason:
                self._skipped.add(key)
                warn(f"{name_of(key)} is not recorded: {reason}")
                continue
            self._warn_of_another_format(stream)
            streams.append(stream)
        return streams

    def _described(self, leaf: Leaf) -> Stream:
        settings = self._settings
        return describe(
            leaf,
            kinds=settings.kinds,
            names=settings.names,
            image_format=settings.image_format,
            jpeg_quality=settings.jpeg_quality,
            stacks=settings.stacks,
        )

    def _warn_of_another_format(self, stream: Stream) -> None:
        """Who asks for small images and can't have them must know; who asks for exact ones has them anyway."""
        formats = self._settings.image_format
        asked = "raw" if formats == "jpeg" else formats if isinstance(formats, str) else formats.get(stream.key, "raw")
        if stream.is_picture and asked not in ("raw", "png", stream.image_format):  # JPEG for all is the default
            what = f"{stream.dtype} {stream.shape}" if stream.dtype != "object" else "images that vary"
            what = what if stream.kind == "image" else f"what is of kind {stream.kind!r}"
            warn(f"{name_of(stream.key)} is stored as {stream.image_format!r}: {asked!r} can't hold {what}")

    def _report_missing(self, missing: Sequence[Key], root: TensorDictBase, following: TensorDictBase) -> None:
        if self._settings.in_keys is None:
            self._skipped.update(missing)
            missing = [key for key in missing if key[-1] not in _BOOKKEEPING]
            names = ", ".join(map(name_of, missing))
            if missing and not self._behind():
                warn(
                    f"{names} is in the environment's specs, but not in its first step, and is not recorded: give it from "
                    "the first step on, if only zeros"
                )
            elif missing:
                warn(f"{names} can't be seen where the recorder stands, and is not recorded: append the recorder last")
            return
        there = sorted(map(name_of, {*specs.data_keys(root), *specs.data_keys(following)}))
        names = ", ".join(map(name_of, missing))
        raise KeyError(f"in_keys asks for {names}, which the environment doesn't give; there are {', '.join(there)}")

    def _warn_of_late_keys(self, keys: Sequence[Key]) -> None:
        """Say that keys are made behind the recorder: it sees what goes into a step, and not what comes of it.

        Args:
            keys: of those that are recorded as the policy's.
        """
        if keys:
            names, behind = ", ".join(map(name_of, keys)), dict.fromkeys(type(each).__name__ for each in self._behind())
            warn(
                f"{names} is recorded as it goes into a step, without its value after the last one: it is made by "
                f"{' or '.join(behind) or 'a transform'} behind the recorder. Append the recorder last"
            )

    def _warn_of_late_outcomes(self, led_to: Sequence[Key]) -> None:
        """Say that keys are recorded as the policy's which steps lead to, though none did when recording began."""
        late = [read.key for read in self._of_acted if read.key in led_to and read.key not in self._warned_of_change]
        if late:
            self._warned_of_change.update(late)
            warn(
                f"{', '.join(map(name_of, late))} is recorded as it goes into a step, and what steps lead to is not: the "
                "first ones that were recorded had it before them alone. Record a rollout first in which a step leads to it"
            )

    def _check_overrides(self, there: set[Key]) -> None:
        """A key in ``kinds``, ``names``, ``image_format`` or ``stacks`` that isn't recorded is a slip of the pen."""
        formats = self._settings.image_format
        stacks = self._settings.stacks
        overrides: dict[str, Mapping[Key, Any]] = {
            "kinds": self._settings.kinds,
            "names": self._settings.names,
            "image_format": {} if isinstance(formats, str) else formats,
            "stacks": {} if isinstance(stacks, str) else stacks,
        }
        for option, keys in overrides.items():
            unknown = [name_of(key) for key in keys if key not in there]
            if unknown:
                raise KeyError(
                    f"{option} names {', '.join(unknown)}, which is not recorded; "
                    f"there are {', '.join(sorted(map(name_of, there)))}"
                )

    def _reading(self, recording: Recording, streams: Sequence[Stream]) -> list[_Read]:
        return [_Read(stream, recording.source.batch_size) for stream in streams]

    def _arrays(self, reads: Sequence[_Read], tensordict: TensorDictBase) -> list[Any]:
        """What a tensordict holds of some keys, as arrays; None for what it lacks."""
        return [*map(self._array, reads, self._values(reads, tensordict))]

    def _values(self, reads: Sequence[_Read], tensordict: TensorDictBase) -> list[Any]:
        """What a tensordict holds of some keys, as it is; None for what it lacks."""
        leaves = specs.leaves(tensordict) or {}
        return [leaves[read.name] if read.name in leaves else self._value(read, tensordict) for read in reads]

    def _value(self, read: _Read, tensordict: TensorDictBase) -> Any:
        return specs.value_of(tensordict, read.key)

    def _actions(self, acted: Acted) -> list[Any]:
        reads = self._of_acted
        values = [acted.get(read.key) for read in reads] if isinstance(acted, dict) else acted
        return [*map(self._array, reads, values)]

    def _array(self, read: _Read, value: Any) -> Any:
        if value is None:
            return None
        if read.is_simple:
            try:
                array: npt.NDArray[Any] = value.numpy()
                is_as_ever = array.dtype is read.dtype and array.shape == read.given_shape
            except Exception:  # it requires a gradient, is on another device, or no tensor at all: see below
                is_as_ever = False
            if is_as_ever:
                return array if read.is_flat else array.reshape(read.shape)
        try:
            try:
                return read.array(value)
            except _ChangedError as change:
                if not change.is_shape_alone or not self._vary(read):
                    raise
                return read.array(value)
        except Exception as error:  # a value that can't be read costs that value
            self._warn_of_change(read, value, error)
            return None

    def _vary(self, read: _Read) -> bool:
        """Record values of a key of any shape from now on, if that is possible."""
        varying = None if self.recording is None else self.recording.vary(read.stream)
        if varying is not None:
            read.become(varying)
        return varying is not None

    def _warn_of_change(self, read: _Read, value: Any, error: Exception) -> None:
        if read.key not in self._warned_of_change:
            self._warned_of_change.add(read.key)
            is_said = isinstance(error, _ChangedError | UnsupportedLeafError)
            change = str(error) if is_said else f"{type(value).__name__} ({error})"
            advice = f". {error.advice}" if isinstance(error, _ChangedError) and error.advice else ""
            warn(
                f"{name_of(read.key)} is not recorded where it is {change}: the recording began with "
                f"{read.stream.dtype} {read.stream.shape}{advice}"
            )

    def _fits(self, recording: Recording, tensordict: TensorDictBase) -> bool:
        """Whether the data is of the batch that is recorded; a part of it can't be told whose it is."""
        if tensordict.batch_size == recording.source.batch_size:
            return True
        if not self._warned_of_shape:
            self._warned_of_shape = True
            warn(
                f"data of batch size {tuple(tensordict.batch_size)} is not recorded: the recording began with "
                f"{recording.source.batch_size}"
            )
        return False

    def _warn_of_emptiness(self, tensordict: TensorDictBase) -> None:
        if not self._warned_of_shape:
            self._warned_of_shape = True
            warn(f"nothing is recorded: the batch size {tuple(tensordict.batch_size)} means no environment")

    def _facts(self, env: EnvBase | None, batch_size: tuple[int, ...]) -> Facts:
        return Facts(
            batch_size,
            specs.env_name(env),
            self._settings.fps or specs.frames_per_second(env),
            is_worker=in_worker(),
            worker=worker_number(),
        )

    def _opened(self, env: EnvOf, tensordict: TensorDictBase, mask: Mask, *, is_step: bool) -> Recording | None:
        """The recording in progress, opened at the first frame, and again after it was closed or the process forked.

        None: there are no environments to record, what is recorded to is out of reach, or the recording that was closed
        can't go on, and counts the frame.
        """
        if self._is_elsewhere:
            return None
        if self.recording is None or not self.recording.alive:
            if not tensordict.batch_size.numel():
                self._warn_of_emptiness(tensordict)
                return None
            ended = self.recording if self.recording is not None and self.recording.process == os.getpid() else None
            if ended is not None and not ended.is_over:  # Ctrl-C came while it was being closed
                self.close_quietly()
            batch_size = tuple(tensordict.batch_size)
            if ended is not None and not ended.status.missed.may_go_on:
                ended.miss(batch_size, mask, is_step=is_step)
                return None
            self._forget_keys()
            try:
                self.recording = open_recording(self._settings, self._facts(env(), batch_size), ended)
            except OutOfReachError as error:
                self._is_elsewhere = True
                warn(f"nothing is recorded here: {error}")
                return None
            except OSError as error:
                if ended is None:
                    raise  # before anything was recorded it is the user's to mend
                ended.status.missed.fail_to_go_on(error)
                ended.miss(batch_size, mask, is_step=is_step)
                return None
            if not self._enabled:
                self.recording.switch(enabled=False)
            if self._process != os.getpid():
                # A process that multiprocessing forks forgets what was to be done at the end of its parent.
                self._process = os.getpid()
                multiprocessing.util.Finalize(None, self.close_quietly, exitpriority=100)
        return self.recording


@dataclasses.dataclass(eq=False)
class Stepping:
    """A step that is under way.

    Attributes:
        env: gives the environment.
        root: what goes into it.
        asked: which environments are to be stepped, ``[*batch]``; None: all.
        acted: the policy's part of the root.
        call: the call of the environment's step.
        is_recorded: whether it has been recorded.
        thread: the thread that steps.
    """

    env: EnvOf
    root: TensorDictBase
    asked: torch.Tensor | None
    acted: Acted
    call: Call
    is_recorded: bool = False
    thread: int = dataclasses.field(default_factory=threading.get_ident)


@dataclasses.dataclass(slots=True)
class _Final:
    """What came of the last step: transforms behind the recorder may change it, or put another one in its place."""

    following: TensorDictBase
    stepping: weakref.ref[Stepping] | None

    @property
    def is_to_come(self) -> bool:
        """Whether transforms behind the recorder are still at work, on another thread perhaps."""
        stepping = self._under_way
        return stepping is not None and stepping.call.goes_on

    @property
    def is_to_come_elsewhere(self) -> bool:
        """Whether they are at work on another thread than this one."""
        stepping = self._under_way
        return (
            stepping is not None
            and stepping.thread != threading.get_ident()
            and stepping.call.goes_on
            and stepping.call.is_on_stack_of(stepping.thread)
        )

    @property
    def _under_way(self) -> Stepping | None:
        return None if self.stepping is None else self.stepping()


def _stepped(entered: Stepping, following: TensorDictBase, given: torch.Tensor | None) -> Mask:
    """Return which environments were stepped; None: all.

    A transform in front of the recorder may step the environment several times in one call, and leave out those whose
    episodes end before the last time: these were stepped, too, if they were to be.

    Args:
        entered: the step, before the transforms in front of the recorder.
        following: what came of it.
        given: the mask that the base environment saw, ``[*batch]``; None: it stepped all.
    """
    if given is None:
        return None
    mask: npt.NDArray[np.bool_] = given.cpu().numpy().reshape(-1)
    wanted = np.ones_like(mask) if entered.asked is None else entered.asked.cpu().numpy().reshape(-1)
    endings = Endings(specs.data_keys(following))
    before, after = (
        endings.of(functools.partial(specs.flags_of, data), len(mask)) for data in (entered.root, following)
    )
    if after is not None:
        mask = mask | (wanted & after.either if before is None else wanted & after.either & ~before.either)
    return None if mask.all() else mask


class _Read:
    """How a key is read from tensordicts of a batch size.

    Attributes:
        key: the key.
        stream: how it is recorded.
        name: its name at the root; empty: it is nested, and no name at all is empty.
        is_simple: its values are tensors that are arrays as they are, if they are of this ``dtype`` and ``given_shape``.
        is_flat: they are ``[envs, ...]`` already.
        shape: of the arrays, ``[envs, *stream.shape]``.
    """

    def __init__(self, stream: Stream, batch_size: tuple[int, ...]) -> None:
        self.key = stream.key
        self.name = stream.key[0] if len(stream.key) == 1 else ""
        self.is_flat = len(batch_size) == 1
        self._batch_size = torch.Size(batch_size)
        self.become(stream)

    def become(self, stream: Stream) -> None:
        """From now on the key is recorded in this way."""
        self.stream = stream
        self.is_simple = not stream.is_object and stream.dtype != "bfloat16" and not stream.device
        self.dtype = stream.storage
        self.shape = (self._batch_size.numel(), *stream.shape)
        self.given_shape = (*self._batch_size, *stream.shape)

    def array(self, value: Any) -> Any:
        """A value as an array ``[envs, *stream.slot_shape]``, or ``[1, *stream.slot_shape]`` of what they share.

        Values on an accelerator stay there: they are copied when they have got their place in memory.

        Raises:
            _ChangedError: it is of another dtype or size than the first value.
            UnsupportedLeafError: it is of a kind that can't be recorded.
        """
        if self.stream.dtype == "object":
            objects = specs.objects_in(value, self._batch_size)
            return objects[:1] if self.stream.shared else objects
        if not isinstance(value, torch.Tensor | specs.Uneven):
            raise _ChangedError(f"of type {type(value).__name__}")
        if isinstance(value, torch.Tensor) and value.is_nested:
            value = specs.components_of(value, len(self._batch_size))
        if self.stream.varies:
            return specs.objects_of(value, self._batch_size, self.stream.dtype, len(self.stream.agents))
        if isinstance(value, specs.Uneven):
            raise _ChangedError("of different shapes in different environments", is_shape_alone=True)
        dtype, shape = str(value.dtype).removeprefix("torch."), tuple(value.shape[len(self._batch_size) :])
        if dtype != self.stream.dtype:
            raise _ChangedError(f"{dtype} {shape}", advice="Give it one dtype from the first reset on")
        if _without_ones(shape) != _without_ones(self.stream.shape):
            raise _ChangedError(f"{dtype} {shape}", is_shape_alone=True)
        array = value if self.stream.device else specs.as_array(value, self._batch_size)
        return array.reshape(self.shape)  # some environments return () at a reset and (1,) at a step


def _leaf(key: Key, value: Any, tensordict: TensorDictBase, env: EnvBase | None) -> Leaf:
    """What is known of a key from its first value.

    Raises:
        UnsupportedLeafError: it can't be recorded, whatever is wrong with it.
    """
    if specs.is_group(value):
        raise UnsupportedLeafError(f"it is a {type(value).__name__}, which holds keys of its own")
    try:
        return specs.leaf_of(key, value, tensordict, env)
    except UnsupportedLeafError:
        raise
    except Exception as error:
        raise UnsupportedLeafError(f"{type(value).__name__} ({error})") from error


def _observed_in(root: TensorDictBase, following: TensorDictBase) -> TensorDictBase:
    """What the policy saw before a step, without what it wrote beside that."""
    return root.select(*specs.data_keys(following), strict=False)


def _is_same_memory(a: Any, b: Any) -> bool:
    """Whether two values are views of the same numbers."""
    return (
        isinstance(a, torch.Tensor)
        and isinstance(b, torch.Tensor)
        and (a.data_ptr(), a.dtype, a.numel()) == (b.data_ptr(), b.dtype, b.numel())
    )


def _version_of(value: Any) -> int:
    """How often a tensor has been written to; of those that were made in inference mode PyTorch doesn't say."""
    try:
        version: int = value._version  # noqa: SLF001 - it is documented, with this name
    except (AttributeError, RuntimeError):
        return 0
    return version


def _is_other(value: Any, recorded: Any) -> bool:
    """Whether a value holds other numbers than what is recorded; None: nothing is."""
    if not isinstance(value, torch.Tensor) or value.is_nested or value.layout is not torch.strided or recorded is None:
        return False
    if recorded.dtype == object:  # values of shapes of their own
        return value.numel() != sum(each.size for each in recorded.flat if isinstance(each, np.ndarray))
    if value.numel() != recorded.size:
        return True
    other = _plain(value, recorded.shape)
    return not (
        np.array_equal(other, recorded) or (other.dtype.kind == "f" and np.array_equal(other, recorded, equal_nan=True))
    )


def _plain(value: torch.Tensor, shape: tuple[int, ...]) -> npt.NDArray[Any]:
    """A tensor as an array of a shape."""
    return specs.as_array(value, torch.Size()).reshape(shape)


def _without_ones(shape: tuple[int, ...]) -> list[int]:
    return [size for size in shape if size != 1]


class _ChangedError(Exception):
    """A value has another dtype or shape than the key began with.

    Args:
        what: what it is.
        is_shape_alone: its dtype is that with which the key began.
        advice: what to do about it.
    """

    def __init__(self, what: str, *, is_shape_alone: bool = False, advice: str = "") -> None:
        super().__init__(what)
        self.is_shape_alone = is_shape_alone
        self.advice = advice


def return_key(reward: Key) -> Key:
    """The key of the running sum of a reward.

    >>> return_key(("agents", "reward")), return_key(("reward_forward",))
    (('agents', 'episode_return'), ('episode_return_forward',))
    """
    name = reward[-1]
    return (*reward[:-1], "episode_return" + (name.removeprefix("reward") if name.startswith("reward") else f"_{name}"))


@contextlib.contextmanager
def _describing(recording: Recording) -> Iterator[None]:
    """What can't be described is the user's to mend; the file that was begun must not be in the way of the next try."""
    try:
        yield
    except (KeyError, ValueError, OSError):
        recording.abandon()
        raise
    except Exception as error:  # ours, not the user's: training goes on, and the next `dump()` raises it
        recording.fail(error)
