"""A flight recorder for reinforcement learning: TorchRL environments, recorded into Rerun."""

from torchrl_rerun.recorder import RerunRecorder
from torchrl_rerun.repairing import Repaired, repair
from torchrl_rerun.sinks import RecordingError

__all__ = ["RecordingError", "Repaired", "RerunRecorder", "repair"]
