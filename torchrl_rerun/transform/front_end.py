"""The front end: what knows TorchRL's environments and turns what they do into the resets and steps of a recording."""

from __future__ import annotations

import contextlib
import functools
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
from tensordict import TensorDictBase
from torchrl.envs import Transform

from torchrl_rerun.blocks.block import FrameValues, RolloutValues
from torchrl_rerun.errors import warn
from torchrl_rerun.kinds.endings import Ends
from torchrl_rerun.kinds.keys import Key
from torchrl_rerun.kinds.streams import Stream
from torchrl_rerun.recording.controls import Switchable
from torchrl_rerun.recording.env_specs import ENV_SPEC
from torchrl_rerun.recording.life import close_quietly, describing
from torchrl_rerun.recording.looks import Taken
from torchrl_rerun.recording.opening import Opening
from torchrl_rerun.recording.recording import Recording
from torchrl_rerun.recording.session import Facts, Session
from torchrl_rerun.transform import environments, partial_resets, specs, tensordicts
from torchrl_rerun.transform.calls import Call
from torchrl_rerun.transform.chain import Chain
from torchrl_rerun.transform.describing import Describer, FirstStep
from torchrl_rerun.transform.looks import looks_for
from torchrl_rerun.transform.plan import Acted, Plan
from torchrl_rerun.transform.readers import ArrayReader
from torchrl_rerun.transform.revising import Outcome
from torchrl_rerun.transform.stepping import EnvOf, Mask, Stepping
from torchrl_rerun.transform.workers import in_worker, worker_number

_REVISING_SECONDS = 10.0
"""How long another thread waits for the transforms behind the recorder, at most."""


