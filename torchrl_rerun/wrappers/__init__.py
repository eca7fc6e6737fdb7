"""Recorders of Gymnasium's and Stable-Baselines3's environments. They import neither torch nor TorchRL.

- ``torchrl_rerun.wrappers.RecordRerun``: single environments, ``gymnasium.Env``;
- ``torchrl_rerun.wrappers.vector.RecordRerun``: vector environments, ``gymnasium.vector.VectorEnv``;
- ``torchrl_rerun.wrappers.sb3``: vector environments of Stable-Baselines3, and a callback.
"""

from torchrl_rerun.wrappers.single import RecordRerun

__all__ = ["RecordRerun"]
