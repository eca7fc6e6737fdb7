"""RerunCallback, for trainings of Stable-Baselines3."""

from __future__ import annotations

import time
from typing import Any

from stable_baselines3.common.callbacks import BaseCallback

from torchrl_rerun.errors import RecordingError, warn
from torchrl_rerun.wrappers.readers import as_array
from torchrl_rerun.wrappers.stepped import NO_EXTRAS
from torchrl_rerun.wrappers.vec_env import VecRerunRecorder, chain

VALUE, LOG_PROB = ("value",), ("log_prob",)
"""Keys of what a policy says beside its actions."""


class RerunCallback(BaseCallback):
    """Make a recording durable at the end of each rollout, and add what the training knows.

    - At the end of a rollout the recorder dumps, at most once in :attr:`DUMP_SECONDS`: rollouts may be a few steps, and with
      ``keep`` a dump writes the episodes in progress. Between dumps the black box has all steps.
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

    DUMP_SECONDS = 10.0
    """Seconds between dumps, at least."""

    def __init__(self, recorder: VecRerunRecorder | None = None, *, values: bool = False, verbose: int = 0) -> None:
        super().__init__(verbose)
        self.recorder = recorder
        self._records_values = values
        self._hook: Any = None
        self._dumped = time.monotonic()

    def _on_training_start(self) -> None:
        if self.recorder is None:
            self.recorder = next(
                (each for each in chain(self.training_env) if isinstance(each, VecRerunRecorder)), None
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
        if time.monotonic() - self._dumped >= self.DUMP_SECONDS:
            self._dump()

    def _on_training_end(self) -> None:
        self._dump()
        if self._hook is not None:
            self._hook.remove()
            self._hook = None
        if self.recorder is not None:
            self.recorder._properties = NO_EXTRAS  # noqa: SLF001 - of this package

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
        self.recorder._properties = {"num_timesteps": self.num_timesteps_after_next_step}  # noqa: SLF001 - of this package

    @property
    def num_timesteps_after_next_step(self) -> int:
        """Number of steps of all environments when the next call of ``step`` has returned."""
        return int(self.model.num_timesteps + self.training_env.num_envs)

    def _note_values(self, _module: Any, _inputs: Any, output: Any) -> None:
        """Note what the policy said beside its actions; called by PyTorch after each call of the policy."""
        if self.recorder is not None and isinstance(output, tuple) and len(output) == 3:
            _, values, log_probs = output
            said = {VALUE: values, LOG_PROB: log_probs}
            self.recorder._extras = {  # noqa: SLF001 - of this package
                key: as_array(each).reshape(self.recorder.num_envs, -1)[:, 0] for key, each in said.items()
            }
