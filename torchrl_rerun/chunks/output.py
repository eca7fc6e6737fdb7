"""Outputs: they make chunks of blocks, on the writer's thread."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

import rerun.blueprint as rrb
from rerun.chunk import Chunk

from torchrl_rerun.blocks.block import Block
from torchrl_rerun.kinds.keys import Key
from torchrl_rerun.kinds.schema import Source, TimedStream
from torchrl_rerun.kinds.streams import Stream


class BlockOutput(Protocol):
    """Makes chunks of blocks."""

    def chunks(self, block: Block) -> Iterable[Chunk]:
        """Return the chunks that are written of a block at once."""


class Output(BlockOutput, Protocol):
    """Makes chunks of blocks and descriptions. Rows may wait in it until they are enough for a chunk."""

    def describe(
        self, described: Sequence[TimedStream], new: Sequence[Stream], statistics: Sequence[Key], ends: Sequence[Key]
    ) -> Iterable[Chunk]:
        """Return the chunks of what doesn't change over time.

        Args:
            described: all streams that are recorded, as far as they are known by now.
            new: the streams that are new among these.
            statistics: the keys of which there are statistics over all environments.
            ends: the flags that end episodes.
        """

    def lay_out(self, layout: rrb.Blueprint) -> None:
        """Note the layout that the viewer opens recordings with that are finished before the run is."""

    def grow(self, source: Source, envs: Sequence[int]) -> None:
        """Write more environments from now on; no block may be on its way.

        Args:
            source: the environments.
            envs: the environment index of each recorded environment.
        """

    def due(self) -> Iterable[Chunk]:
        """Return chunks of the rows that have waited long enough, or are enough for a chunk."""

    def flush(self, complete: int) -> Iterable[Chunk]:
        """Return chunks of all rows that wait.

        Args:
            complete: the frame before which all rows have come. After Ctrl-C more may come until this is gone through.
        """

    @property
    def waiting_bytes(self) -> int:
        """Bytes of the rows that wait."""

    @property
    def oldest_waiting(self) -> int | None:
        """Number of the first frame of which a row waits; None if none does."""
