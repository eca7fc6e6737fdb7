"""A flight recorder for reinforcement learning: TorchRL environments, recorded into Rerun."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torchrl_rerun.errors import RecordingError
    from torchrl_rerun.kinds.episode import Episode
    from torchrl_rerun.reading.episodes import LoadedEpisode, LoadedEpisodes
    from torchrl_rerun.reading.load import load
    from torchrl_rerun.recording.keep import Keep, KeepBest, KeepIf, KeepLast, KeepWorst
    from torchrl_rerun.rrd.listing import Listing, RecordedEpisode, list_episodes
    from torchrl_rerun.rrd.repair import Repaired, repair
    from torchrl_rerun.stored.replay import Replayed, replay
    from torchrl_rerun.transform.recorder import RerunRecorder
    from torchrl_rerun.viewing.browse import Browser, browse

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
    "LoadedEpisodes",
    "RecordedEpisode",
    "RecordingError",
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
    "Browser": "viewing.browse",
    "Episode": "kinds.episode",
    "Keep": "recording.keep",
    "KeepBest": "recording.keep",
    "KeepIf": "recording.keep",
    "KeepLast": "recording.keep",
    "KeepWorst": "recording.keep",
    "Listing": "rrd.listing",
    "LoadedEpisode": "reading.episodes",
    "LoadedEpisodes": "reading.episodes",
    "RecordedEpisode": "rrd.listing",
    "RecordingError": "errors",
    "Repaired": "rrd.repair",
    "Replayed": "stored.replay",
    "RerunRecorder": "transform.recorder",
    "StepDataset": "reading.learning",
    "browse": "viewing.browse",
    "list_episodes": "rrd.listing",
    "load": "reading.load",
    "query": "reading.query",
    "repair": "rrd.repair",
    "replay": "stored.replay",
    "to_lerobot": "export.lerobot",
    "to_minari": "export.minari",
    "to_parquet": "export.parquet",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is asked for: the command line does without torch, which takes seconds to import."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"torchrl_rerun.{_HOMES[name]}"), name)
