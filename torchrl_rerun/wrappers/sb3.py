"""VecRerunRecorder and RerunCallback, for Stable-Baselines3."""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Unpack

import numpy as np
import numpy.typing as npt
from gymnasium.vector import AutoresetMode
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper, VecNormalize

from torchrl_rerun.errors import RecordingError, warn
from torchrl_rerun.recording.known_names import Names, of_id, of_simulator
from torchrl_rerun.recording.known_rates import registered_fps
from torchrl_rerun.recording.options import RecorderOptions
from torchrl_rerun.recording.session import Sinks
from torchrl_rerun.wrappers.batches import Batch, copied
from torchrl_rerun.wrappers.cameras import VecEnvCamera
from torchrl_rerun.wrappers.describing import About
from torchrl_rerun.wrappers.facts import id_in, rate_of
from torchrl_rerun.wrappers.front_end import NO_EXTRAS, FrontEnd
from torchrl_rerun.wrappers.infos import is_info
from torchrl_rerun.wrappers.readers import as_array
from torchrl_rerun.wrappers.recorder import Recorder
from torchrl_rerun.wrappers.single import spaces_of

VALUE, LOG_PROB = ("value",), ("log_prob",)
"""Keys of what a policy says beside its actions."""


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
        TypeError: an option is of the wrong type, or there is none of its name.
        KeyError: at the first reset or step, if ``in_keys`` names a key that the environment doesn't give.
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
    """

    def __init__(self, venv: VecEnv, sink: Sinks | Sequence[Sinks] = None, **options: Unpack[RecorderOptions]) -> None:
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
            origin=origin,
        )
        front_end = FrontEnd(self._session, about, venv, VecEnvCamera())
        self._batch = Batch(front_end, venv.num_envs, AutoresetMode.SAME_STEP)
        self._down = np.zeros(venv.num_envs, np.bool_)
        self._reads_infos = any(map(is_info, self._session.options.in_keys or ()))
        return front_end

    def reset(self) -> Any:
        """Reset all environments, and record their observations."""
        seeds = list(getattr(self.venv.unwrapped, "_seeds", ()))  # they are forgotten by the reset
        observation = self.venv.reset()
        self._batch.reset(observation, self._reset_infos, None, seeds or None)
        return observation

    def step_async(self, actions: npt.NDArray[Any]) -> None:
        """Tell the environments to step, and note the actions.

        Args:
            actions: the actions.
        """
        self._actions = copied(actions)
        self.venv.step_async(actions)

    def step_wait(self) -> Any:
        """Wait for the step, and record the actions and what they led to."""
        result = self.venv.step_wait()
        observation, reward, done, infos = result
        try:
            terminated, truncated, first_infos = done, self._down, None
            if np.count_nonzero(done):
                truncated = self._down.copy()
                for env in np.flatnonzero(done):
                    truncated[env] = bool(infos[env].get("TimeLimit.truncated", False))
                if self._reads_infos:
                    of_reset = self._reset_infos
                    first_infos = [of_reset[env] if done[env] else info for env, info in enumerate(infos)]
                terminated = done & ~truncated
        except Exception as error:  # infos of no form that is known: training goes on
            self._front_end.fail(error)
            return result
        self._batch.step(
            self._actions,
            (observation, reward, terminated, truncated, infos),
            done=done,
            first_info=first_infos,
            extras=self._extras,
            properties=self._properties,
        )
        self._extras = NO_EXTRAS
        return result

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


class RerunCallback(BaseCallback):
    """Make a recording durable at the end of each rollout, and add what the training knows.

    - At the end of each rollout the recorder dumps. Rollouts of algorithms with a replay buffer are a step or a few: these dump
      at most once a second.
    - If each episode has a recording of its own (``split="episode"``, ``keep``), ``num_timesteps`` is a property of it: the steps of
      all environments when it ended.

    Errors of the disk don't end the training: they are warnings, and ``close()`` of the recorder raises them.

    Args:
        recorder: the recorder. Default: the one around or within the environment that is trained on.
        values: whether the policy's values and log-probabilities are recorded beside the actions, as ``"value"`` and
            ``"log_prob"``. Algorithms with rollouts of their own have them: A2C, PPO. Default: False.
        verbose: as of every callback.

    Raises:
        ValueError: when training begins, if there is no recorder.

    Examples:
        >>> import tempfile
        >>> from stable_baselines3 import PPO
        >>> from stable_baselines3.common.env_util import make_vec_env
        >>> from torchrl_rerun.wrappers.sb3 import RerunCallback, VecRerunRecorder
        >>> venv = VecRerunRecorder(make_vec_env("CartPole-v1", n_envs=2), tempfile.mkdtemp() + "/run.rrd")
        >>> model = PPO("MlpPolicy", venv, n_steps=16, batch_size=32, n_epochs=1)
        >>> model = model.learn(32, callback=RerunCallback(venv, values=True))
        >>> venv.stats()["frames_waiting"]
        0
        >>> venv.close()
    """

    DUMP_SECONDS = 1.0
    """Seconds between dumps, at least, of algorithms with a replay buffer."""

    def __init__(self, recorder: VecRerunRecorder | None = None, *, values: bool = False, verbose: int = 0) -> None:
        super().__init__(verbose)
        self.recorder = recorder
        self._records_values = values
        self._hook: Any = None
        self._dumped = 0.0

    def _on_training_start(self) -> None:
        if self.recorder is None:
            self.recorder = next(
                (each for each in _chain(self.training_env) if isinstance(each, VecRerunRecorder)), None
            )
        if self.recorder is None:
            raise ValueError("there is no VecRerunRecorder around the environment: pass it, RerunCallback(recorder)")
        if self._records_values:
            self._hook = self.model.policy.register_forward_hook(self._note_values)
        self._tell_timesteps()

    def _on_rollout_start(self) -> None:
        self._tell_timesteps()

    def _on_step(self) -> bool:
        self._tell_timesteps()
        return True

    def _on_rollout_end(self) -> None:
        is_short = hasattr(self.model, "replay_buffer")
        if is_short and time.monotonic() - self._dumped < self.DUMP_SECONDS:
            return
        self._dump()

    def _on_training_end(self) -> None:
        self._dump()
        if self._hook is not None:
            self._hook.remove()
            self._hook = None
        if self.recorder is not None:
            self.recorder._properties = NO_EXTRAS  # noqa: SLF001 - of this module

    def _dump(self) -> None:
        assert self.recorder is not None, "training has begun"
        try:
            self.recorder.dump()
        except RecordingError as error:  # training goes on
            warn(str(error), RuntimeWarning)
        self._dumped = time.monotonic()

    def _tell_timesteps(self) -> None:
        """Have the episodes that end with the next step annotated."""
        assert self.recorder is not None, "training has begun"
        self.recorder._properties = {"num_timesteps": self.num_timesteps_after_next_step}  # noqa: SLF001 - of this module

    @property
    def num_timesteps_after_next_step(self) -> int:
        """Number of steps of all environments when the next call of ``step`` has returned."""
        return int(self.model.num_timesteps + self.training_env.num_envs)

    def _note_values(self, _module: Any, _inputs: Any, output: Any) -> None:
        """Note what the policy said beside its actions; called by PyTorch after each call of the policy."""
        if self.recorder is not None and isinstance(output, tuple) and len(output) == 3:
            _, values, log_probs = output
            said = {VALUE: values, LOG_PROB: log_probs}
            self.recorder._extras = {  # noqa: SLF001 - of this module
                key: as_array(each).reshape(self.recorder.num_envs, -1)[:, 0] for key, each in said.items()
            }


def _chain(venv: VecEnv) -> Iterator[VecEnv]:
    """Yield a vector environment, and those within it."""
    while True:
        yield venv
        if not isinstance(venv, VecEnvWrapper):
            return
        venv = venv.venv


def _normalized_in(venv: VecEnv) -> list[str]:
    """Return what ``VecNormalize`` within a vector environment normalises."""
    found: set[str] = set()
    for each in _chain(venv):
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
