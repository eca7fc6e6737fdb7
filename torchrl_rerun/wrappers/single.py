"""RecordRerun for single environments of Gymnasium."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, Unpack

import gymnasium
import numpy as np
from gymnasium.utils import RecordConstructorArgs

from torchrl_rerun.kinds.endings import Ends
from torchrl_rerun.recording.env_specs import spec_to_json
from torchrl_rerun.recording.options import RecorderOptions
from torchrl_rerun.recording.session import Sinks
from torchrl_rerun.wrappers.autoreset import Modes, mode_of, reset_mask_in, single_spaces
from torchrl_rerun.wrappers.batches import Batch, copied, is_up
from torchrl_rerun.wrappers.cameras import EnvCamera, VectorCamera
from torchrl_rerun.wrappers.choosing import SINGLE, check_form
from torchrl_rerun.wrappers.facts import id_of, names_of, rate_of, seed_of
from torchrl_rerun.wrappers.front_end import FrontEnd
from torchrl_rerun.wrappers.looks import looks_for
from torchrl_rerun.wrappers.plan import About
from torchrl_rerun.wrappers.recorder import Recorder, saved_sink
from torchrl_rerun.wrappers.space_json import space_to_json
from torchrl_rerun.wrappers.stepped import NO_EXTRAS, Stepped


class RecordRerun(Recorder, gymnasium.Wrapper[Any, Any, Any, Any], RecordConstructorArgs):
    """Record a Gymnasium environment, per episode, into a `Rerun <https://rerun.io>`_ recording.

    Without a trigger everything is recorded, while ``RecordVideo`` records episodes 0, 1, 8, 27 and so on: pass
    ``episode_trigger=gymnasium.utils.save_video.capped_cubic_video_schedule`` for these. What is recorded is exact, dtypes and
    shapes included, but for images: they are stored as JPEG, which is lossy, unless ``image_format`` asks for an exact format.

    Wrap the environment last. What it returns stays as it is. The environment's thread pays for one copy into a bounded buffer.
    A thread of the recorder writes.

    - Observations are at their own frame: the last one of an episode and the first one of the next are two rows. A ``Dict`` space
      has a key for each of its parts.
    - An action is at the frame of the observation that it answers, as the environment took it: a Discrete action is its number.
      ``reward`` (float64), ``terminated``, ``truncated`` and ``done`` (either of these) are at the frame that they led to.
    - The recorder adds the running ``episode_return``.

    Args:
        env: the environment.
        sink: the path of a file (``run.rrd``) or a folder, the URL of a viewer, a recording stream, or several; see
            :class:`~torchrl_rerun.RerunRecorder`. In the environments of ``SyncVectorEnv`` and ``AsyncVectorEnv`` each recorder
            writes a file beside the path (``run.worker_0.rrd``).
        autoreset_mode: for an environment that is a batch of environments (``unwrapped.num_envs``), when those that are done are
            reset: ``"NextStep"``, ``"SameStep"`` or ``"Disabled"``, see :class:`torchrl_rerun.wrappers.vector.RecordRerun`.
            Default: as is known of Isaac Lab and ManiSkill.
        options: the options of :class:`~torchrl_rerun.RerunRecorder`, by their names. Some have words of Gymnasium's:

            - ``in_keys``: keys to record: ``"observation"``, the names of a ``Dict`` space, ``"action"``, ``"reward"``, and what
              the environment says beside its observations, ``("info", "x_position")``. Default: all but infos.
            - ``render``: whether ``env.render()`` is called at the frames that are recorded, and its pictures are recorded as
              ``"pixels"``. The environment must be made with ``render_mode="rgb_array"``.
            - ``episode_trigger``, ``step_trigger``, ``recording_length``: those of ``RecordVideo``, which calls the last one
              ``video_length``.

    Raises:
        FileExistsError: the file exists, or the folder holds an earlier run, and neither ``overwrite`` nor ``resume`` is true.
        OSError: the folder can't be written.
        TypeError: ``env`` is no ``gymnasium.Env``, an option is of the wrong type, or there is none of its name.
        KeyError: at the first reset or step, if ``in_keys`` names a key that the environment doesn't give. An info may come
            later: there is a warning.
        ValueError: an option is out of its range, or ``autoreset_mode`` of a batch isn't known; at the first reset, if ``render`` asks for pictures that the environment can't
            give.

    .. note:: Errors of the disk never reach ``reset`` and ``step``: training goes on, there is one warning, and the next
        :meth:`dump` or :meth:`close` raises :class:`~torchrl_rerun.RecordingError`.

    .. note:: Around ``gymnasium.wrappers.Autoreset``, the call of ``step`` that resets the environment is recorded as a reset. Its
        action, which the environment ignores, and its reward aren't recorded.

    .. note:: An environment that is made from the ``spec`` of one that is being recorded (``env.spec.make()``, as Gymnasium's
        ``check_env`` does) has a file beside it, as copies have.

    .. note:: An environment that was reset before it was wrapped has its first row after the first step: the observation before
        it isn't known.

    Examples:
        >>> import os, tempfile
        >>> import gymnasium as gym
        >>> from torchrl_rerun.wrappers import RecordRerun
        >>> folder = tempfile.mkdtemp()
        >>> env = RecordRerun(gym.make("CartPole-v1"), folder + "/run.rrd")
        >>> observation, info = env.reset(seed=0)
        >>> for _ in range(10):
        ...     observation, reward, terminated, truncated, info = env.step(env.action_space.sample())
        >>> env.stats()["steps"]
        10
        >>> env.close()

        Then ``rerun run.rrd`` opens it. To record each episode by itself, with properties of your own:

        >>> from torchrl_rerun import KeepIf
        >>> env = RecordRerun(gym.make("CartPole-v1"), folder + "/right", keep=KeepIf(lambda episode: episode["right"]))
        >>> for seed in range(2):
        ...     observation, info = env.reset(seed=seed)
        ...     terminated = False
        ...     while not terminated:
        ...         observation, reward, terminated, truncated, info = env.step(seed)
        ...     env.annotate(right=bool(observation[2] > 0))  # the pole fell to the right
        >>> env.close()
        >>> os.listdir(folder + "/right")
        ['env_0_episode_000000.rrd']
    """

    def __init__(
        self,
        env: gymnasium.Env[Any, Any],
        sink: Sinks | Sequence[Sinks] = None,
        *,
        autoreset_mode: Modes = None,
        **options: Unpack[RecorderOptions],
    ) -> None:
        check_form(env, SINGLE)
        told = {} if autoreset_mode is None else {"autoreset_mode": autoreset_mode}
        # Sinks such as recording streams can't be copied.
        RecordConstructorArgs.__init__(self, _disable_deepcopy=True, sink=saved_sink(sink), **told, **options)
        gymnasium.Wrapper.__init__(self, env)
        envs = getattr(env.unwrapped, "num_envs", None)
        self._envs = envs if isinstance(envs, int) else None
        self._mode = None if self._envs is None else mode_of(env, autoreset_mode, None)
        self._start(sink, options)

    def _new_front_end(self) -> FrontEnd:
        env = self.env
        is_batch = self._envs is not None
        observation, action = single_spaces(env) if is_batch else (env.observation_space, env.action_space)
        origin = {"front_end": "gymnasium", "spaces": spaces_of(observation, action)}
        if self._mode is not None:
            origin["autoreset_mode"] = self._mode.value
        about = About(
            self._envs,
            observation,
            action,
            functools.partial(id_of, env),
            functools.partial(rate_of, env),
            functools.partial(names_of, env),
            functools.partial(spec_to_json, env),
            origin=origin,
            reward_shape=reward_shape_of(env),
        )
        self._camera = EnvCamera()
        self._autoresets, self._will_reset = _autoresets(env), False
        front_end = FrontEnd(
            self._session, about, env, looks_for(self._session.options, VectorCamera() if is_batch else self._camera)
        )
        self._batch = None
        if self._envs is not None and self._mode is not None:
            self._batch = Batch(front_end, self._envs, self._mode)
        return front_end

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Reset the environment, and record its observation.

        Args:
            seed: the seed of the environment.
            options: its options.
        """
        mask = None if self._envs is None else reset_mask_in(options, self.env, self._mode)
        observation, info = self.env.reset(seed=seed, options=options)
        if self._batch is not None:
            self._batch.reset(observation, info, mask, seed)
            return observation, info
        self._will_reset = False
        self._camera.forget()
        front_end = self._front_end
        front_end.reset(observation, info, seeds=(seed_of(self.env),) if front_end.must_know_seeds else ())
        return observation, info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Step the environment, and record the action and what it led to.

        Args:
            action: the action.
        """
        front_end = self._front_end
        acted = copied(action)
        result: tuple[Any, Any, bool, bool, dict[str, Any]] = self.env.step(action)
        if self._batch is not None:
            self._batch.step(acted, result)
            return result
        ends = None
        try:
            observation, reward, terminated, truncated, info = result
            has_terminated, was_truncated = is_up(terminated), is_up(truncated)
            done = has_terminated or was_truncated
            if done:
                ends = Ends(np.array([has_terminated]), np.array([was_truncated]))
        except Exception as error:  # a result of no form that is known: training goes on
            front_end.fail(error)
            return result
        is_reset, self._will_reset = self._will_reset, self._autoresets and done
        if is_reset:
            front_end.count_step()
            front_end.reset(observation, info, seeds=(seed_of(self.env),) if front_end.must_know_seeds else ())
            return result
        observed = (observation, info, terminated, truncated, done)
        front_end.step(Stepped(observed, (reward, info), (acted, NO_EXTRAS)), None, ends)
        return result

    def render(self) -> Any:
        """Render the environment. Frames of a list that the recorder has taken are returned, too."""
        rendered = self.env.render()
        history = self._camera.history
        if history and isinstance(rendered, list):
            self._camera.forget()
            return history + rendered
        return rendered

    def close(self) -> None:
        """Close the environment, then the recording. Closing again does nothing.

        Raises:
            RecordingError: data could not be written. The message gives the cause and the number of lost frames. In the workers of
                a batch it is a warning.
        """
        try:
            super().close()
        finally:
            self._end()


def _autoresets(env: Any) -> bool:
    """Return whether the call of ``step`` after the end of an episode resets the environment, and ignores its action."""
    while isinstance(env, gymnasium.Wrapper):
        if isinstance(env, gymnasium.wrappers.Autoreset):
            return True
        env = env.env
    return False


def spaces_of(observation: gymnasium.Space[Any], action: gymnasium.Space[Any]) -> dict[str, Any]:
    """Return the spaces of one environment as JSON has them.

    Args:
        observation: the space of its observation.
        action: the space of its action.
    """
    return {"observation": space_to_json(observation), "action": space_to_json(action)}


def reward_shape_of(env: Any) -> tuple[int, ...]:
    """Return the shape of a reward: one number, unless the environment says that it has several objectives.

    Args:
        env: the environment.
    """
    space = getattr(env.unwrapped, "reward_space", None)
    shape = tuple(getattr(space, "shape", None) or ())
    return shape or (1,)
