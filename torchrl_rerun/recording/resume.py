"""Resuming: where a run is, read from its recordings."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from torchrl_rerun.blocks.black_box import box_of
from torchrl_rerun.errors import FileInUseError
from torchrl_rerun.kinds.schema import Schema
from torchrl_rerun.recording.counters import Progress
from torchrl_rerun.rrd.file_part import FilePart
from torchrl_rerun.rrd.locks import is_locked
from torchrl_rerun.rrd.reader import parts_in, why_unreadable
from torchrl_rerun.rrd.repair import repair_file


@dataclass(frozen=True)
class Reached:
    """Where a run is.

    Attributes:
        steps: number of calls of ``env.step``.
        episodes: the number of the last episode of each environment, by its index.
        frames: number of frames of the recording that goes on.
        recording_id: id of the recording that goes on; None if another one begins.
    """

    steps: int
    episodes: Mapping[int, int]
    frames: int
    recording_id: str | None

    def progress(self, envs: Sequence[int]) -> Progress:
        """Return where the recorded environments are.

        Args:
            envs: the indices of these environments.
        """
        return Progress(self.steps, np.array([self.episodes.get(env, -1) for env in envs], np.int64), self.frames)


def reached(files: Iterable[Path], batch_size: tuple[int, ...]) -> Reached | None:
    """Return where a run is, from its files; None if they hold no frame.

    The recording of a whole run goes on if its batch size is the same. The file of a killed process is repaired if it has a black
    box, else it counts up to its last whole chunk. A damaged file is left out, with a warning that names it.

    Args:
        files: the files of the run.
        batch_size: the batch size of the environments.

    Raises:
        FileInUseError: another recorder is writing one of the files.
    """
    found: list[tuple[FilePart, Schema]] = []
    for file in files:
        if is_locked(file):
            raise FileInUseError(
                f"{file} is being written by another recorder: a run goes on when the one before has ended"
            )
        try:
            if box_of(file).is_dir():
                repair_file(file)
            found += [(part, schema) for part in parts_in(file) if (schema := part.schema) is not None]
        except ValueError as error:
            warnings.warn(f"the run goes on without {why_unreadable(file) or error}", RuntimeWarning, stacklevel=2)
    if not any(part.steps for part, _ in found):
        return None
    episodes: dict[int, int] = {}
    for part, schema in found:
        for env in schema.envs:
            episodes[env] = max(episodes.get(env, -1), _last_episode(part, schema, env))
    steps = max(last for part, _ in found for _, last in part.steps.values())
    latest, schema = max(found, key=lambda each: each[0].began)
    if schema.split != "run" or schema.source.batch_size != batch_size:
        return Reached(steps, episodes, 0, None)
    recording_id = latest.recording_id
    frames = 1 + max(part.last_frame for part, _ in found if part.recording_id == recording_id)
    return Reached(steps, episodes, frames, recording_id)


def _last_episode(part: FilePart, schema: Schema, env: int) -> int:
    """Return the number of the last episode of an environment in a file; -1 if there is none."""
    paths = {
        schema.path_of(stream, env, agent) for stream, _ in schema.described for agent in range(stream.agent_count)
    }
    return max(
        (part.index.span_of(path, "episode")[1] for path in part.index.recorded_paths if path in paths), default=-1
    )
