"""RerunCallback, for trainings of Stable-Baselines3."""

from __future__ import annotations

import time

from stable_baselines3.common.callbacks import BaseCallback

from torchrl_rerun.errors import RecordingError, warn
from torchrl_rerun.wrappers.policy_values import VALUE, PolicyValues
from torchrl_rerun.wrappers.stepped import NO_EXTRAS
from torchrl_rerun.wrappers.vec_env import VecRerunRecorder, chain


class RerunCallback(BaseCallback):
    """Make a recording durable at the end of each rollout, and add what the training knows.

    - At the end of a rollout the recorder dumps, at most once in ``DUMP_SECONDS``: rollouts may be a few steps, and with
      ``keep`` a dump writes the episodes in progress. Between dumps the black box has all steps.
    - If each episode has a recording of its own (``split="episode"``, ``keep``), ``num_timesteps`` is a property of it: the steps of
      all environments when it ended.

    Errors of the disk don't end the training: they are warnings, and ``close()`` of the recorder raises them.

    Args:
        recorder: the recorder. Default: the one around or within the environment that is trained on, at the beginning of each
            training.
        values: whether the policy's values and log-probabilities are recorded beside the actions, as ``"value"`` and
            ``"log_prob"``. Algorithms with rollouts of their own have them: A2C, PPO. Pass it to the first ``learn()``: a
            recording that has begun without them goes on without them, with a warning. Default: False.
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
        self._given = recorder
        self._records_values = values
        self._dumped = time.monotonic()

    def _on_training_start(self) -> None:
        self._let_go()  # a training before may have been interrupted
        self.recorder = self._given or next(
            (each for each in chain(self.training_env) if isinstance(each, VecRerunRecorder)), None
        )
        if self.recorder is None:
            raise ValueError("there is no VecRerunRecorder around the environment: pass it, RerunCallback(recorder)")
        if self._records_values:
            self._ask_for_values(self.recorder)
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
        self._let_go()

    def _ask_for_values(self, recorder: VecRerunRecorder) -> None:
        """Have the policy's values recorded with the actions."""
        recorder._policy_values = PolicyValues(self.model.policy, recorder.num_envs)  # noqa: SLF001 - of this package
        if recorder._front_end.lacks_beside_actions(VALUE):  # noqa: SLF001 - of this package
            warn(
                "values=True: 'value' and 'log_prob' are not recorded, since the recording has begun without them. Pass the "
                "callback to the first learn(), or go on with a recorder of another file: "
                "model.set_env(VecRerunRecorder(venv, 'more.rrd'))"
            )

    def _let_go(self) -> None:
        """Remove from the recorder and the policy what belongs to one training."""
        recorder = self.recorder
        if recorder is None:
            return
        recorder._properties = NO_EXTRAS  # noqa: SLF001 - of this package
        if recorder._policy_values is not None:  # noqa: SLF001 - of this package
            recorder._policy_values.remove()  # noqa: SLF001 - of this package
            recorder._policy_values = None  # noqa: SLF001 - of this package

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
