"""Opening: open a recording at the first frame, and the next one after it was closed or the process forked."""

from __future__ import annotations

import multiprocessing.util
import os
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from torchrl_rerun.errors import warn
from torchrl_rerun.recording.recording import Recording
from torchrl_rerun.recording.session import Facts, Session, open_recording
from torchrl_rerun.writing.rerun_streams import OutOfReachError


class Opening:
    """Open recordings, one after the other.

    Args:
        session: the options of the recorder, and what its sink stands for.
        close: closes the recording in progress without raising errors.
    """

    def __init__(self, session: Session, close: Callable[[], None]) -> None:
        self._session = session
        self._close = close
        self._process = os.getpid()
        self._is_out_of_reach = False  # a recording stream can't be had in this process
        self._has_warned_of_emptiness = False

    def open(
        self,
        before: Recording | None,
        facts: Callable[[], Facts],
        batch_size: tuple[int, ...],
        mask: npt.NDArray[np.bool_] | None,
        *,
        is_step: bool,
    ) -> Recording | None:
        """Return a new recording for a frame; None if the frame can't be recorded.

        A frame can't be recorded in these cases:

        - There are no environments.
        - The recording stream is out of reach in this process.
        - The recording before can't go on, or would have no row of the frame. It counts the frame.

        Args:
            before: the recording before; None: this is the first one.
            facts: returns the facts about the environments.
            batch_size: the batch size of the environments.
            mask: environments that were reset or stepped in the frame, ``[envs]``; None: all.
            is_step: whether the frame is a step.

        Raises:
            FileExistsError: the file exists.
            OSError: the file can't be made, and nothing was recorded yet.
            IndexError: ``logged_envs`` is out of range.
            ConnectionError: there is no viewer, or no recording stream.
        """
        if self._is_out_of_reach:
            return None
        if not all(batch_size):
            self._warn_of_emptiness(batch_size)
            return None
        ended = before if before is not None and before.process == os.getpid() else None
        if ended is not None and not ended.is_over:  # Ctrl-C came while it was being closed
            self._close()
        if ended is not None and (not ended.status.missed.may_go_on or ended.takes_nothing_of(batch_size, mask)):
            ended.miss(batch_size, mask, is_step=is_step)
            return None
        try:
            recording = open_recording(self._session, facts(), ended)
        except OutOfReachError as error:
            self._is_out_of_reach = True
            warn(f"nothing is recorded here: {error}")
            return None
        except OSError as error:
            if ended is None:
                raise  # nothing was recorded yet, and the user can mend it
            ended.status.missed.fail_to_go_on(error)
            ended.miss(batch_size, mask, is_step=is_step)
            return None
        if self._process != os.getpid():
            # A process that multiprocessing forks forgets what was to be done at the end of its parent.
            self._process = os.getpid()
            multiprocessing.util.Finalize(None, self._close, exitpriority=100)
        return recording

    def _warn_of_emptiness(self, batch_size: tuple[int, ...]) -> None:
        if not self._has_warned_of_emptiness:
            self._has_warned_of_emptiness = True
            warn(f"nothing is recorded: the batch size {batch_size} means no environment")
