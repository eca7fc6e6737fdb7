"""Describing: find out at the first reset and the first step what an environment gives, and make the plan of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from tensordict import TensorDictBase
from torchrl.envs import EnvBase

from torchrl_rerun.errors import warn
from torchrl_rerun.kinds.describe import running_sum
from torchrl_rerun.kinds.endings import Endings
from torchrl_rerun.kinds.entity_paths import free_key
from torchrl_rerun.kinds.keys import Key, name_of, return_key
from torchrl_rerun.kinds.leaf import Leaf, UnsupportedLeafError
from torchrl_rerun.kinds.schema import Moment
from torchrl_rerun.kinds.streams import Stream
from torchrl_rerun.recording.looks import Look, refuse_taken
from torchrl_rerun.recording.options import Options
from torchrl_rerun.recording.recording import Recording
from torchrl_rerun.transform import environments, partial_resets, specs, tensordicts
from torchrl_rerun.transform.chain import Chain
from torchrl_rerun.transform.plan import Acted, Plan
from torchrl_rerun.transform.readers import Reader, Readers

_BOOKKEEPING = {"is_init", "traj_ids"}
"""Keys that collectors add behind the recorder. A recording tells the same by its timelines."""


class FirstStep(NamedTuple):
    """The first step that a recording sees.

    Attributes:
        root: the data before the step.
        acted: the policy's part of it.
        following: the data after the step.
    """

    root: TensorDictBase
    acted: Acted
    following: TensorDictBase


class Describer:
    """Describe the keys of an environment to a recording.

    Args:
        options: the options of the recorder.
        looks: what the environment is asked for.
        chain: the transforms around the recorder.
    """

    def __init__(self, options: Options, looks: Sequence[Look[EnvBase | None]], chain: Chain) -> None:
        self._options = options
        self._looks = looks
        self._chain = chain

    def observe(
        self, recording: Recording, env: EnvBase | None, observed: TensorDictBase, outcome: TensorDictBase | None
    ) -> Plan:
        """Describe the observations, and return the plan of them.

        Args:
            recording: the recording.
            env: the environment, for its specs.
            observed: the data after the reset.
            outcome: the data after the first step, if it is known already, for the rewards in it.

        Raises:
            KeyError: ``in_keys`` names a group of keys.
            ValueError: options don't fit the data, or the environment hasn't what they ask for.
        """
        if environments.is_pool(env):
            warn(
                "steps of an AsyncEnvPool by async_step_send(), async_step_and_maybe_reset_send() and their recv() pass no "
                "transform, and can't be recorded here: append the recorder to the environments in the pool"
            )
        if environments.hides_skipped_steps(env):
            warn(
                "steps that ConditionalSkip skips inside an inner environment are recorded as steps, with the values that the "
                "rollout repeats: append it to the environment to which the recorder is appended"
            )
        wanted = self._wanted(env, observed)
        actions = specs.action_keys(env)
        values = {key: tensordicts.value_of(observed, key) for key in wanted if key not in actions}
        there = {key: value for key, value in values.items() if value is not None}
        streams, skipped = self._streams(env, observed, there)
        looked = [self._looked(look, recording, env, observed) for look in self._looks]
        # Two rewards may have the same return, and the environment may have a key of that name.
        taken = {
            *wanted,
            *tensordicts.data_keys(observed),
            *(() if outcome is None else tensordicts.data_keys(outcome)),
        }
        returns = []
        for leaf in specs.reward_leaves(env, observed, outcome):
            if self._options.in_keys is None or leaf.key in self._options.in_keys:
                key = free_key(return_key(leaf.key), taken)
                taken.add(key)
                returns.append(running_sum(leaf, key))
        recording.describe(Moment.OBSERVED, [*streams, *looked, *returns])
        return Plan(
            _readers(recording, streams),
            skipped=frozenset(skipped),
            resets_by_group=env is not None and partial_resets.resets_by_group(env),
        )

    def step(
        self,
        recording: Recording,
        plan: Plan,
        *,
        env: EnvBase | None,
        first_step: FirstStep,
    ) -> Plan:
        """Describe the keys of a step that are no observations, and return the complete plan.

        Args:
            recording: the recording.
            plan: the plan of the observations.
            env: the environment, for its specs.
            first_step: the step.

        Raises:
            KeyError: an option names a key that isn't there, or a group of keys.
            ValueError: options don't fit the data.
        """
        root, acted, following = first_step
        known = {*plan.observed.keys, *plan.skipped, *(look.key for look in self._looks)}
        wanted = [key for key in dict.fromkeys([*self._wanted(env, following), *acted.keys]) if key not in known]
        values = {key: tensordicts.value_of(following, key) for key in wanted}
        outcomes = {key: value for key, value in values.items() if value is not None}
        written = dict(zip(wanted, acted.select(wanted), strict=True))
        actions = {key: value for key, value in written.items() if value is not None and key not in outcomes}
        missing = [key for key in wanted if key not in outcomes and key not in actions]
        if missing:
            self._report_missing(missing, root, following)
        if actions and env is not None:
            outputs = {*specs.default_keys(env)} - {*specs.action_keys(env)}
            self._warn_of_late_keys([key for key in actions if key in outputs])
        stepped, skipped = self._streams(env, following, outcomes)
        policy, unreadable = self._streams(env, root, actions)
        endings = Endings(specs.flag_keys(env, following))
        all_skipped = plan.skipped | skipped | unreadable | ({*missing} if self._options.in_keys is None else set())
        self._options.check_recorded({stream.key for stream in (*recording.streams, *stepped, *policy)} | all_skipped)
        recording.describe(Moment.STEPPED, stepped, endings.keys)
        recording.describe(Moment.ACTED, policy)
        recording.finish_describing()
        return Plan(
            plan.observed,
            _readers(recording, stepped),
            _readers(recording, policy),
            endings,
            frozenset(all_skipped),
            resets_itself=env is not None and partial_resets.resets_itself(env),
            resets_by_group=plan.resets_by_group,
            is_complete=True,
        )

    def _wanted(self, env: EnvBase | None, tensordict: TensorDictBase) -> list[Key]:
        if self._options.in_keys is not None:
            return list(self._options.in_keys)
        return specs.default_keys(env) if env is not None else tensordicts.data_keys(tensordict)

    def _streams(
        self, env: EnvBase | None, tensordict: TensorDictBase, values: Mapping[Key, Any]
    ) -> tuple[list[Stream], set[Key]]:
        """Return how keys are recorded, and those that can't be, with one warning each."""
        streams: list[Stream] = []
        skipped: set[Key] = set()
        for key, value in values.items():
            if tensordicts.is_group(value) and key in (self._options.in_keys or ()):
                leaves = ", ".join(name_of((*key, *leaf)) for leaf in tensordicts.data_keys(value))
                raise KeyError(f"{name_of(key)} is a group of keys; name those that are meant: {leaves}")
            try:
                streams.append(self._options.describe(_leaf(key, value, tensordict, env)))
            except UnsupportedLeafError as reason:
                skipped.add(key)
                warn(f"{name_of(key)} is not recorded: {reason}")
        return streams, skipped

    def _looked(
        self, look: Look[EnvBase | None], recording: Recording, env: EnvBase | None, observed: TensorDictBase
    ) -> Stream:
        """Return the stream of what the environment is asked for."""
        is_given = env is not None and look.key in specs.default_keys(env)
        if is_given or tensordicts.value_of(observed, look.key) is not None:
            raise refuse_taken(look)
        envs = [index - recording.source.first_env for index in recording.envs]
        return look.described(env, envs, self._options)

    def _report_missing(self, missing: Sequence[Key], root: TensorDictBase, following: TensorDictBase) -> None:
        """Warn of keys that the first step lacks, or raise KeyError if ``in_keys`` names them."""
        if self._options.in_keys is not None:
            there = sorted(map(name_of, {*tensordicts.data_keys(root), *tensordicts.data_keys(following)}))
            names = ", ".join(map(name_of, missing))
            raise KeyError(
                f"in_keys asks for {names}, which the environment doesn't give; there are {', '.join(there)}"
            )
        names = ", ".join(name_of(key) for key in missing if key[-1] not in _BOOKKEEPING)
        if names and not self._chain.behind():
            warn(
                f"{names} is in the environment's specs, but not in its first step, and is not recorded: give it from "
                "the first step on, if only zeros"
            )
        elif names:
            warn(f"{names} can't be seen where the recorder stands, and is not recorded: append the recorder last")

    def _warn_of_late_keys(self, keys: Sequence[Key]) -> None:
        """Warn of keys that are made behind the recorder, which sees them before a step and not after it.

        Args:
            keys: those of them that are recorded as the policy's.
        """
        if keys:
            makers = " or ".join(self._chain.names_behind()) or "a transform"
            warn(
                f"{', '.join(map(name_of, keys))} is recorded as it goes into a step, without its value after the last one: "
                f"it is made by {makers} behind the recorder. Append the recorder last"
            )


def _readers(recording: Recording, streams: Sequence[Stream]) -> Readers:
    return Readers(Reader.of(stream, recording.source.batch_size) for stream in streams)


def _leaf(key: Key, value: Any, tensordict: TensorDictBase, env: EnvBase | None) -> Leaf:
    """Return the facts about a key, from its first value.

    Raises:
        UnsupportedLeafError: the value can't be recorded, for whatever reason.
    """
    if tensordicts.is_group(value):
        raise UnsupportedLeafError(f"it is a {type(value).__name__}, which holds keys of its own")
    try:
        return specs.leaf_of(key, value, tensordict, env)
    except UnsupportedLeafError:
        raise
    except Exception as error:
        raise UnsupportedLeafError(f"{type(value).__name__} ({error})") from error
