"""Rows of an episode: they wait in memory until it is over, and become a chunk for each key."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rerun.chunk import Chunk

from torchrl_rerun.blocks.env_rows import EnvRows
from torchrl_rerun.kinds.episode import Episode, returns_of
from torchrl_rerun.kinds.keys import Key
from torchrl_rerun.kinds.objects import size_of
from torchrl_rerun.kinds.timelines import EPISODE_STEP, FRAME, LOG_TIME, REGROUPED, STEP
from torchrl_rerun.chunks.chunks import ChunkFactory
from torchrl_rerun.chunks.encoding import Encoding
from torchrl_rerun.writing.episode_folder import EpisodeFolder
from torchrl_rerun.chunks.losses import Losses

_Recorded = tuple[Key, bool]
"""A key, and whether its values vary in shape; they may begin to do so within an episode."""


class EpisodeRows:
    """The rows of an episode that are in memory.

    Attributes:
        env: environment index.
        episode: number of the episode.
        first: number of the run's frame that the first of them is at.
        bytes: their size.
        parts: the files of the rows before them.
    """

    def __init__(self, env: int, episode: int, fps: float | None, losses: Losses) -> None:
        self.env = env
        self.episode = episode
        self.parts: list[Path] = []
        self._suffix: str | None = None
        self._fps = fps
        self._losses = losses
        self._length = 0
        self._began: tuple[int, int] | None = None
        self._return_key: Key | None = None
        self._return = np.nan
        self.clear()

    def suffix(self, folder: EpisodeFolder, stem: str) -> str:
        """Return the suffix of the names of its files, chosen once: another episode may have the name without.

        Args:
            folder: the folder of the files.
            stem: the name without a suffix.
        """
        if self._suffix is None:
            self._suffix = folder.free_number(stem)
        return self._suffix

    def clear(self) -> None:
        """Forget the rows: they are written."""
        self._pieces: list[EnvRows] = []
        self.first = 0
        self.bytes = 0

    def add(self, piece: EnvRows, part: slice) -> None:
        """Copy a part of the rows of a block."""
        positions = piece.positions[part].copy(order="F")
        if not self.bytes:
            self.first = int(positions[0, FRAME])
        if self._began is None:
            self._began = int(positions[0, STEP] - positions[0, EPISODE_STEP]), int(positions[0, LOG_TIME])
        self.first = min(self.first, int(positions[0, FRAME]))
        self._length = max(self._length, int(positions[-1, EPISODE_STEP]))
        positions[:, FRAME] = positions[:, EPISODE_STEP] + positions[:, REGROUPED]
        values = [(stream, rows[part].copy()) for stream, rows in piece.values]
        for stream, rows in values:
            if stream.reward_key and self._return_key in (None, stream.key):  # the first of several rewards
                self._return_key, self._return = stream.key, float(returns_of(rows[-1:])[0])
        self._pieces.append(EnvRows(piece.env, positions, values))
        self.bytes += positions.nbytes + sum(_bytes(rows) for _, rows in values)

    def so_far(self) -> Episode:
        """Return the episode's properties as far as its rows tell them."""
        first_step, began = self._began or (0, 0)
        return Episode(
            self.env,
            self.episode,
            self._return,
            self._length,
            interrupted=True,
            first_step=first_step,
            start_time=datetime.fromtimestamp(began / 1e9, UTC),
        )

    def chunks(self) -> Iterator[Chunk]:
        """Return one chunk for each key and agent."""
        # A new encoder: each part of a video begins with a keyframe.
        pictures = Encoding(self._fps, self._losses, max_age=float("inf"))
        factory = ChunkFactory(self._fps, pictures, self._losses)
        for rows in _by_streams(self._pieces):
            yield from factory.chunks(rows, None)
        yield from pictures.flush()

    def remove_parts(self) -> None:
        """Remove the files that hold the rows before these."""
        for part in self.parts:
            part.unlink(missing_ok=True)
        self.parts.clear()


def _by_streams(pieces: Sequence[EnvRows]) -> Iterator[EnvRows]:
    """Yield the rows of an episode, joined over its pieces. Streams that have rows in the same pieces are yielded together."""
    numbers: dict[_Recorded, list[int]] = {}  # of the pieces with rows of a stream
    for number, piece in enumerate(pieces):
        for stream, _ in piece.values:
            numbers.setdefault((stream.key, stream.varies), []).append(number)
    together: dict[tuple[int, ...], list[_Recorded]] = {}
    for recorded, of_stream in numbers.items():
        together.setdefault(tuple(of_stream), []).append(recorded)
    for of_streams, streams in together.items():
        group = [pieces[number] for number in of_streams]
        found = [{(stream.key, stream.varies): (stream, rows) for stream, rows in piece.values} for piece in group]
        yield EnvRows(
            group[0].env,
            np.asfortranarray(np.concatenate([piece.positions for piece in group])),
            [(found[0][each][0], np.concatenate([rows[each][1] for rows in found])) for each in streams],
        )


def _bytes(rows: npt.NDArray[Any]) -> int:
    return sum(map(size_of, rows.reshape(-1))) if rows.dtype == object else rows.nbytes
