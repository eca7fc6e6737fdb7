"""Flight recorder for reinforcement learning: records TorchRL environments into Rerun recordings."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torchrl_rerun.errors import FileInUseError, RecordingError
    from torchrl_rerun.export.lerobot import LeRobotDataset, to_lerobot
    from torchrl_rerun.export.minari import to_minari
    from torchrl_rerun.export.parquet import to_parquet
    from torchrl_rerun.kinds.episode import Episode
    from torchrl_rerun.reading.learning import StepDataset
    from torchrl_rerun.reading.load import LoadedEpisode, Recordings, load
    from torchrl_rerun.reading.query import query, table_of
    from torchrl_rerun.recording.keep import Keep, KeepBest, KeepIf, KeepLast, KeepWorst
    from torchrl_rerun.rrd.listing import Listing, RecordedEpisode, list_episodes
    from torchrl_rerun.rrd.repair import Repaired, repair
    from torchrl_rerun.stored.replay import Replayed, replay
    from torchrl_rerun.stored.rerendering import Divergence
    from torchrl_rerun.transform.recorder import RerunRecorder
    from torchrl_rerun.viewing.browse import Browser, browse
    from torchrl_rerun.viewing.compare import (
        ComparedRun,
        open_runs,
        subtract_measures,
        summarize_episodes,
        write_comparison,
    )

__all__ = [
    "Browser",
    "ComparedRun",
    "Divergence",
    "Episode",
    "FileInUseError",
    "Keep",
    "KeepBest",
    "KeepIf",
    "KeepLast",
    "KeepWorst",
    "LeRobotDataset",
    "Listing",
    "LoadedEpisode",
    "RecordedEpisode",
    "RecordingError",
    "Recordings",
    "Repaired",
    "Replayed",
    "RerunRecorder",
    "StepDataset",
    "browse",
    "list_episodes",
    "load",
    "open_runs",
    "query",
    "repair",
    "replay",
    "subtract_measures",
    "summarize_episodes",
    "table_of",
    "to_lerobot",
    "to_minari",
    "to_parquet",
    "write_comparison",
]

_HOMES = {
    "Browser": "viewing.browse",
    "ComparedRun": "viewing.compare",
    "Divergence": "stored.rerendering",
    "Episode": "kinds.episode",
    "FileInUseError": "errors",
    "Keep": "recording.keep",
    "KeepBest": "recording.keep",
    "KeepIf": "recording.keep",
    "KeepLast": "recording.keep",
    "KeepWorst": "recording.keep",
    "LeRobotDataset": "export.lerobot",
    "Listing": "rrd.listing",
    "LoadedEpisode": "reading.load",
    "RecordedEpisode": "rrd.listing",
    "RecordingError": "errors",
    "Recordings": "reading.load",
    "Repaired": "rrd.repair",
    "Replayed": "stored.replay",
    "RerunRecorder": "transform.recorder",
    "StepDataset": "reading.learning",
    "browse": "viewing.browse",
    "list_episodes": "rrd.listing",
    "load": "reading.load",
    "open_runs": "viewing.compare",
    "query": "reading.query",
    "repair": "rrd.repair",
    "replay": "stored.replay",
    "subtract_measures": "viewing.compare",
    "summarize_episodes": "viewing.compare",
    "table_of": "reading.query",
    "to_lerobot": "export.lerobot",
    "to_minari": "export.minari",
    "to_parquet": "export.parquet",
    "write_comparison": "viewing.compare",
}


def __getattr__(name: str) -> Any:
    """Import a public name on first use. The command line works without torch, whose import takes seconds."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"torchrl_rerun.{_HOMES[name]}"), name)
