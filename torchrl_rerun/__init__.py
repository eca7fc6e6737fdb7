"""Flight recorder for reinforcement learning: records TorchRL environments into Rerun recordings.

``torchrl_rerun.wrappers`` records those of Gymnasium and Stable-Baselines3.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torchrl_rerun.errors import FileInUseError, RecordingError
    from torchrl_rerun.export.lerobot import LeRobotDataset, to_lerobot
    from torchrl_rerun.export.minari import to_minari
    from torchrl_rerun.export.parquet import to_parquet
    from torchrl_rerun.kinds.depth import Depth
    from torchrl_rerun.kinds.episode import Episode
    from torchrl_rerun.kinds.exact import exact_column
    from torchrl_rerun.kinds.image import Image
    from torchrl_rerun.kinds.kind import Encoded, Encoder, Kind, Plot, View, archetype_columns
    from torchrl_rerun.kinds.leaf import Leaf
    from torchrl_rerun.kinds.points3d import Points3D
    from torchrl_rerun.kinds.scalars import Scalars
    from torchrl_rerun.kinds.segmentation import Segmentation
    from torchrl_rerun.kinds.state import State
    from torchrl_rerun.kinds.streams import Stream
    from torchrl_rerun.kinds.tensor import Tensor
    from torchrl_rerun.kinds.text import Text
    from torchrl_rerun.kinds.transforms3d import Transforms3D
    from torchrl_rerun.reading.episodes import LoadedEpisodes
    from torchrl_rerun.reading.learning import StepDataset
    from torchrl_rerun.reading.load import load
    from torchrl_rerun.reading.loaded_episode import LoadedEpisode
    from torchrl_rerun.reading.query import query, table_of
    from torchrl_rerun.recording.keep import Keep, KeepBest, KeepIf, KeepLast, KeepWorst
    from torchrl_rerun.rrd.listing import Listing, RecordedEpisode, list_episodes
    from torchrl_rerun.rrd.repair import Repaired, repair
    from torchrl_rerun.scenes.isaac_lab import IsaacLab
    from torchrl_rerun.scenes.mujoco import MuJoCo
    from torchrl_rerun.scenes.newton import Newton
    from torchrl_rerun.scenes.urdf import Urdf
    from torchrl_rerun.stored.replay import Replayed, replay
    from torchrl_rerun.stored.rewinding import rewind
    from torchrl_rerun.stored.rewound import RewindError
    from torchrl_rerun.stored.states import Divergence
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
    "Depth",
    "Divergence",
    "Encoded",
    "Encoder",
    "Episode",
    "FileInUseError",
    "Image",
    "IsaacLab",
    "Keep",
    "KeepBest",
    "KeepIf",
    "KeepLast",
    "KeepWorst",
    "Kind",
    "LeRobotDataset",
    "Leaf",
    "Listing",
    "LoadedEpisode",
    "LoadedEpisodes",
    "MuJoCo",
    "Newton",
    "Plot",
    "Points3D",
    "RecordedEpisode",
    "RecordingError",
    "Repaired",
    "Replayed",
    "RerunRecorder",
    "RewindError",
    "Scalars",
    "Segmentation",
    "State",
    "StepDataset",
    "Stream",
    "Tensor",
    "Text",
    "Transforms3D",
    "Urdf",
    "View",
    "archetype_columns",
    "browse",
    "exact_column",
    "list_episodes",
    "load",
    "open_runs",
    "query",
    "repair",
    "replay",
    "rewind",
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
    "Depth": "kinds.depth",
    "Divergence": "stored.states",
    "Encoded": "kinds.kind",
    "Encoder": "kinds.kind",
    "Episode": "kinds.episode",
    "FileInUseError": "errors",
    "Image": "kinds.image",
    "IsaacLab": "scenes.isaac_lab",
    "Keep": "recording.keep",
    "KeepBest": "recording.keep",
    "KeepIf": "recording.keep",
    "KeepLast": "recording.keep",
    "KeepWorst": "recording.keep",
    "Kind": "kinds.kind",
    "LeRobotDataset": "export.lerobot",
    "Leaf": "kinds.leaf",
    "Listing": "rrd.listing",
    "LoadedEpisode": "reading.loaded_episode",
    "LoadedEpisodes": "reading.episodes",
    "MuJoCo": "scenes.mujoco",
    "Newton": "scenes.newton",
    "Plot": "kinds.kind",
    "Points3D": "kinds.points3d",
    "RecordedEpisode": "rrd.listing",
    "RecordingError": "errors",
    "Repaired": "rrd.repair",
    "Replayed": "stored.replay",
    "RerunRecorder": "transform.recorder",
    "RewindError": "stored.rewound",
    "Scalars": "kinds.scalars",
    "Segmentation": "kinds.segmentation",
    "State": "kinds.state",
    "StepDataset": "reading.learning",
    "Stream": "kinds.streams",
    "Tensor": "kinds.tensor",
    "Text": "kinds.text",
    "Transforms3D": "kinds.transforms3d",
    "Urdf": "scenes.urdf",
    "View": "kinds.kind",
    "archetype_columns": "kinds.kind",
    "browse": "viewing.browse",
    "exact_column": "kinds.exact",
    "list_episodes": "rrd.listing",
    "load": "reading.load",
    "open_runs": "viewing.compare",
    "query": "reading.query",
    "repair": "rrd.repair",
    "replay": "stored.replay",
    "rewind": "stored.rewinding",
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
