"""Resuming: where a run is, by what was recorded of it."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from torchrl_rerun.chunks import FilePart, parts_in
from torchrl_rerun.episodes import Progress
from torchrl_rerun.finding import why_unreadable
from torchrl_rerun.schema import Schema
from torchrl_rerun.sinks import FileInUseError, is_locked
from torchrl_rerun.streams import entity_path


def progress_of(files: Iterable[Path], envs: Sequence[int]) -> Progress | None:
    """Return where the run is that some files are of; None if they hold nothing of one.

    A file that a killed process left counts up to where it ends. A damaged one is left out, with a warning that names it.

    Args:
        files: the files.
        envs: the indices of the environments that are recorded.

    Raises:
        FileInUseError: another recorder is writing one of them.
    """
    steps, episodes = -1, dict.fromkeys(envs, -1)
    for file in files:
        if is_locked(file):
            raise FileInUseError(
                f"{file} is being written by another recorder: a run goes on when the one before has ended"
            )
        try:
            parts = parts_in(file)
        except ValueError as error:
            warnings.warn(f"the run goes on without {why_unreadable(file) or error}", RuntimeWarning, stacklevel=2)
            continue
        for part in parts:
            schema = part.contents.schema
            if schema is not None:
                steps = max([steps, *(last for _, last in part.steps.values())])
                for env in episodes.keys() & set(schema.envs):
                    episodes[env] = max(episodes[env], _last_episode(part, schema, env))
    return None if steps < 0 else Progress(steps, np.array([episodes[env] for env in envs], np.int64))


def _last_episode(part: FilePart, schema: Schema, env: int) -> int:
    """Return the number of the last episode of an environment in a file; -1 if there is none."""
    prefix = None if schema.split == "episode" else env
    paths = [entity_path(stream, prefix, lane) for stream, _ in schema.described for lane in range(stream.lanes)]
    return max((place.last >> 32 for path in paths for place in part.places.get(path, ())), default=-1)
