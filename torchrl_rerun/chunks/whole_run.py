"""Whole runs: the output that puts all environments into one recording."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence

import rerun.blueprint as rrb
from rerun.chunk import Chunk

from torchrl_rerun.blocks.block import Block
from torchrl_rerun.blocks.env_rows import EnvRows, rows_by_env
from torchrl_rerun.blocks.memory import MaxAge, Memory
from torchrl_rerun.blocks.returns import RunningReturns
from torchrl_rerun.chunks.chunks import ChunkFactory, assets_of, static_chunks
from torchrl_rerun.chunks.encoding import Encoding
from torchrl_rerun.chunks.losses import Losses
from torchrl_rerun.kinds.assets import asset_chunks
from torchrl_rerun.kinds.keys import Key
from torchrl_rerun.kinds.schema import Source, Split, TimedStream, property_chunk
from torchrl_rerun.kinds.streams import Stream
from torchrl_rerun.kinds.timelines import FRAME


class WholeRun:
    """Makes chunks of all environments for one recording, each environment below ``/env_{i}``.

    Args:
        source: the environments.
        envs: the environment index of each recorded environment.
        returns: the running returns so far.
        split: whether the recording is of a run, or of one dump.
        max_age: how long an encoded image waits before it is due.
        first_frame: number of the frame that is 0 in the recording.
        memory: where the values that wait are copied to. Default: nowhere.

    Attributes:
        returns: the running returns so far.
    """

    def __init__(
        self,
        source: Source,
        envs: Sequence[int],
        returns: RunningReturns,
        *,
        split: Split,
        max_age: MaxAge,
        first_frame: int = 0,
        memory: Memory | None = None,
    ) -> None:
        self._source = source
        self._envs = list(envs)
        self.returns = returns
        self._split = split
        self._first_frame = first_frame
        losses = Losses()
        self._encoding = Encoding(source.fps, losses, max_age=max_age, memory=memory)
        self._factory = ChunkFactory(source.fps, self._encoding, losses)

    def lay_out(self, layout: rrb.Blueprint) -> None:
        """Do nothing: the recording gets its layout when it is finished."""

    def grow(self, source: Source, envs: Sequence[int]) -> None:
        """Write more environments from now on; no block may be on its way.

        Args:
            source: the environments.
            envs: the environment index of each recorded environment.
        """
        self._source, self._envs = source, list(envs)

    def describe(
        self, described: Sequence[TimedStream], new: Sequence[Stream], statistics: Sequence[Key], ends: Sequence[Key]
    ) -> Iterator[Chunk]:
        """Return the schema, and the static chunks of new streams.

        Args:
            described: all streams that are recorded, as far as they are known by now.
            new: the streams that are new among these.
            statistics: the keys of which there are statistics over all environments.
            ends: the flags that end episodes.
        """
        yield property_chunk(self._source, self._envs, described, statistics, ends, split=self._split)
        yield from static_chunks(new, self._envs)
        yield from asset_chunks(assets_of(new))

    def chunks(self, block: Block) -> Iterator[Chunk]:
        """Return the chunks of a block, those of encoded images excepted."""
        yield from self.chunks_of(rows_by_env(block, len(self._envs), self.returns))

    def chunks_of(self, rows: Iterable[EnvRows]) -> Iterator[Chunk]:
        """Return the chunks of rows of environments, those of encoded images excepted."""
        for piece in rows:
            yield from self._factory.chunks(self._numbered(piece), self._envs[piece.env])
        self._encoding.finish()  # the images that are being encoded are views of the block
        self._encoding.keep()

    def _numbered(self, piece: EnvRows) -> EnvRows:
        """Return rows with the numbers that their frames have in the recording."""
        if not self._first_frame:
            return piece
        positions = piece.positions.copy(order="F")
        positions[:, FRAME] -= self._first_frame
        return piece._replace(positions=positions)

    def due(self) -> Iterator[Chunk]:
        """Return chunks of the images that have waited long enough, or are enough for a chunk."""
        yield from self._encoding.due(time.time_ns())

    def flush(self, complete: int) -> Iterator[Chunk]:
        """Return the chunks of all encoded images that wait.

        Args:
            complete: the frame before which all rows have come.
        """
        del complete
        yield from self._encoding.flush()

    @property
    def waiting_bytes(self) -> int:
        """Bytes of the encoded images that wait."""
        return self._encoding.waiting_bytes

    @property
    def oldest_waiting(self) -> int | None:
        """Number of the first frame of which an encoded image waits; None if none does."""
        oldest = self._encoding.oldest_waiting
        return None if oldest is None else oldest + self._first_frame
