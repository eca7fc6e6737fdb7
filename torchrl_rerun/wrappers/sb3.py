"""Recorders for Stable-Baselines3: of its vector environments, and of its trainings."""

from torchrl_rerun.wrappers.callback import RerunCallback
from torchrl_rerun.wrappers.vec_env import VecRerunRecorder

__all__ = ["RerunCallback", "VecRerunRecorder"]
