"""Rewinding: put an environment back to a recorded step, to go on from there."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, overload

import gymnasium
import numpy as np
import numpy.typing as npt

from torchrl_rerun.kinds.keys import REWARD, Key, name_of
from torchrl_rerun.kinds.schema import Moment as MomentOf
from torchrl_rerun.kinds.streams import Stream
from torchrl_rerun.reading.load import load
from torchrl_rerun.reading.loaded_episode import LoadedEpisode
from torchrl_rerun.reading.outcomes import outcomes
from torchrl_rerun.scenes.known import restorer_of
from torchrl_rerun.scenes.source import Restorer, SceneError
from torchrl_rerun.stored.rewound import Moment, RewindError, Rewound, RewoundGymnasium
from torchrl_rerun.stored.states import Divergence, find_difference, find_state_setter
from torchrl_rerun.wrappers.fields import OBSERVATION

if TYPE_CHECKING:
    from tensordict import TensorDictBase
    from torchrl.envs import EnvBase

_EXACT = (None, "png", "raw")
"""Formats of pictures that come back as they were, and that of all other data."""


@overload
def rewind(
    env: gymnasium.Env[Any, Any], episode: LoadedEpisode, step: int, *, seed: int | None = None
) -> tuple[Any, dict[str, Any]]: ...
@overload
def rewind(env: EnvBase, episode: LoadedEpisode, step: int, *, seed: int | None = None) -> TensorDictBase: ...
def rewind(
    env: EnvBase | gymnasium.Env[Any, Any], episode: LoadedEpisode, step: int, *, seed: int | None = None
) -> TensorDictBase | tuple[Any, dict[str, Any]]:
    """Put an environment back to a recorded step, to go on from there with a debugger or with another policy.

    There are two ways, tried in this order. Either needs the recorded actions:

    - By the state of one step before, from which the environment takes the recorded action. The state is that of MuJoCo if
      it was recorded with ``scene=MuJoCo("full")``; the environment then goes on bit for bit as it did. Else it follows from
      the observation, in Gymnasium's classic control and those of its robots whose observations begin with positions and
      velocities; the environment then goes on as it did but for rounding.
    - By the seed and all actions since. Each observation and reward on the way is compared with what was recorded.

    A recorder within ``env`` records the resets and steps of this function, too.

    Args:
        env: an environment like the one that was recorded, of TorchRL or Gymnasium, with its transforms or wrappers; no
            batch.
        episode: the recorded episode: one of :func:`load`.
        step: the number of steps since the reset, from 0. Negative numbers count from the end of the episode: -10 is
            ten steps before it.
        seed: the seed that the environment was given before the episode, or before the first one of the recording. Default:
            that of the recording, which those with ``split="episode"`` have.

    Returns:
        What ``env.reset`` would return at this step: a tensordict, or an observation and infos.

    Raises:
        RewindError: the environment and the recording differ at some step, or neither state nor seed and actions are
            recorded.
        IndexError: the episode has no such step.
        TypeError: ``env`` is no single environment of TorchRL or Gymnasium.
        ValueError: ``env`` is a batch.

    Examples:
        >>> import tempfile
        >>> import gymnasium as gym
        >>> from torchrl_rerun import MuJoCo, load, rewind
        >>> from torchrl_rerun.wrappers import RecordRerun
        >>> path = tempfile.mkdtemp() + "/run.rrd"
        >>> env = RecordRerun(gym.make("Hopper-v5"), path, scene=MuJoCo("full"))
        >>> observation, info = env.reset(seed=0)
        >>> for _ in range(8):
        ...     result = env.step(env.action_space.sample())
        >>> env.close()
        >>> [episode] = load(path)
        >>> again = gym.make("Hopper-v5")
        >>> observation, info = rewind(again, episode, -3)
        >>> (observation == episode.arrays()["observation"][-4]).all()
        np.True_
    """
    at = _step_of(episode, step)
    rewound = _rewound(env)
    why: dict[str, RewindError] = {}
    for name, way in (
        ("state", _rewound_by_state),
        ("seed and actions", functools.partial(_rewound_by_actions, seed=seed)),
    ):
        try:
            return way(rewound, episode, at)
        except RewindError as error:
            why[name] = error
    properties = episode.properties
    said = "; ".join(f"by {name}: {error}" for name, error in why.items())
    raise RewindError(
        f"environment {properties.env}, episode {properties.episode} can't be rewound to step {at}: {said}",
        next((error.divergence for error in reversed(why.values()) if error.divergence is not None), None),
    )


def _step_of(episode: LoadedEpisode, step: int) -> int:
    length = episode.properties.length
    at = step + length if step < 0 else step
    if not 0 <= at <= length:
        raise IndexError(f"the episode has {length} steps, and none of number {step}")
    return at


def _rewound(env: Any) -> Rewound:
    if isinstance(env, gymnasium.Env):
        return RewoundGymnasium(env)
    if hasattr(env, "batch_size") and hasattr(env, "rollout"):
        from torchrl_rerun.stored.rewound_torchrl import RewoundTorchRL  # noqa: PLC0415 - others don't use it

        return RewoundTorchRL(env)
    raise TypeError(
        f"{type(env).__name__} is no single environment of TorchRL or Gymnasium: pass one like that recorded"
    )


# --- by the state ---


def _rewound_by_state(rewound: Rewound, episode: LoadedEpisode, at: int) -> Any:
    recorded = _Recorded(episode)
    before = max(at - 1, 0)
    has_action = recorded.has_action(rewound, before)
    if at and not has_action:
        raise RewindError(f"the action of step {before} is not recorded")
    state = _State(rewound, recorded)
    state.put(before)
    if has_action:  # of the first moment, too: whether the state is the right one shows a step later
        moment = rewound.step(recorded.row(before))
        recorded.compare(moment, before + 1, rewound.observation_keys)
        state.compare(before + 1)
    if not at:
        state.put(0)
    return rewound.result(recorded.row(at), is_set=not at)


class _State:
    """The recorded states of an environment.

    Args:
        rewound: the environment.
        recorded: the episode.

    Raises:
        RewindError: there are none.
    """

    def __init__(self, rewound: Rewound, recorded: _Recorded) -> None:
        self._rewound, self._recorded = rewound, recorded
        self._restorers: list[tuple[Stream, Restorer]] = []
        for stream in recorded.scenes:
            try:
                restorer = restorer_of(rewound.simulated, stream)
            except SceneError as error:
                raise RewindError(str(error)) from None
            if restorer is not None:
                self._restorers.append((stream, restorer))
        self._is_whole = any(restorer.is_whole for _, restorer in self._restorers)
        self._observe = None if rewound.inner is None else find_state_setter(rewound.inner)
        if not self._is_whole and self._observe is None:
            raise RewindError(
                "no whole state is recorded, as scene=MuJoCo('full') does, and none follows from the observation of "
                f"{type(rewound.simulated).__name__}"
            )

    def put(self, step: int) -> None:
        """Reset the environment, and set it to the state of a step.

        Raises:
            RewindError: it isn't recorded.
        """
        recorded, rewound = self._recorded, self._rewound
        rewound.reset()
        if not self._is_whole:
            assert self._observe is not None, "there is one or the other"
            self._observe(self._observed(step))
        for stream, restorer in self._restorers:
            restorer.put(self._known(stream.key, step))
        rewards = [recorded.at((REWARD,), number) for number in range(1, step + 1)]
        rewound.count(step, float(sum(np.sum(reward) for reward in rewards if reward is not None)))
        rewound.take_up(recorded.row(step))

    def _observed(self, step: int) -> npt.NDArray[np.float64]:
        observation, shape = self._known(OBSERVATION, step), self._rewound.simulated.observation_space.shape
        if observation.shape != shape:
            raise RewindError(
                f"{name_of(OBSERVATION)} has shape {observation.shape}, from which the state of "
                f"{type(self._rewound.simulated).__name__} doesn't follow: its own have {shape}"
            )
        return observation

    def _known(self, key: Key, step: int) -> npt.NDArray[np.float64]:
        stored = self._recorded.at(key, step)
        if stored is None or not np.isfinite(np.asarray(stored, np.float64)).all():
            raise RewindError(f"{name_of(key)} of step {step} is not recorded")
        return np.asarray(stored, np.float64)

    def compare(self, step: int) -> None:
        """Compare whole states bit for bit.

        Raises:
            RewindError: they differ.
        """
        for stream, restorer in self._restorers:
            stored = self._recorded.at(stream.key, step)
            if restorer.is_whole and stored is not None and not np.array_equal(found := restorer.read(), stored):
                raise self._recorded.diverged(step, stream.key, float(np.abs(found - stored).max()))


# --- by the seed and the actions since ---


def _rewound_by_actions(rewound: Rewound, episode: LoadedEpisode, at: int, seed: int | None) -> Any:
    if seed is None:
        seed = episode.properties.seed
    if seed is None:
        raise RewindError("no seed is recorded: pass seed=..., which the environment was given")
    try:
        _play(rewound, [episode], at, seed)
    except RewindError as error:
        if error.divergence is None or not episode.properties.episode:
            raise
        try:
            _play(rewound, [*_episodes_before(episode), episode], at, seed)
        except RewindError as of_all:
            raise RewindError(
                f"with seed {seed}, {error}; from the first episode, which may have begun with it: {of_all}",
                of_all.divergence or error.divergence,
            ) from None
    return rewound.result(_Recorded(episode).row(at), is_set=False)


def _play(rewound: Rewound, episodes: Sequence[LoadedEpisode], at: int, seed: int) -> None:
    """Reset an environment with a seed, and take the recorded actions of some episodes, the last one up to a step.

    Raises:
        RewindError: an action isn't recorded, or the environment and the recording differ.
    """
    of_each = [_Recorded(episode) for episode in episodes]
    until = [*(episode.properties.length for episode in episodes[:-1]), at]
    for recorded, count in zip(of_each, until, strict=True):
        recorded.check_actions(rewound, count)
    _begin(rewound.seeded(seed), of_each[0])
    for number, (recorded, count) in enumerate(zip(of_each, until, strict=True)):
        if number:
            recorded.compare(rewound.reset(), 0)
        for step in range(count):
            recorded.compare(rewound.step(recorded.row(step)), step + 1)


def _begin(resets: Iterable[Moment], recorded: _Recorded) -> None:
    """Reset an environment until it is as it was recorded first."""
    first: RewindError | None = None
    for moment in resets:
        try:
            recorded.compare(moment, 0)
        except RewindError as error:
            first = first or error
        else:
            return
    assert first is not None, "it is reset at least once"
    raise first


def _episodes_before(episode: LoadedEpisode) -> list[LoadedEpisode]:
    """Return the episodes of the environment before this one.

    Raises:
        RewindError: not all are recorded.
    """
    env, number = episode.properties.id
    if episode.schema.split != "episode":
        found = [LoadedEpisode(episode.history, each) for each in outcomes(episode.history)]
    else:
        found = [each for each in load({file.parent for file in episode.files}) if each.properties.env == env]
    before = [each for each in found if each.properties.episode < number]
    if [each.properties.episode for each in before] != list(range(number)):
        raise RewindError(f"not all of the {number} episodes before this one are recorded")
    return before


# --- what was recorded ---


class _Recorded:
    """The rows of an episode, by step.

    Args:
        episode: the episode.
    """

    def __init__(self, episode: LoadedEpisode) -> None:
        self._episode = episode
        described = episode.schema.described
        self.scenes = [stream for stream, _ in described if any(kind.is_scene for _, kind in stream.drawing)]
        self._exact = {stream.key for stream, _ in described if _comes_back(stream)}
        self._seen = {stream.key for stream, moment in described if moment is not MomentOf.ACTED} & self._exact
        self._rows: dict[Key, dict[int, Any]] = {}

    def at(self, key: Key, step: int) -> Any:
        """Return the value of a key at a step; None: there is none that comes back as it was."""
        if key not in self._exact:
            return None
        if key not in self._rows:
            [values], [steps] = self._episode.arrays([key]).values(), self._episode.episode_steps([key]).values()
            self._rows[key] = dict(zip(steps.tolist(), values, strict=True))
        return self._rows[key].get(step)

    def row(self, step: int) -> Callable[[Key], Any]:
        """Return the function that returns the values of a step."""
        return functools.partial(self._of_step, step)

    def _of_step(self, step: int, key: Key) -> Any:
        return self.at(key, step)

    def has_action(self, rewound: Rewound, step: int) -> bool:
        """Return whether all actions of a step are recorded."""
        return all(self.at(key, step) is not None for key in rewound.action_keys)

    def check_actions(self, rewound: Rewound, count: int) -> None:
        """Raise RewindError if the actions of one of the first steps are not recorded."""
        missing = next((step for step in range(count) if not self.has_action(rewound, step)), None)
        if missing is not None:
            raise RewindError(
                f"the action of step {missing} of episode {self._episode.properties.episode} is not recorded"
            )

    def compare(self, moment: Moment, step: int, keys: Sequence[Key] | None = None) -> None:
        """Compare what an environment gives with what was recorded.

        Args:
            moment: what the environment gives.
            step: the step that led to it.
            keys: the keys that are compared. Default: all.

        Raises:
            RewindError: they differ.
        """
        there = [key for key in moment if key in self._seen and (keys is None or key in keys)]
        rows = {key: row for key in there if isinstance(row := self.at(key, step), np.ndarray | np.generic)}
        difference = find_difference({key: moment[key] for key in rows}, rows)
        if difference is not None:
            raise self.diverged(step, *difference)

    def diverged(self, step: int, key: Key, difference: float) -> RewindError:
        """Return the error of a step at which an environment and the episode differ."""
        env, number = self._episode.properties.id
        divergence = Divergence(env, number, step, key, difference)
        return RewindError(str(divergence), divergence)


def _comes_back(stream: Stream) -> bool:
    """Return whether values come back as they were: a lossy picture doesn't."""
    is_whole = stream.kind.recorded_shape(stream) == stream.row_shape
    return is_whole and stream.kind.format in _EXACT and not stream.reward_key
