"""Describing: find out at the first reset and the first step what an environment gives, and how it is read."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from torchrl_rerun.errors import warn
from torchrl_rerun.kinds.describe import running_sum
from torchrl_rerun.kinds.entity_paths import free_key
from torchrl_rerun.kinds.keys import REWARD, Key, name_of, return_key
from torchrl_rerun.kinds.leaf import Leaf, UnsupportedLeafError
from torchrl_rerun.kinds.objects import MISSING, frozen
from torchrl_rerun.kinds.schema import Moment
from torchrl_rerun.kinds.streams import Stream
from torchrl_rerun.recording.known_names import names_for
from torchrl_rerun.recording.looks import Look, refuse_taken
from torchrl_rerun.recording.options import Options
from torchrl_rerun.recording.recording import Recording
from torchrl_rerun.wrappers.fields import ACTION, Field, fields, observation_fields
from torchrl_rerun.wrappers.infos import InfoObjectReader, InfoReader, info_of, is_info, names_in
from torchrl_rerun.wrappers.plan import ACTED_ROOT, FLAGS, OBSERVED_ROOT, OUTCOMES, STEPPED_ROOT, About, Plan
from torchrl_rerun.wrappers.readers import NumberReader, ObjectReader, Reader, Readers, as_array


class Describer:
    """Describe the keys of an environment to a recording.

    Args:
        options: the options of the recorder.
        about: the environments.
        looks: what the environments are asked for.
        vary: have a key recorded with values of any shape from now on.
    """

    def __init__(
        self,
        options: Options,
        about: About,
        looks: Sequence[Look[Any]],
        vary: Callable[[Stream], Stream | None],
    ) -> None:
        self._options = options
        self._about = about
        self._looks = looks
        self._vary = vary
        self._skipped: set[Key] = set()
        self._observable = observation_fields(about.observation_space)
        self._doable = [*fields(about.action_space, ACTION)]

    def observe(self, recording: Recording, env: Any, root: tuple[Any, ...]) -> Plan:
        """Describe the observations, and return the plan of them.

        Args:
            recording: the recording.
            env: the environment, to be looked at.
            root: observation, info and flags after a reset.

        Raises:
            KeyError: ``in_keys`` names a group of keys.
            ValueError: options don't fit the data, or the environment hasn't what they ask for.
        """
        self._skipped = set()
        self._refuse_groups()
        found = [each for each in self._observable if self._wants(each.key)]
        infos = [key for key in self._options.in_keys or () if is_info(key) and self._has_info(root[1], key)]
        flags = [
            Field(key, (OBSERVED_ROOT.index(key[0]),), dtype=np.dtype(np.bool_), shape=(1,))
            for key in FLAGS
            if self._wants(key)
        ]
        readers = self._readers([*_below(OBSERVED_ROOT, "observation", found), *flags], root)
        readers += self._info_readers(OBSERVED_ROOT, infos, root)
        streams = [reader.stream for reader in readers]
        for look in self._looks:
            if any(each.key == look.key for each in self._observable):
                raise refuse_taken(look)
            envs = [index - recording.source.first_env for index in recording.envs]
            streams.append(look.described(env, envs, self._options))
        if self._wants((REWARD,)):
            taken = {each.key for each in (*self._observable, *self._doable)} | {
                reader.stream.key for reader in readers
            }
            reward = Leaf((REWARD,), "float64", self._about.reward_shape)
            streams.append(running_sum(reward, free_key(return_key(reward.key), taken)))
        recording.describe(Moment.OBSERVED, streams)
        return Plan(Readers(readers, self._vary))

    def step(self, recording: Recording, plan: Plan, stepped: tuple[Any, Any], acted: tuple[Any, Any]) -> Plan:
        """Describe the keys of a step that are no observations, and return the complete plan.

        Args:
            recording: the recording.
            plan: the plan of the observations.
            stepped: reward and info.
            acted: the action, and what else the policy wrote, by its key.

        Raises:
            KeyError: an option names a key that isn't there.
            ValueError: options don't fit the data.
        """
        known = {reader.stream.key for reader in plan.observed} | self._skipped
        reward = Field((REWARD,), (0,), dtype=np.dtype(np.float64), shape=self._about.reward_shape)
        infos = [key for key in self._options.in_keys or () if is_info(key) and key not in known]
        actions = [each for each in self._doable if self._wants(each.key)]
        extras = [Field(key, (1, key)) for key in acted[1] if self._wants(key)]
        self._refuse_missing(known, stepped[-1], list(acted[1]))
        self._tell_missing([key for key in infos if not self._has_info(stepped[-1], key)], stepped[-1])
        after = self._readers([reward] if self._wants(reward.key) else [], stepped) + self._info_readers(
            STEPPED_ROOT, infos, stepped
        )
        written = self._readers([*_below(ACTED_ROOT, "action", actions), *extras], acted)
        streams = [reader.stream for reader in (*after, *written)]
        self._options.check_recorded({stream.key for stream in (*recording.streams, *streams)} | self._skipped)
        recording.describe(Moment.STEPPED, [reader.stream for reader in after], FLAGS)
        recording.describe(Moment.ACTED, [reader.stream for reader in written])
        recording.finish_describing()
        return Plan(plan.observed, Readers(after, self._vary), Readers(written, self._vary))

    def _wants(self, key: Key) -> bool:
        return self._options.in_keys is None or key in self._options.in_keys

    def _has_info(self, infos: Any, key: Key) -> bool:
        return self._sample(infos, key) is not MISSING

    def _sample(self, infos: Any, key: Key) -> Any:
        """Return an info of the first environment that gave it; MISSING: none did."""
        envs: Iterable[int | None] = [None] if self._about.envs is None else range(self._about.envs)
        found = (info_of(infos, key[1:], env) for env in envs)
        return next((each for each in found if each is not MISSING), MISSING)

    def _readers(self, found: Sequence[Field], root: Any) -> list[Reader]:
        """Return the readers of fields. Those that can't be recorded are left out, with one warning each."""
        readers: list[Reader] = []
        for each in found:
            try:
                leaf = self._leaf(each, _value_of(each, root))
            except Exception as reason:
                self._leave_out(each.key, reason)
                continue
            stream = self._described(leaf)
            if stream is not None:
                readers.append(self._reader(stream, each))
        return readers

    def _described(self, leaf: Leaf) -> Stream | None:
        """Return how a key is recorded; None if it can't be, with a warning."""
        try:
            return self._options.describe(leaf)
        except UnsupportedLeafError as reason:
            self._leave_out(leaf.key, reason)
            return None
        except ValueError as reason:
            if self._options.say_how_to_record(leaf.key):
                raise
            self._leave_out(leaf.key, reason)  # the user can't mend a kind that the recorder chose
            return None

    def _info_readers(self, root_names: Sequence[str], keys: Sequence[Key], root: Any) -> list[Reader]:
        """Return the readers of infos. Those that can't be recorded are left out, with one warning each."""
        readers: list[Reader] = []
        at = root_names.index("info")
        for key in keys:
            sample = self._sample(root[at], key)
            try:
                leaf = self._info_leaf(key, sample)
            except Exception as reason:
                self._leave_out(key, reason)
                continue
            stream = self._described(leaf)
            if stream is None:
                continue
            known = Field(key, (at, *key[1:]))
            if self._about.envs is None:
                readers.append(self._reader(stream, known))
            else:
                readers.append((InfoObjectReader if stream.is_object else InfoReader)(stream, known, self._about.envs))
        return readers

    def _info_leaf(self, key: Key, sample: Any) -> Leaf:
        """Return the facts about an info, from its first value; MISSING: it may come later."""
        if sample is MISSING:  # a number if the user chose a kind, else an object
            return Leaf(key, "float64", ()) if self._options.choose_kind_of(key) else Leaf(key, "object", (), sample="")
        array = as_array(sample)
        if array.dtype.kind in "biufc" and not isinstance(sample, list | tuple | dict):
            return Leaf(key, array.dtype.name, tuple(array.shape))
        return Leaf(key, "object", (), sample=frozen(sample))

    def _reader(self, stream: Stream, found: Field) -> Reader:
        if stream.is_object:
            return ObjectReader(stream, found, self._about.envs)
        if self._about.envs is None and stream.row_shape in ((), (1,)) and not stream.device and found.inner is None:
            return NumberReader(stream, found, None)
        return Reader(stream, found, self._about.envs)

    def _leaf(self, found: Field, value: Any) -> Leaf:
        """Return the facts about a field, from its first value."""
        envs = self._about.envs
        if found.form != "array":
            given = () if value is MISSING else [value] if envs is None else value
            rows = [found.inner(each) if found.inner else each for each in given]
            there = [row for row in rows if row is not MISSING]
            if found.form == "object":
                return Leaf(found.key, "object", (), sample=frozen(there[0]) if there else "")
            first = as_array(there[0]) if there else np.zeros(found.shape, found.dtype)
            return Leaf(found.key, first.dtype.name, tuple(first.shape), varies=True)
        device, dtype = device_of(value), found.dtype
        if value is MISSING:
            assert dtype is not None, "that of a space"
            value = np.zeros(found.shape if envs is None else (envs, *found.shape), dtype)
        if device:
            name, shape = str(value.dtype).removeprefix("torch."), tuple(value.shape)
        else:
            array = as_array(value)
            name = array.dtype.name if dtype is None else _dtype_for(found, dtype, value, array, is_single=envs is None)
            shape = tuple(array.shape)
        if name == "object":
            raise UnsupportedLeafError(f"{type(value).__name__} of objects")
        shape = found.shape if found.key in OUTCOMES else shape if envs is None else shape[1:]
        is_discrete = found.discrete and name.startswith(("int", "uint"))
        leaf = Leaf(
            found.key,
            name,
            shape,
            discrete="index" if is_discrete else None,
            categories=found.categories if is_discrete else (),
            device=device,
        )
        labels = names_for(leaf, self._about.names)
        return dataclasses.replace(leaf, names=labels) if labels else leaf

    def _leave_out(self, key: Key, reason: Exception) -> None:
        said = str(reason) if isinstance(reason, UnsupportedLeafError) else f"{type(reason).__name__} ({reason})"
        self._skipped.add(key)
        warn(f"{name_of(key)} is not recorded: {said}")

    def _refuse_groups(self) -> None:
        """Raise KeyError if ``in_keys`` names a group of keys."""
        there = [each.key for each in (*self._observable, *self._doable)]
        for key in self._options.in_keys or ():
            within = [name_of(each) for each in there if each[: len(key)] == key and each != key]
            if within and key not in there:
                raise KeyError(f"{name_of(key)} is a group of keys; name those that are meant: {', '.join(within)}")

    def _tell_missing(self, missing: Sequence[Key], info: Any) -> None:
        """Warn of infos that the first reset and the first step don't give: some come at the ends of episodes alone."""
        if missing:
            there = ", ".join(sorted(map(name_of, names_in(info)))) or "none"
            warn(
                f"in_keys asks for {', '.join(map(name_of, missing))}, which the environment hasn't given yet: recorded from "
                f"when it comes. Of infos there are {there}"
            )

    def _refuse_missing(self, known: set[Key], info: Any, extras: Sequence[Key]) -> None:
        """Raise KeyError if ``in_keys`` names a key, and no info, that the environment doesn't give."""
        if self._options.in_keys is None:
            return
        rendered = [look.key for look in self._looks]
        there = {each.key for each in (*self._observable, *self._doable)} | {*OUTCOMES, *extras, *rendered} | known
        missing = [key for key in self._options.in_keys if key not in there and not is_info(key)]
        if missing:
            all_keys = sorted(map(name_of, there | {*names_in(info)}))
            raise KeyError(
                f"in_keys asks for {', '.join(map(name_of, missing))}, which the environment doesn't give; "
                f"there are {', '.join(all_keys)}"
            )