class FrontEnd(Switchable):
    """Open a recording at the first frame, make the plan, and pass resets and steps on by it.

    Args:
        session: the options of the recorder, and what its sink stands for.
        behind: returns the transforms behind the recorder, which may change the data that passes.

    Attributes:
        recording: the recording in progress; None before the first frame.
        plan: how the keys are read; None before the first frame of a recording.
        lock: held while the front end is used: replay buffers call their transforms in several threads at once.
        displaced: environments that were stepped before a stored rollout was recorded, and not since, bool ``[envs]``; None:
            none.
    """

    def __init__(self, session: Session, behind: Callable[[], Sequence[Transform]]) -> None:
        super().__init__()
        self.session = session
        self.lock = threading.RLock()
        self.plan: Plan | None = None
        self.displaced: Mask = None
        self.reader = ArrayReader(self._vary)
        self._chain = Chain(behind)
        self._looks = looks_for(session.options)
        self._describer = Describer(session.options, self._looks, self._chain)
        self._opening = Opening(session, self.close_quietly)
        self._present: TensorDictBase | None = None  # the last data, if groups of agents are reset apart
        # The step that is under way. The recorder keeps it: it leads to the environment, which would live as long as this.
        self._stepping: weakref.ref[Stepping] | None = None
        self._outcome: Outcome | None = None
        self._has_warned_of_size = False

    # --- life ---

    @contextlib.contextmanager
    def at_rest(self) -> Iterator[None]:
        """Hold the lock while no other thread is in a transform behind the recorder, which may still change a step's flags."""
        deadline = time.monotonic() + _REVISING_SECONDS
        while True:
            with self.lock:
                is_under_way = self._outcome is not None and self._outcome.is_under_way_elsewhere()
                if is_under_way and time.monotonic() > deadline:
                    is_under_way = False
                    warn(
                        f"a transform behind the recorder has been at work for {_REVISING_SECONDS:g} s: flags that it sets for "
                        "this step are not recorded"
                    )
                if not is_under_way:
                    yield
                    return
            time.sleep(0.001)

    def close_quietly(self) -> None:
        """Close the recording; an error is a warning, for nobody is there to catch it."""
        if self.recording is not None:
            close_quietly(self.recording, self.record_unseen_step)

    def _opened(self, env: EnvOf, tensordict: TensorDictBase, mask: Mask, *, is_step: bool) -> Recording | None:
        """Return the recording in progress, opened if need be; None if the frame can't be recorded."""
        recording = self.recording
        if recording is not None and recording.takes_frames:
            return recording
        size = tuple(tensordict.batch_size)
        facts = functools.partial(self._facts, env, size)
        recording = self._opening.open(recording, facts, size, mask, is_step=is_step)
        if recording is not None:
            self.recording, self.plan, self._present = recording, None, None
            if not self._is_enabled:
                recording.switch(enabled=False)
        return recording

    def _facts(self, env: EnvOf, batch_size: tuple[int, ...]) -> Facts:
        known = env()
        spec = environments.spec(known)
        return Facts(
            batch_size,
            environments.env_name(known),
            None if self.session.options.fps else environments.frames_per_second(known),
            is_worker=in_worker(),
            worker=worker_number(),
            origin={} if spec is None else {ENV_SPEC: spec},
        )

    # --- what TorchRL's hooks see ---

    def reset(
        self,
        env: EnvOf,
        observed: TensorDictBase,
        mask: Mask = None,
        *,
        begun: Mask = None,
        first_step: FirstStep | None = None,
        is_past: bool = False,
    ) -> None:
        """Record that environments were reset.

        Args:
            env: returns the environment, for its specs.
            observed: the data after the reset, of all environments.
            mask: which environments were reset. Default: all.
            begun: environments whose episodes begin; of the others only some groups of agents were reset. Default: all that
                were reset.
            first_step: the step after it, if it is known already. A block has room for both then.
            is_past: whether the environments have been stepped since, and can't be looked at as they were.
        """
        recording = self._opened(env, observed, mask, is_step=False)
        if recording is None or not self._fits(recording, observed):
            return
        if self.displaced is not None:
            self._come_back(mask)
        if self.plan is None:
            with describing(recording):
                plan = self._describer.observe(recording, env(), observed, first_step and first_step.following)
                if first_step is not None:
                    plan = self._describer.step(recording, plan, env=env(), first_step=first_step)
                self.plan = plan
        if self.plan is None:
            return
        try:
            arrays = self.reader.arrays(self.plan.observed, self.plan.observed.values(observed))
            looks = [] if is_past else [look.at(env) for look in self._looks]
            arrays += [None] * len(self._looks)
            seeds = environments.seeds(env()) if recording.must_know_ends else ()
            recording.reset(arrays, mask, seeds, begun=begun, looks=looks)
            if self.plan.resets_by_group:
                self._present = observed
        except Exception as error:  # training goes on: the next `dump()` raises it
            recording.fail(error)

    def regroup(
        self, env: EnvOf, observed: TensorDictBase, resets: Mapping[Key, torch.Tensor], mask: Mask, begun: Mask
    ) -> None:
        """Record that groups of agents were reset. Others keep their last observations, as in TorchRL's rollouts.

        Args:
            env: returns the environment, for its specs.
            observed: the data after the reset, of all environments.
            resets: which agents were reset, by group.
            mask: environments of which any agent was reset.
            begun: environments whose episodes begin.
        """
        if self._present is not None:
            observed = partial_resets.regrouped(observed, self._present, resets)
        self.reset(env, observed, mask, begun=begun)

    def before_step(self, env: EnvOf, root: TensorDictBase, *, is_alone: bool = False) -> Stepping:
        """Note that environments are about to be stepped.

        The caller must keep the returned object until the next step. This front end has only a weak reference to it, because
        the object leads to the environment: a strong one would keep the environment in memory as long as the recorder.

        Args:
            env: returns the environment, for its specs.
            root: the data that goes into the step, before transforms in front of the recorder change it.
            is_alone: whether the environment has no other transform.
        """
        self.record_unseen_step()
        self.revise_last_step()
        asked = tensordicts.value_at_root(root, "_step")
        call = None
        if asked is not None or not (is_alone and self._chain.is_outermost):
            # To look into the call takes a tenth of the hooks' time. Without other transforms all steps reach `after_step`.
            call = Call()
            self._chain.look_around(call)
        stepping = Stepping(env, root, asked, self.acted(env, root), call)
        self._stepping = weakref.ref(stepping)
        return stepping

    def after_step(self, env: EnvOf, root: TensorDictBase, following: TensorDictBase) -> None:
        """Record that environments were stepped. Transforms behind the recorder have yet to see the data after the step.

        A step of another batch size than the data before it is left to :meth:`record_unseen_step`, which records all
        environments when the step has returned. torchrl 0.14.1: a partial step (``_step``) of an environment whose batch size
        isn't locked passes the data of the stepped environments alone.

        Args:
            env: returns the environment, for its specs.
            root: the data that went into the base environment's step.
            following: the data after the step.
        """
        stepping = self._unrecorded
        if stepping is None:
            self.step(env, root, self.acted(env, root), following, may_change=True)
        elif following.batch_size == stepping.root.batch_size:
            stepping.mark_recorded()
            given = tensordicts.value_at_root(root, "_step")
            mask = None if given is None else stepping.mask(following, given)
            self.step(env, root, stepping.acted, following, mask, may_change=True)

    def revise_step(self, following: TensorDictBase) -> None:
        """Revise the last step: all transforms have seen the data after it.

        Args:
            following: the data after the step.
        """
        self.record_unseen_step(following)
        if self._outcome is not None:
            self._outcome.follow(following)
            self.revise_last_step()

    def record_unseen_step(self, following: TensorDictBase | None = None) -> None:
        """Record the last step if no hook has told that it was made, see :class:`~torchrl_rerun.transform.calls.Call`.

        Args:
            following: the data after the step. Default: unknown.
        """
        stepping = self._unrecorded
        if stepping is None or self.recording is None or not self.recording.alive:
            return
        call = stepping.call
        if following is None and call is not None:
            following = call.following()
        if following is None or following.batch_size != stepping.root.batch_size:
            return  # it goes on, on another thread perhaps, or has failed
        stepping.mark_recorded()
        given = None if call is None else call.partial_steps()
        nobody = torch.zeros(following.batch_size, dtype=torch.bool)
        mask = stepping.mask(following, nobody if given is None else given)
        self.step(stepping.env, stepping.root, stepping.acted, following, mask)

    def revise_last_step(self) -> None:
        """Read the flags of the last step again, before the data after it is gone."""
        self._outcome = None
        if self.recording is not None and self.recording.alive:
            self.recording.revise_last_step()

    @property
    def _unrecorded(self) -> Stepping | None:
        """The step that is under way, unless it is recorded already."""
        stepping = None if self._stepping is None else self._stepping()
        return None if stepping is None or stepping.is_recorded else stepping

    # --- steps ---

    def acted(self, env: EnvOf, root: TensorDictBase) -> Acted:
        """Return the policy's part of the data before a step, as it is now. Transforms may change it before the step.

        Args:
            env: returns the environment, for its specs.
            root: the data before the step.
        """
        plan = self.plan
        if plan is not None and plan.is_complete and self.recording is not None and self.recording.takes_frames:
            return Acted(plan.acted.keys, plan.acted.values(root))
        if self.session.options.in_keys is not None:
            keys = list(self.session.options.in_keys)
        else:
            known = env()
            keys = tensordicts.data_keys(root) if known is None else specs.action_keys(known)
        return Acted(keys, [tensordicts.value_of(root, key) for key in keys])

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
        """Record that environments were stepped.

        Args:
            env: returns the environment, for its specs.
            root: the data before the step.
            acted: the policy's part of it, see :meth:`acted`.
            following: the data after the step.
            mask: which environments were stepped. Default: all.
            may_change: whether transforms behind the recorder have yet to see the data after the step.
        """
        recording = self.recording
        if recording is None or not recording.takes_frames or self.plan is None or not self.plan.is_complete:
            recording = self._begun_stepping(env, root, acted, following, mask)
        if recording is None or not self._fits(recording, following):
            return
        if not recording.all_begun:
            self._begin_those_never_reset(recording, env, root, following, mask)
        if self.displaced is not None:
            self._resume(env, root, following, mask)
        plan = self.plan
        assert plan is not None, "the recording has begun"
        try:
            values = plan.following.values(following)
            arrays = self.reader.arrays(plan.following, values)
            count = len(plan.observed.each)
            if plan.resets_itself:
                arrays[:count] = partial_resets.without_last_observations(
                    plan.observed.keys, arrays[:count], env(), following
                )
            observed = arrays[:count]
            ends = plan.ends(following) if recording.must_know_ends else None
            looks: Sequence[Taken] = ()
            if self._looks:
                observed += [None] * len(self._looks)
                looks = [
                    look.at(env, lambda: partial_resets.reset_within_step(env(), following)) for look in self._looks
                ]
            revise = None
            if may_change:
                self._outcome = Outcome(
                    following, recording, plan, self._chain, self._stepping, values=values, arrays=arrays
                )
                revise = self._outcome.revise
            actions = self.reader.arrays(plan.acted, acted.select(plan.acted.keys))
            recording.step(FrameValues(observed, arrays[count:], actions), mask, ends, looks=looks, revise=revise)
            if plan.resets_by_group:
                self._present = following
        except Exception as error:  # training goes on: the next `dump()` raises it
            recording.fail(error)

    def takes_many(self) -> bool:
        """Return whether :meth:`steps` may be called: the recording goes on, and nothing of it needs one step after the other."""
        recording, plan = self.recording, self.plan
        return (
            recording is not None
            and recording.takes_frames
            and recording.takes_many
            and recording.all_begun
            and plan is not None
            and plan.is_complete
            and not (plan.resets_itself or plan.resets_by_group)
            and not self._looks
            and self.displaced is None
        )

    def steps(
        self, env: EnvOf, rollout: TensorDictBase, begun: npt.NDArray[np.bool_], stepped: npt.NDArray[np.bool_] | None
    ) -> bool:
        """Record many steps at once, and the resets before them. Return False if nothing was: a key must be read step by step.

        Args:
            env: returns the environment, for its seeds.
            rollout: ``[*batch, time]``: root keys at t, ``("next", ...)`` keys at t + 1.
            begun: the environments that are reset before each step, ``[envs, time]``.
            stepped: the environments that are stepped, ``[envs, time]``. Default: all, each time.
        """
        recording, plan = self.recording, self.plan
        assert recording is not None, "it goes on"
        assert plan is not None, "the recording has begun"
        following = rollout.get("next")
        after, before, acted = (
            readers.arrays_over_time(data)
            for readers, data in ((plan.following, following), (plan.observed, rollout), (plan.acted, rollout))
        )
        if rollout.batch_size[:-1] != recording.source.batch_size or after is None or before is None or acted is None:
            return False
        try:
            count = len(plan.observed.each)
            ends = plan.ends(following) if recording.must_know_ends else None
            if ends is not None:
                ends = Ends(*(each.reshape(begun.shape) for each in ends))
            seeds = environments.seeds(env()) if recording.must_know_ends else ()
            values = RolloutValues(FrameValues(after[:count], after[count:], acted), before)
            recording.steps(values, begun, stepped, ends, seeds)
        except Exception as error:  # training goes on: the next `dump()` raises it
            recording.fail(error)
        return True

    def _begun_stepping(
        self, env: EnvOf, root: TensorDictBase, acted: Acted, following: TensorDictBase, mask: Mask
    ) -> Recording | None:
        """Return the recording, opened, and make the plan complete; return None if that failed."""
        recording = self._opened(env, following, mask, is_step=True)
        if recording is None or not self._fits(recording, following):
            return recording
        if self.plan is not None and self.plan.is_complete:
            return recording
        self._begin_those_never_reset(recording, env, root, following, mask)
        if self.plan is None:  # after `close()`, in the middle of episodes
            with describing(recording):
                self.plan = self._describer.observe(recording, env(), _observed_in(root, following), following)
        if self.plan is not None:
            with describing(recording):
                self.plan = self._describer.step(
                    recording, self.plan, env=env(), first_step=FirstStep(root, acted, following)
                )
        return recording if self.plan is not None and self.plan.is_complete else None

    def _begin_those_never_reset(
        self, recording: Recording, env: EnvOf, root: TensorDictBase, following: TensorDictBase, mask: Mask
    ) -> None:
        """Begin the episodes of environments that were reset before the recorder saw them, with the data before the step."""
        fresh = recording.never_reset(mask)
        if fresh is not None:
            self.reset(env, _observed_in(root, following), fresh, is_past=True)

    def _resume(self, env: EnvOf, root: TensorDictBase, following: TensorDictBase, mask: Mask) -> None:
        """Begin new episodes of environments that go on after a stored rollout, with the data before the step."""
        displaced = self._come_back(mask)
        if displaced.any():
            observed = _observed_in(root, following)
            self.reset(env, observed, None if displaced.all() else displaced, is_past=True)

    def displace(self) -> None:
        """Note that a stored rollout interrupts the episodes of all environments."""
        assert self.recording is not None, "the rollout was recorded"
        self.displaced = np.ones(self.recording.source.envs, np.bool_)

    def put_back(self) -> None:
        """Note that a stored rollout goes on: no episode of an environment is interrupted until it is over."""
        self.displaced = None

    def grow(self, envs: int) -> None:
        """Read the data of more environments from now on.

        Args:
            envs: the number of environments, in one batch dimension.
        """
        if self.plan is not None:
            self.plan = self.plan.grown(envs)

    def _come_back(self, mask: Mask) -> npt.NDArray[np.bool_]:
        """Return the environments in ``mask`` whose episode a stored rollout has interrupted, and count them as resumed."""
        assert self.displaced is not None, "a stored rollout came between"
        back = self.displaced if mask is None else self.displaced & mask
        rest = self.displaced & ~back
        self.displaced = rest if rest.any() else None
        return back

    def _vary(self, stream: Stream) -> Stream | None:
        varying = None if self.recording is None else self.recording.vary(stream)
        if varying is not None and self.plan is not None:
            self.plan = self.plan.varied(varying)
        return varying

    def _fits(self, recording: Recording, tensordict: TensorDictBase) -> bool:
        """Return whether the data is of the batch that is recorded. A part of it doesn't say of which environments it is."""
        if tensordict.batch_size == recording.source.batch_size:
            return True
        if not self._has_warned_of_size:
            self._has_warned_of_size = True
            warn(
                f"data of batch size {tuple(tensordict.batch_size)} is not recorded: the recording began with "
                f"{recording.source.batch_size}"
            )
        return False


def _observed_in(root: TensorDictBase, following: TensorDictBase) -> TensorDictBase:
    """Return the policy's input before a step, without what the policy wrote beside it."""
    return root.select(*tensordicts.data_keys(following), strict=False)
