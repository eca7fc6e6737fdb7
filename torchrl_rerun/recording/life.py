"""The life of a recording: it is closed with its recorder or its process, and abandoned if the user's options don't fit."""

from __future__ import annotations

import atexit
import contextlib
import multiprocessing.util
import threading
import weakref
from collections.abc import Callable, Iterator

from torchrl_rerun.errors import RecordingError, warn
from torchrl_rerun.recording.recording import Recording


def close_at_end(recorder: object, close: Callable[[], None]) -> None:
    """Have a function called if a recorder is gone or its process ends, so that nothing is lost without ``close()``.

    Args:
        recorder: the recorder.
        close: closes its recording, and raises nothing. It must not hold the recorder.
    """
    # Registered here, so that it is called before the end of Rerun, which was registered earlier: recording streams take
    # nothing after that. `weakref` may have been registered earlier still.
    atexit.register(weakref.finalize(recorder, close))
    # Processes that multiprocessing starts don't call the functions of weakref and atexit.
    multiprocessing.util.Finalize(recorder, close, exitpriority=100)


def close_quietly(recording: Recording, first: Callable[[], None] | None = None) -> None:
    """Close a recording; an error is a warning, for nobody is there to catch it.

    Args:
        recording: the recording.
        first: called before, on the thread that closes. Default: nothing is.
    """
    if recording.is_on_writers_thread:
        # Garbage was collected there. To close a recording is to wait for its writer.
        threading.Thread(target=close_quietly, args=(recording, first), name="torchrl_rerun-closing").start()
        return
    if first is not None:
        first()
    try:
        recording.close()
    except RecordingError as error:
        warn(str(error), RuntimeWarning)


@contextlib.contextmanager
def describing(recording: Recording) -> Iterator[None]:
    """Raise errors that the user can mend, and remove the file, which would be in the way of the next try.

    Args:
        recording: the recording, of which streams are described.
    """
    try:
        yield
    except (KeyError, ValueError, OSError):
        recording.abandon()
        raise
    except Exception as error:  # ours, not the user's: training goes on, and the next `dump()` raises it
        recording.fail(error)
