"""What is left behind in a black box: the chunks of all rows that aren't in the file yet.

The rows go through the same code that would have written them. A process may be killed when some chunks of a block are
in the file, and others aren't: of each entity the rows of those frames are left out that the file has.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from rerun.chunk import Chunk

from torchrl_rerun.blocks.black_box import BATCH, RECORDED, RETURNS, Snapshot
from torchrl_rerun.blocks.block import Block
from torchrl_rerun.blocks.env_rows import EnvRows, rows_by_env
from torchrl_rerun.blocks.returns import RunningReturns
from torchrl_rerun.chunks.encoding import ENCODED
from torchrl_rerun.chunks.statistics import BatchStatistics
from torchrl_rerun.chunks.whole_run import WholeRun
from torchrl_rerun.kinds.schema import Schema, info_chunk
from torchrl_rerun.kinds.streams import entity_path
from torchrl_rerun.kinds.timelines import FRAME, TIMELINES

_FRAME = TIMELINES[FRAME]

Frames = npt.NDArray[np.int64]
"""Numbers of frames."""


def rest_of_run(box: Snapshot, written: Callable[[str, int], Frames], schema: str | None) -> Iterator[pa.RecordBatch]:
    """Yield the chunks of a whole run that its file lacks.

    Args:
        box: what is in its black box.
        written: returns the frames, from some number on, of which the file has rows at an entity.
        schema: the description in the file; None: it has none.
    """
    said = box.said
    described = Schema.from_fields(said["schema"])
    source = replace(described.source, first_env=said["first_env"])
    rest = _Rest(written, said["first_frame"])
    run = WholeRun(
        source,
        described.envs,
        _returns_before(box, RECORDED),
        split=described.split,
        max_age=float("inf"),
        first_frame=said["first_frame"],
    )
    if schema is None:
        yield info_chunk(said["name"], said["start_time"]).to_record_batch()
    if schema is None or json.loads(schema) != said["schema"]:
        streams = [stream for stream, _ in described.described]
        for chunk in run.describe(described.described, streams, described.statistics, described.ends):
            yield chunk.to_record_batch()
    for name, records in box.journals.items():
        if name.startswith(ENCODED):
            for record in records:
                yield from rest.of_chunk(pa.ipc.open_stream(record.arrays["chunk"]).read_next_batch())
    statistics = BatchStatistics(source.fps, _returns_before(box, BATCH))
    chunks: list[Iterable[Chunk]] = []
    for role, block in box.blocks:
        if role == BATCH:
            chunks.append(statistics.chunks(block))
        else:
            rows = rows_by_env(block, block.envs, run.returns)
            chunks.append(run.chunks_of(part for piece in rows for part in rest.of_rows(piece, described.envs)))
    for some in (*chunks, run.flush(0)):
        for chunk in some:
            yield from rest.of_chunk(chunk.to_record_batch())


class _Rest:
    """Leaves out the rows that are there already.

    Args:
        written: returns the frames of which the file has rows.
        first_frame: number of the frame that is 0 in the file.
    """

    def __init__(self, written: Callable[[str, int], Frames], first_frame: int) -> None:
        self._written = written
        self._first_frame = first_frame
        self._found: dict[str, Frames] = {}

    def _there(self, path: str, first: int) -> Frames:
        if path not in self._found:
            self._found[path] = self._written(path, first)
        return self._found[path]

    def of_rows(self, piece: EnvRows, envs: tuple[int, ...]) -> Iterator[EnvRows]:
        """Yield the rows that aren't there, together those of streams that lack the same ones.

        Args:
            piece: rows of an environment.
            envs: the indices of all environments.
        """
        frames = piece.positions[:, FRAME] - self._first_frame
        parts: dict[bytes, EnvRows] = {}
        for stream, rows in piece.values:
            lacking = np.zeros(len(frames), np.bool_)
            for agent in range(stream.agent_count):
                path = entity_path(stream, envs[piece.env], agent)
                lacking |= ~np.isin(frames, self._there(path, int(frames.min())))
            if lacking.any():
                part = parts.setdefault(
                    lacking.tobytes(), EnvRows(piece.env, np.asfortranarray(piece.positions[lacking]), [])
                )
                part.values.append((stream, rows[lacking]))
        yield from parts.values()

    def of_chunk(self, batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
        """Yield a chunk without the rows that are there; nothing if all are. They are there from then on."""
        if _FRAME not in batch.schema.names or not len(batch):
            yield batch
            return
        path = batch.schema.metadata[b"rerun:entity_path"].decode()
        frames = batch.column(_FRAME).cast(pa.int64()).to_numpy()
        there = self._there(path, int(frames.min()))
        lacking = ~np.isin(frames, there)
        if lacking.any():
            self._found[path] = np.concatenate([there, frames[lacking]])
            yield batch if lacking.all() else batch.filter(pa.array(lacking))


def _returns_before(box: Snapshot, role: str) -> RunningReturns:
    """Return the running returns before the first block of a role."""
    blocks = [block for each, block in box.blocks if each == role]
    envs = max((block.envs for block in blocks), default=0)
    summing = [block for block in blocks if any(stream.reward_key for group in block.groups for stream in group.streams)]
    kept = [each for each in box.others if each.about["role"] == RETURNS and each.about["of"] == role]
    if not (summing and kept):
        return RunningReturns(envs)
    return RunningReturns.kept(envs, kept[-1].about, kept[-1].arrays, summing[0].lease)
