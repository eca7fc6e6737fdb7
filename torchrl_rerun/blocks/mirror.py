"""Copies of values from accelerators into the black box, made when they have arrived, on a thread of their own.

On the environment's thread they would have to be waited for. On the writer's thread they would come after blocks that are being
compressed.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence

from torchrl_rerun.blocks.devices import Landing

PATIENCE = 5.0
"""Seconds to wait for the thread's end. It waits for an accelerator, which may hang."""


class Mirror:
    """A thread that copies values into memory that outlives the process, frame by frame.

    Args:
        publish: called with the number of frames that are there whole, when there is one more.
        fail: called with the error that ends the copies.
    """

    def __init__(self, publish: Callable[[int], None], fail: Callable[[Exception], None]) -> None:
        self._publish = publish
        self._fail = fail
        self._frames: queue.SimpleQueue[tuple[int, Sequence[Landing], bool] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="torchrl_rerun mirror", daemon=True)
        self._thread.start()

    def put(self, moment: int, landings: Sequence[Landing], *, is_late: bool = False) -> None:
        """Enqueue a frame.

        Args:
            moment: the number of frames with this one.
            landings: values on their way.
            is_late: whether they take the place of other values of the last frame. Default: False.
        """
        self._frames.put((moment, landings, is_late))

    def close(self) -> None:
        """Copy the frames that wait, and end the thread."""
        self._frames.put(None)
        self._thread.join(PATIENCE)

    def _run(self) -> None:
        try:
            while (frame := self._frames.get()) is not None:
                moment, landings, is_late = frame
                for landing in landings:
                    landing.arrival.synchronize()
                if is_late:  # a frame of which half is amended never happened
                    self._publish(moment - 1)
                for landing in landings:
                    for target, source, slot in landing.copies:
                        target[slot] = source[slot]
                self._publish(moment)
        except Exception as error:  # of the accelerator
            self._fail(error)