def device_of(value: Any) -> str:
    """Return the accelerator that a tensor is on, if copies from it run beside the environment; else an empty string."""
    return str(value.device) if getattr(value, "is_cuda", False) else ""


def _value_of(found: Field, root: Any) -> Any:
    """Return the first value of a field; MISSING, with a warning, if it isn't there yet: its space tells what it will be."""
    try:
        return found.follow(root)
    except (KeyError, IndexError):
        if found.dtype is None and found.form != "object":
            raise
        warn(f"{name_of(found.key)} is in the space, and not given yet: it is recorded from when it comes")
        return MISSING


def _dtype_for(found: Field, dtype: np.dtype[Any], value: Any, array: npt.NDArray[Any], *, is_single: bool) -> str:
    """Return the name of the dtype in which a field is recorded, by its first value.

    Args:
        found: the field.
        dtype: its dtype, by the space.
        value: the value as the environment gave it.
        array: the value as an array.
        is_single: whether there is one environment, and no batch. Its rewards and flags are numbers of any type.
    """
    has_dtype = hasattr(value, "dtype")
    if not has_dtype:
        if found.key in OUTCOMES or dtype.kind not in "fiu":
            return str(dtype.name)
        if dtype.kind == "f":  # numbers of Python's have 64 bits, which float32 would round
            return str(array.dtype.name if array.dtype.kind == "f" else "float64")
    elif is_single and found.key in OUTCOMES:
        return str(dtype.name)
    if dtype.kind in "iu" and array.dtype.kind in ("f" if found.discrete else "") + ("" if has_dtype else "biu"):
        with np.errstate(all="ignore"):
            is_lossless = np.array_equal(array.astype(dtype), array)
        return str(dtype.name if is_lossless else array.dtype.name)
    return str(array.dtype.name)


def _below(root: Sequence[str], name: str, found: Iterable[Field]) -> list[Field]:
    """Return fields whose way begins at the root of what is read."""
    at = root.index(name)
    return [dataclasses.replace(each, steps=(at, *each.steps)) for each in found]
