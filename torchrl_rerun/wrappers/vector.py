"""RecordRerun for vector environments of Gymnasium."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Unpack

from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv, VectorWrapper

from torchrl_rerun.recording.env_specs import spec_to_json
from torchrl_rerun.recording.options import RecorderOptions
from torchrl_rerun.recording.session import Sinks
from torchrl_rerun.wrappers.autoreset import Modes, mode_of, reset_mask_in
from torchrl_rerun.wrappers.batches import Batch, copied
from torchrl_rerun.wrappers.cameras import VectorCamera
from torchrl_rerun.wrappers.choosing import VECTOR, check_form
from torchrl_rerun.wrappers.facts import id_of, names_of_batch, rate_of
from torchrl_rerun.wrappers.front_end import FrontEnd
from torchrl_rerun.wrappers.looks import looks_for
from torchrl_rerun.wrappers.plan import About
from torchrl_rerun.wrappers.recorder import Recorder
from torchrl_rerun.wrappers.single import reward_shape_of, spaces_of

if TYPE_CHECKING:
    Wrapper = VectorWrapper[Any, Any, Any, Any, Any]
else:  # gymnasium 1.2: it is not generic
    Wrapper = VectorWrapper


class RecordRerun(Recorder, Wrapper):
    """Record a vector environment of Gymnasium, per environment and per episode, into a `Rerun <https://rerun.io>`_ recording.

    Without a trigger everything is recorded, and exactly, dtypes and shapes included, but for images: these are stored as
    JPEG, which is lossy, unless ``image_format`` asks for an exact format.

    Wrap the vector environment last. What it returns stays as it is. Environment ``i`` is recorded below ``/env_{i}``, as
    :class:`torchrl_rerun.wrappers.RecordRerun` records a single one. The last observation of an episode and the first one of the
    next are two rows, whenever environments are reset (``metadata["autoreset_mode"]``):

    - NEXT_STEP: a call of ``step`` that resets an environment is a reset of it. Its action, which is ignored, and its reward
      aren't recorded.
    - SAME_STEP: the last observation is ``info["final_obs"]``. If it is missing, it is lost: NaN (or 0) stands for it, and the
      recording's schema says so.
    - DISABLED: the user resets environments by ``reset(options={"reset_mask": ...})``.

    Args:
        env: the vector environment.
        sink: the path of a file (``run.rrd``) or a folder, the URL of a viewer, a recording stream, or several; see
            :class:`~torchrl_rerun.RerunRecorder`.
        autoreset_mode: when environments that are done are reset. Default: ``metadata["autoreset_mode"]``; NEXT_STEP if the
            environment doesn't say.
        options: the options of :class:`~torchrl_rerun.RerunRecorder`, by their names. Infos are recorded if ``in_keys`` names
            them, ``("info", "x_position")``.

    Raises:
        FileExistsError: the file exists, or the folder holds an earlier run, and neither ``overwrite`` nor ``resume`` is true.
        OSError: the folder can't be written.
        TypeError: ``env`` is no ``VectorEnv``, an option is of the wrong type, or there is none of its name.
        KeyError: at the first reset or step, if ``in_keys`` names a key that the environment doesn't give. An info may come
            later: there is a warning.
        IndexError: at the first reset, if ``logged_envs`` is out of range.
        ValueError: an option is out of its range; at the first reset, if ``render`` asks for pictures that the environment can't
            give.

    .. note:: With SAME_STEP, pictures of last observations are black: the environment shows the next episode already.

    Examples:
        >>> import tempfile
        >>> import gymnasium as gym
        >>> from torchrl_rerun.wrappers.vector import RecordRerun
        >>> envs = RecordRerun(gym.make_vec("CartPole-v1", num_envs=3), tempfile.mkdtemp() + "/run.rrd")
        >>> observations, infos = envs.reset(seed=0)
        >>> for _ in range(5):
        ...     observations, rewards, terminations, truncations, infos = envs.step(envs.action_space.sample())
        >>> envs.stats()["steps"], envs.stats()["episodes"]
        (5, 3)
        >>> envs.close()

        To record each episode by itself, with properties of your own:

        >>> from torchrl_rerun import list_episodes
        >>> folder = tempfile.mkdtemp()
        >>> envs = RecordRerun(gym.make_vec("CartPole-v1", num_envs=3), folder, split="episode")
        >>> observations, infos = envs.reset(seed=0)
        >>> envs.annotate(1, difficulty=0.5)
        >>> for _ in range(5):
        ...     observations, rewards, terminations, truncations, infos = envs.step(envs.action_space.sample())
        >>> envs.close()
        >>> [(found.episode.env, found.episode.annotations) for found in list_episodes(folder).episodes]
        [(0, {}), (1, {'difficulty': 0.5}), (2, {})]
    """

    def __init__(
        self,
        env: VectorEnv[Any, Any, Any],
        sink: Sinks | Sequence[Sinks] = None,
        *,
        autoreset_mode: Modes = None,
        **options: Unpack[RecorderOptions],
    ) -> None:
        check_form(env, VECTOR)
        VectorWrapper.__init__(self, env)
        self._mode = mode_of(env, autoreset_mode, AutoresetMode.NEXT_STEP)
        self._start(sink, options)

    def _new_front_end(self) -> FrontEnd:
        env = self.env
        about = About(
            env.num_envs,
            env.single_observation_space,
            env.single_action_space,
            functools.partial(id_of, env),
            functools.partial(rate_of, env),
            functools.partial(names_of_batch, env),
            functools.partial(spec_to_json, env),
            origin={
                "front_end": "gymnasium.vector",
                "spaces": spaces_of(env.single_observation_space, env.single_action_space),
                "autoreset_mode": self._mode.value,
            },
            reward_shape=reward_shape_of(env),
        )
        front_end = FrontEnd(self._session, about, env, looks_for(self._session.options, VectorCamera()))
        # Native vector environments draw the states of all environments from one random generator.
        of_gymnasium = isinstance(env.unwrapped, SyncVectorEnv | AsyncVectorEnv)
        self._batch = Batch(front_end, env.num_envs, self._mode, seeds_follow=of_gymnasium)
        return front_end

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Reset environments, and record their observations.

        Args:
            seed: the seed of each environment, or one for all. Of ``SyncVectorEnv`` and ``AsyncVectorEnv`` one is that of the
                first environment, and those after it have the following ones; of other vector environments their seeds are
                unknown then.
            options: their options. ``"reset_mask"`` chooses environments of ``SyncVectorEnv``, ``AsyncVectorEnv``, and of others
                whose mode is DISABLED. Others reset all.
        """
        mask = reset_mask_in(options, self.env, self._mode)
        observation, info = self.env.reset(seed=seed, options=options)
        self._batch.reset(observation, info, mask, seed)
        return observation, info

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Step all environments, and record the actions and what they led to.

        Args:
            actions: the actions.
        """
        acted = copied(actions)
        result: tuple[Any, Any, Any, Any, dict[str, Any]] = self.env.step(actions)
        self._batch.step(acted, result)
        return result

    def close(self, **kwargs: Any) -> None:
        """Close the environments, then the recording. Closing again does nothing.

        Args:
            kwargs: arguments of the vector environment's ``close()``.

        Raises:
            RecordingError: data could not be written. The message gives the cause and the number of lost frames.
        """
        try:
            super().close(**kwargs)
        finally:
            self._end()
