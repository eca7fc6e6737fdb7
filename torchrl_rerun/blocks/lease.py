"""Leases: a block in use, from its first frame until its rows are written."""

from __future__ import annotations

import threading

from torchrl_rerun.blocks.block import Block


class BlockLease:
    """A block in use, which passes from the environment's thread to the writer's and is released there.

    The environment's thread fills, seals and enqueues; the writer's thread alone releases. A lease that is enqueued twice,
    because Ctrl-C came before that was noted, is written once: the second time it is released already.

    Args:
        block: the block.
        first: the number of its first frame. Default: the block only gets its memory, and holds no frame.

    Attributes:
        block: the block.
        first: the number of its first frame, or None.
        frames: its frames ``[first, last)``; None unless the lease is sealed and holds frames.
        is_enqueued: whether it is in the writer's queue, or was.

    >>> lease = BlockLease(Block((), 1, 1))
    >>> lease.release(), lease.is_released
    (None, True)
    """

    def __init__(self, block: Block, first: int | None = None) -> None:
        self.block = block
        self.first = first
        self.frames: tuple[int, int] | None = None
        self.is_enqueued = False
        self._released = threading.Event()

    def seal(self) -> None:
        """Take no more frames."""
        if self.frames is None and self.first is not None:
            self.block.seal()
            self.frames = self.block.events.frames

    def mark_enqueued(self) -> None:
        """Note that it is in the writer's queue."""
        self.is_enqueued = True

    @property
    def is_released(self) -> bool:
        """Whether the block is free again."""
        return self._released.is_set()

    def release(self) -> None:
        """Empty the block and make it free again."""
        if not self.is_released:
            self.block.clear()
            self._released.set()
            if self.block.is_retired:
                self.block.free()

    def wait(self, seconds: float) -> bool:
        """Wait until the block is free again. Return whether it is."""
        return self._released.wait(seconds)
