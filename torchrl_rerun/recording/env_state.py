"""The state of the environments between two frames, which a recording hands to the one that continues it."""

from __future__ import annotations

from torchrl_rerun.blocks.black_box import BATCH, RECORDED
from torchrl_rerun.blocks.memory import Memory
from torchrl_rerun.blocks.returns import RunningReturns
from torchrl_rerun.kinds.schema import Source
from torchrl_rerun.recording.counters import Counters
from torchrl_rerun.recording.logged_envs import LoggedEnvs
from torchrl_rerun.recording.options import Options
from torchrl_rerun.recording.triggers import Selection


class EnvState:
    """Where each environment is, which of its frames are recorded, and what its rewards have come to.

    Args:
        source: the environments.
        options: which of them are recorded in detail, and which of their frames.

    Attributes:
        logged: the environments that are recorded in detail.
        envs: their environment indices.
        counters: frame, step and episode of each.
        selection: which of their frames are recorded.
        returns: their running returns.
        batch_returns: the running returns of all environments.

    Raises:
        IndexError: ``logged_envs`` names an environment that isn't there.
    """

    def __init__(self, source: Source, options: Options) -> None:
        self._logged_envs = options.logged_envs
        self.logged = LoggedEnvs(options.logged_envs, source.envs)
        count = len(self.logged)
        self.envs = [source.first_env + index for index in self.logged.indices]
        self.counters = Counters(count)
        self.selection = Selection(count, options)
        self.returns, self.batch_returns = RunningReturns(count), RunningReturns(source.envs)

    def grow(self, source: Source) -> None:
        """Follow more environments, which haven't been reset.

        Args:
            source: the environments, the ones so far and the new ones.
        """
        self.logged = self.logged.grown(self._logged_envs, source.envs)
        self.envs[:] = [source.first_env + index for index in self.logged.indices]
        count = len(self.logged)
        self.counters.grow(count)
        self.selection.grow(count)
        self.returns.grow(count)
        self.batch_returns.grow(source.envs)

    def keep_in(self, memory: Memory) -> None:
        """Copy running returns to where they outlive the process.

        Args:
            memory: where that is.
        """
        self.returns.keep_in(memory, RECORDED)
        self.batch_returns.keep_in(memory, BATCH)

    def forget_returns(self) -> None:
        """Forget the returns of the episodes in progress: rewards were lost."""
        self.returns.forget()
        self.batch_returns.forget()
