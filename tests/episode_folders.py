"""Folders of episodes, made of Rerun's own chunks."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import rerun as rr
from rerun.chunk import Chunk, LazyChunkStream

from torchrl_rerun import Episode
from torchrl_rerun.kinds.schema import Source, episode_chunk, info_chunk, property_chunk

BEGINNING = datetime(2026, 11, 21, 12, tzinfo=UTC)


def episode(number, value=0.0, length=20, *, env=0, **known) -> Episode:
    began = BEGINNING + timedelta(seconds=2 * number + env)
    first_step = known.pop("first_step", number * 20)
    return Episode(env, number, value, length, first_step=first_step, start_time=began, **known)


def write_episode(folder: Path, episode: Episode, *, suffix="", run="run") -> Path:
    """Write a file like the recorder's: properties, then rows of ``/reward`` with the values 0, 1, ... for each step."""
    folder.mkdir(parents=True, exist_ok=True)
    stem = f"env_{episode.env}_episode_{episode.episode:06}"
    path = folder / f"{stem}{suffix}.rrd"
    began = 0 if episode.start_time is None else round(episode.start_time.timestamp() * 1e9)
    steps = np.arange(episode.length)
    chunks = [
        info_chunk(path.stem, began),
        property_chunk(Source((2,), "CartPole-v1"), [episode.env], [], split="episode"),
        episode_chunk(episode),
        Chunk.from_columns(
            "/reward", [rr.TimeColumn("frame", sequence=steps + 1)], rr.Scalars.columns(scalars=steps.astype(float))
        ),
    ]
    write_chunks(path, chunks, f"{stem}_{run}")
    return path


def write_run(path: Path) -> Path:
    """Write a whole run into one file."""
    write_chunks(path, [property_chunk(Source((2,), "CartPole-v1"), [0, 1], [])], "run")
    return path


def write_chunks(path: Path, chunks: list[Chunk], recording_id: str) -> None:
    LazyChunkStream.from_iter(chunks).write_rrd(path, application_id="CartPole-v1", recording_id=recording_id)
