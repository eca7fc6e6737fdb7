"""Continuity: decide whether a moment of stored data goes on with the episode of the moment before it."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from tensordict import TensorDictBase

from torchrl_rerun.kinds.endings import FLAGS, Endings
from torchrl_rerun.kinds.keys import Key, is_reward
from torchrl_rerun.transform import tensordicts

Mask = npt.NDArray[np.bool_]
"""Which environments are meant at each of some moments, bool ``[envs, time]``."""


class Begun(NamedTuple):
    """Which environments begin at each of some moments, bool ``[envs, time]`` each.

    Attributes:
        episodes: environments whose episode begins with the moment.
        groups: environments of which only some groups of agents begin anew, within the episode.
    """

    episodes: Mask
    groups: Mask


class Continuity:
    """Remember the data after the last step of each environment."""

    def __init__(self) -> None:
        self._last: TensorDictBase | None = None

    @property
    def last(self) -> TensorDictBase | None:
        """The data after the last step of each environment, ``[*batch]``; None: there is none."""
        return self._last

    def forget(self) -> None:
        """Let episodes begin with the next moment."""
        self._last = None

    def begun(self, rollout: TensorDictBase, stepped: Mask | None = None) -> Begun:
        """Return what begins at each moment. An episode begins if the last step ended one, or led to other data.

        Args:
            rollout: ``[*batch, time]``, the next moments.
            stepped: which environments were stepped, bool ``[envs, time]``. Default: all at all times.
        """
        within = None if stepped is not None else _begun_within(rollout)
        if within is not None:
            first = self._begun_at(rollout[..., 0])
            self._last = rollout[..., -1].get("next").clone()
            return Begun(
                *(np.concatenate([one[:, None], rest], axis=1) for one, rest in zip(first, within, strict=True))
            )
        of_each = []
        for i, moment in enumerate(rollout.unbind(-1)):
            of_each.append(self._begun_at(moment))
            last = moment.get("next").clone()
            if stepped is not None and self._last is not None and self._last.batch_size == last.batch_size:
                # The rows of environments that were left out stay as they were the last time.
                chosen = torch.from_numpy(np.ascontiguousarray(stepped[:, i])).reshape(moment.batch_size)
                last = last.where(chosen.to(last.device), self._last)
            self._last = last
        return Begun(*(np.stack(each, axis=1) for each in zip(*of_each, strict=True)))

    def grow(self, envs: int) -> None:
        """Make room for more environments, whose episodes begin."""
        if self._last is not None and self._last.batch_size.numel() < envs:
            more = self._last[:1].expand(envs - len(self._last))
            self._last = torch.cat([self._last, more], 0)

    def _begun_at(self, moment: TensorDictBase) -> Begun:
        count = moment.batch_size.numel()
        if self._last is None or self._last.batch_size != moment.batch_size:
            return Begun(np.ones(count, bool), np.zeros(count, bool))
        found = _begun(self._last, moment, moment.batch_size, ())
        assert found is not None, "what can't be stacked is left out"
        return found


def begins_anew(last: TensorDictBase, moment: TensorDictBase) -> bool:
    """Return whether a moment of one environment begins an episode, and doesn't continue the data after a step.

    Args:
        last: the data after the step, ``[]``.
        moment: the moment, ``[]``.
    """
    found = _begun(last, moment, moment.batch_size, ())
    return found is None or bool(found.episodes.any())


def stepped_in(rollout: TensorDictBase) -> Mask | None:
    """Return the environments that were stepped, bool ``[envs, time]``, by the entry ``"_step"``; None: all."""
    given = tensordicts.value_at_root(rollout, "_step")
    if given is None:
        return None
    size = rollout.batch_size
    stepped: Mask = given.cpu().numpy().reshape(size[:-1].numel(), size[-1])
    return stepped


def _begun_within(rollout: TensorDictBase) -> Begun | None:
    """Return what begins after the first moment; None: values can only be compared moment by moment."""
    size, time = rollout.batch_size[:-1], rollout.batch_size[-1]
    if time < 2:
        nothing = np.zeros((size.numel(), 0), bool)
        return Begun(nothing, nothing)
    return _begun(rollout.get("next"), rollout, size, (time - 1,))


def _begun(led_to: TensorDictBase, follows: TensorDictBase, size: torch.Size, time: tuple[int, ...]) -> Begun | None:
    """Compare the data after steps with the data before the next ones.

    Args:
        led_to: the data after the steps.
        follows: the data before the next steps. With ``time`` both are of the same moments, and the last of ``led_to`` and
            the first of ``follows`` are left out.
        size: the batch size of the environments.
        time: the number of moments that are compared; empty: one moment without a time dimension.

    Returns:
        What begins, ``[envs, *time]``; None: the values of a key can't be stacked.
    """
    shape = (size.numel(), *time)
    keys = tensordicts.data_keys(led_to)
    endings = Endings(keys)

    def flags(data: TensorDictBase, begin: int, key: Key) -> npt.NDArray[Any] | None:
        value = tensordicts.value_of(data, key)
        if not isinstance(value, torch.Tensor):
            return None
        return tensordicts.as_array(_along(value, len(size), begin) if time else value, size).reshape(*shape, -1)

    count = int(np.prod(shape))
    ends = endings.ended(functools.partial(flags, led_to, 0), count)
    begun = np.zeros(shape, bool) if ends is None else ends.either.reshape(shape)
    again: dict[Key, npt.NDArray[np.bool_]] = {}  # groups that were reset
    for key in endings.keys:
        up, down = flags(led_to, 0, key), flags(follows, 1, key)
        if len(key) > 1 and up is not None:
            fell = np.asarray((up & ~down if down is not None and down.shape == up.shape else up).any(axis=-1))
            again[key[:-1]] = again.get(key[:-1], np.zeros(shape, bool)) | fell
    groups = np.zeros(shape, bool)
    for each in again.values():
        groups |= each
    for key in keys:
        if key[-1] in FLAGS or is_reward(key):
            continue
        before, now = tensordicts.value_of(led_to, key), tensordicts.value_of(follows, key)
        if time and (tensordicts.is_uneven(before) or tensordicts.is_uneven(now)):
            return None
        if not is_plain(before) or not is_plain(now):
            continue
        if time:
            before, now = _along(before, len(size), 0), _along(now, len(size), 1)
        differs = where_they_differ(before, now, size, shape)
        for group, reset in again.items():
            if key[: len(group)] == group:
                differs &= ~reset
        begun |= differs
    return Begun(begun, groups & ~begun)


def is_plain(value: Any) -> bool:
    """Return whether a value can be compared with another one, number by number."""
    return isinstance(value, torch.Tensor) and not value.is_nested and value.layout is torch.strided


def _along(value: torch.Tensor, dim: int, begin: int) -> torch.Tensor:
    """Return the values over time without the last one (``begin=0``), or without the first one (``begin=1``)."""
    return value.narrow(dim, begin, value.shape[dim] - 1)


def where_they_differ(
    before: torch.Tensor, now: torch.Tensor, size: torch.Size, shape: tuple[int, ...]
) -> npt.NDArray[np.bool_]:
    """Return where the values of one key after a step and before the next one differ. NaN equals NaN.

    Args:
        before: the values after the steps, ``[*size, ...]`` or ``[*size, time, ...]``.
        now: the values before the next steps, of the same shape.
        size: the batch size of the environments.
        shape: the shape of the result, ``[envs]`` or ``[envs, time]``.
    """
    led_to, follows = tensordicts.as_array(before, size), tensordicts.as_array(now, size)
    if follows.shape != led_to.shape:
        return np.ones(shape, bool)
    differs: npt.NDArray[np.bool_] = np.asarray(follows != led_to)
    if led_to.dtype.kind in "fc":
        differs &= (follows == follows) | (led_to == led_to)  # noqa: PLR0124 - NaN is followed by NaN
    return np.asarray(differs.any(axis=tuple(range(len(shape), differs.ndim))))
