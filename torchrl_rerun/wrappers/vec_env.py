"""VecRerunRecorder, for vector environments of Stable-Baselines3."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Unpack

import numpy as np
import numpy.typing as npt
from gymnasium.vector import AutoresetMode
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper, VecNormalize

from torchrl_rerun.kinds.endings import Ends
from torchrl_rerun.kinds.objects import MISSING
from torchrl_rerun.recording.env_specs import spec_to_json
from torchrl_rerun.recording.known_names import Names, of_id, of_simulator
from torchrl_rerun.recording.known_rates import registered_fps
from torchrl_rerun.recording.options import RecorderOptions
from torchrl_rerun.recording.session import Sinks
from torchrl_rerun.wrappers.batches import Batch, Ended, copied, is_up
from torchrl_rerun.wrappers.cameras import VecEnvCamera
from torchrl_rerun.wrappers.choosing import VEC_ENV, check_form
from torchrl_rerun.wrappers.facts import id_in, rate_of
from torchrl_rerun.wrappers.front_end import FrontEnd
from torchrl_rerun.wrappers.infos import info_of, infos_at, is_info
from torchrl_rerun.wrappers.looks import looks_for
from torchrl_rerun.wrappers.plan import About
from torchrl_rerun.wrappers.policy_values import PolicyValues
from torchrl_rerun.wrappers.recorder import Recorder
from torchrl_rerun.wrappers.single import spaces_of
from torchrl_rerun.wrappers.stepped import NO_EXTRAS


class VecRerunRecorder(Recorder, VecEnvWrapper):
    """Record a vector environment of Stable-Baselines3, per environment and per episode, into a `Rerun <https://rerun.io>`_ recording.

    Without a trigger everything is recorded, while ``VecVideoRecorder`` records what its ``record_video_trigger`` asks for. What
    is recorded is exact, dtypes and shapes included, but for images: they are stored as JPEG, which is lossy, unless
    ``image_format`` asks for an exact format.

    What the environment returns stays as it is. Environment ``i`` is recorded below ``/env_{i}``:

    - The last observation of an episode (``info["terminal_observation"]``) and the first one of the next are two rows.
    - ``done`` is Stable-Baselines3's; ``truncated`` is ``info["TimeLimit.truncated"]``, and ``terminated`` all other ends.
    - Within ``VecNormalize`` the recorder records what the environments gave. Around it, what is normalised is recorded as the
      policy sees it, and the recording's schema says so.

    Args:
        venv: the vector environment: ``DummyVecEnv``, ``SubprocVecEnv``, or any other, wrapped or not.
        sink: the path of a file (``run.rrd``) or a folder, the URL of a viewer, a recording stream, or several; see
            :class:`~torchrl_rerun.RerunRecorder`.
        options: the options of :class:`~torchrl_rerun.RerunRecorder`, by their names. Infos are recorded if ``in_keys`` names
            them, ``("info", "x_position")``. ``render`` needs environments that are made with ``render_mode="rgb_array"``.

    Raises:
        FileExistsError: the file exists, or the folder holds an earlier run, and neither ``overwrite`` nor ``resume`` is true.
        OSError: the folder can't be written.
        TypeError: ``venv`` is an environment of Gymnasium, an option is of the wrong type, or there is none of its name.
        KeyError: at the first reset or step, if ``in_keys`` names a key that the environment doesn't give. An info may come
            later: there is a warning.
        IndexError: at the first reset, if ``logged_envs`` is out of range.
        ValueError: an option is out of its range; at the first reset, if ``render`` asks for pictures that the environment can't
            give.

    .. note:: Pictures of last observations are black: the environment shows the next episode already.

    Examples:
        >>> import tempfile
        >>> from stable_baselines3.common.env_util import make_vec_env
        >>> from torchrl_rerun.wrappers.sb3 import VecRerunRecorder
        >>> venv = VecRerunRecorder(make_vec_env("CartPole-v1", n_envs=2), tempfile.mkdtemp() + "/run.rrd")
        >>> observations = venv.reset()
        >>> for _ in range(10):
        ...     observations, rewards, dones, infos = venv.step([venv.action_space.sample() for _ in range(2)])
        >>> venv.stats()["steps"]
        10
        >>> venv.close()

        To record each episode by itself, with properties of your own:

        >>> from torchrl_rerun import list_episodes
        >>> folder = tempfile.mkdtemp()
        >>> venv = VecRerunRecorder(make_vec_env("CartPole-v1", n_envs=2), folder, split="episode")
        >>> observations = venv.reset()
        >>> venv.annotate(1, difficulty=0.5)
        >>> for _ in range(5):
        ...     observations, rewards, dones, infos = venv.step([venv.action_space.sample() for _ in range(2)])
        >>> venv.close()
        >>> [(found.episode.env, found.episode.annotations) for found in list_episodes(folder).episodes]
        [(0, {}), (1, {'difficulty': 0.5})]
    """

    def __init__(self, venv: VecEnv, sink: Sinks | Sequence[Sinks] = None, **options: Unpack[RecorderOptions]) -> None:
        check_form(venv, VEC_ENV)
        VecEnvWrapper.__init__(self, venv)
        self._actions: Any = None
        self._extras: Mapping[Any, Any] = NO_EXTRAS
        self._properties: Mapping[str, Any] = NO_EXTRAS
        self._start(sink, options)

    def _new_front_end(self) -> FrontEnd:
        venv = self.venv
        name = functools.cache(functools.partial(_id_of, venv))
        origin = {
            "front_end": "stable_baselines3",
            "spaces": spaces_of(venv.observation_space, venv.action_space),
            "autoreset_mode": AutoresetMode.SAME_STEP.value,
        }
        if normalized := _normalized_in(venv):
            origin["normalized"] = normalized
        about = About(
            venv.num_envs,
            venv.observation_space,
            venv.action_space,
            name,
            lambda: rate_of(venv) or registered_fps(name()),
            lambda: _names_of(venv, name()),
            functools.partial(spec_to_json, venv),
            origin=origin,
        )
        front_end = FrontEnd(self._session, about, venv, looks_for(self._session.options, VecEnvCamera()))
        self._batch = Batch(front_end, venv.num_envs, AutoresetMode.SAME_STEP)
        self._down = np.zeros(venv.num_envs, np.bool_)
        self._policy_values: PolicyValues | None = None
        self._reads_infos = any(map(is_info, self._session.options.in_keys or ()))
        return front_end

    def reset(self) -> Any:
        """Reset all environments, and record their observations."""
        seeds = getattr(self.venv.unwrapped, "_seeds", None)  # the reset forgets them, by replacing the list
        observation = self.venv.reset()
        self._batch.reset(observation, self._reset_infos, None, seeds)
        return observation

    def step_async(self, actions: npt.NDArray[Any]) -> None:
        """Tell the environments to step, and note the actions.

        Args:
            actions: the actions.
        """
        self._actions = copied(actions)
        self._extras = NO_EXTRAS if self._policy_values is None else self._policy_values.beside(actions)
        self.venv.step_async(actions)

    def step_wait(self) -> Any:
        """Wait for the step, and record the actions and what they led to."""
        result = self.venv.step_wait()
        try:
            observation, reward, dones, infos = result
            done = np.asarray(dones, np.bool_)
            envs = done.nonzero()[0]  # calls no Python, which `any` and `count_nonzero` do
            ended = self._ended(envs.tolist(), done, infos) if len(envs) else None
        except Exception as error:  # infos of no form that is known: training goes on
            self._front_end.fail(error)
            return result
        self._batch.record((observation, reward, infos), ended, (self._actions, self._extras), self._properties)
        return result

    def _ended(self, envs: list[int], done: npt.NDArray[np.bool_], infos: Any) -> Ended:
        """Return how episodes end, of which there is one at least."""
        cut = [env for env in envs if _was_truncated(infos, env)]
        terminated, truncated, first_infos = done, self._down, infos
        if cut:
            truncated = self._down.copy()
            truncated[cut] = True
            terminated = done & ~truncated
        if self._reads_infos:
            of_reset = self._reset_infos
            first_infos = [infos_at(of_reset if done[env] else infos, env) for env in range(len(done))]
        return Ended(done, Ends(terminated, truncated), first_infos)

    def close(self) -> None:
        """Close the environments, then the recording. Closing again does nothing.

        Raises:
            RecordingError: data could not be written. The message gives the cause and the number of lost frames.
        """
        try:
            self.venv.close()
        finally:
            self._end()

    @property
    def _reset_infos(self) -> list[dict[str, Any]]:
        infos: list[dict[str, Any]] = getattr(self.venv.unwrapped, "reset_infos", [{}] * self.num_envs)
        return infos


def chain(venv: VecEnv) -> Iterator[VecEnv]:
    """Yield a vector environment, and those within it."""
    while True:
        yield venv
        if not isinstance(venv, VecEnvWrapper):
            return
        venv = venv.venv


def _was_truncated(infos: Any, env: int) -> bool:
    """Return whether the infos of an environment say that its episode was truncated."""
    said = info_of(infos, ("TimeLimit.truncated",), env)
    return said is not MISSING and is_up(said)


def _normalized_in(venv: VecEnv) -> list[str]:
    """Return what ``VecNormalize`` within a vector environment normalises."""
    found: set[str] = set()
    for each in chain(venv):
        if isinstance(each, VecNormalize):
            found |= {"observation"} if each.norm_obs else set()
            found |= {"reward"} if each.norm_reward else set()
    return sorted(found)


def _id_of(venv: VecEnv) -> str | None:
    """Return the id that the environments are registered under. Their description is asked for: it can always be pickled."""
    return id_in(str(venv.env_method("__str__", indices=[0])[0]))


def _names_of(venv: VecEnv, name: str | None) -> Names:
    inner = list(getattr(venv.unwrapped, "envs", ()))[:1]
    return of_simulator(inner[0].unwrapped) if inner else of_id(name or "")
