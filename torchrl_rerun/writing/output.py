"""Outputs: what makes chunks of blocks, on the writer's thread."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

from rerun.chunk import Chunk

from torchrl_rerun.blocks.block import Block
from torchrl_rerun.kinds.schema import Described, Source
from torchrl_rerun.kinds.streams import Key, Stream


class BlockOutput(Protocol):
    """Makes chunks of blocks."""

    def chunks(self, block: Block) -> Iterator[Chunk]:
        """Return the chunks that are written of a block at once."""


class Output(BlockOutput, Protocol):
    """Makes chunks of what is recorded, some of them later than others."""

    def describe(
        self, described: Sequence[Described], new: Sequence[Stream], statistics: Sequence[Key], ends: Sequence[Key]
    ) -> Iterator[Chunk]:
        """Return the chunks of what doesn't change over time.

        Args:
            described: all that is recorded, as far as it is known by now.
            new: the streams that are new in it.
            statistics: the keys of which there are statistics over all environments.
            ends: the flags that end episodes.
        """

    def grow(self, source: Source, envs: Sequence[int]) -> None:
        """Write more environments from now on; no block may be on its way.

        Args:
            source: the environments.
            envs: the environment index of each row of the blocks to come.
        """

    def due(self) -> Iterator[Chunk]:
        """Return the chunks of what has waited long enough, or is enough for a chunk."""

    def rest(self, complete: int) -> Iterator[Chunk]:
        """Return the chunks of all that waits.

        Args:
            complete: before which frame everything has come. After Ctrl-C more may come before this is gone through.
        """

    @property
    def waiting_bytes(self) -> int:
        """Bytes of what waits."""

    @property
    def oldest_waiting(self) -> int | None:
        """Number of the first frame of which something waits; None if nothing does."""
