"""Scenes: where the bodies of a simulation were, worked out of what was recorded."""

from __future__ import annotations

from collections.abc import Iterable

from torchrl_rerun.kinds.assets import is_known
from torchrl_rerun.kinds.keys import Key, name_of
from torchrl_rerun.kinds.kind import Kind
from torchrl_rerun.kinds.shapes3d import Poses
from torchrl_rerun.kinds.streams import Stream
from torchrl_rerun.reading.history import History
from torchrl_rerun.rrd.asset_files import remember_assets, remember_assets_beside
from torchrl_rerun.rrd.file_part import FilePart
from torchrl_rerun.rrd.frame_codes import Span
from torchrl_rerun.rrd.reader import parts_in


def poses_in(history: History, span: Span, key: Key | None) -> Poses:
    """Return the poses of a scene.

    Args:
        history: the environment.
        span: the frames.
        key: the key of the scene. Default: the only one.

    Raises:
        KeyError: there is no such scene, or its model is gone.
        ValueError: there are several, or the model can't be read.
    """
    stream, kind = _scene(history, key)
    if not all(map(is_known, kind.assets())):
        remember_assets_of(part for part in history.recording.parts if isinstance(part, FilePart))
    rows = history.rows(stream, span).values
    try:
        return kind.poses(stream, rows)
    except KeyError as error:
        raise KeyError(
            f"the model of {name_of(stream.key)} is not in the recording, nor in the folder of it: it can't be drawn again"
        ) from error


def remember_assets_of(parts: Iterable[FilePart]) -> None:
    """Keep the assets of recordings in this process: those in their files, and in the folders of these."""
    parts = list(parts)
    remember_assets(parts)
    for folder in {part.file.parent for part in parts}:
        remember_assets_beside(folder, parts_in)


def _scene(history: History, key: Key | None) -> tuple[Stream, Kind]:
    described = history.described(None if key is None else [key])
    scenes = [(stream, kind) for stream, _ in described for _, kind in stream.drawing if kind.is_scene]
    if not scenes:
        what = "the recording" if key is None else name_of(key)
        raise KeyError(f"{what} has no scene: record with scene=True")
    if len(scenes) > 1:
        names = ", ".join(name_of(stream.key) for stream, _ in scenes)
        raise ValueError(f"there are several scenes, {names}: name one, poses('scene')")
    return scenes[0]
