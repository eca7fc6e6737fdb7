"""A flight recorder for reinforcement learning: TorchRL environments, recorded into Rerun."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torchrl_rerun.browsing import Browser, browse
    from torchrl_rerun.keeping import Episode, Keep, KeepBest, KeepIf, KeepLast, KeepWorst
    from torchrl_rerun.listing import Listing, RecordedEpisode, list_episodes
    from torchrl_rerun.reading import LoadedEpisode, Recordings, load
    from torchrl_rerun.recorder import RerunRecorder
    from torchrl_rerun.repairing import Repaired, repair
    from torchrl_rerun.replaying import Replayed, replay
    from torchrl_rerun.sinks import RecordingError

__all__ = [
    "Browser",
    "Episode",
    "Keep",
    "KeepBest",
    "KeepIf",
    "KeepLast",
    "KeepWorst",
    "Listing",
    "LoadedEpisode",
    "RecordedEpisode",
    "RecordingError",
    "Recordings",
    "Repaired",
    "Replayed",
    "RerunRecorder",
    "browse",
    "list_episodes",
    "load",
    "repair",
    "replay",
]

_HOMES = {
    "Browser": "browsing",
    "Episode": "keeping",
    "Keep": "keeping",
    "KeepBest": "keeping",
    "KeepIf": "keeping",
    "KeepLast": "keeping",
    "KeepWorst": "keeping",
    "Listing": "listing",
    "LoadedEpisode": "reading",
    "RecordedEpisode": "listing",
    "RecordingError": "sinks",
    "Recordings": "reading",
    "Repaired": "repairing",
    "Replayed": "replaying",
    "RerunRecorder": "recorder",
    "browse": "browsing",
    "list_episodes": "listing",
    "load": "reading",
    "repair": "repairing",
    "replay": "replaying",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is asked for: the command line does without torch, which takes seconds to import."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"torchrl_rerun.{_HOMES[name]}"), name)
