"""The states of a recording: open, closing, closed or failed."""

from __future__ import annotations

import gc
import os
import time
import weakref

import numpy as np
import pytest

from interrupts import interrupted
from torchrl_rerun import RecordingError
from torchrl_rerun.blocks.block import FrameValues
from torchrl_rerun.kinds.leaf import Leaf
from torchrl_rerun.kinds.schema import Moment, Source
from torchrl_rerun.recording.options import Options
from torchrl_rerun.recording.recording import Recording
from torchrl_rerun.recording.status import State
from torchrl_rerun.writing.file import FileTarget

X = Options().describe(Leaf(("x",), "float32", (3,)))


@pytest.fixture
def recording(path):
    made = Recording(FileTarget(path).open(), Source((2,)), Options(flush_seconds=0.1), run_id="run")
    made.describe(Moment.OBSERVED, [X])
    made.finish_describing()
    made.reset([np.zeros((2, 3), np.float32)])
    return made


def step(recording, value=1.0):
    recording.step(FrameValues([np.full((2, 3), value, np.float32)], [], []))


def test_a_recording_goes_from_open_to_closed(recording):
    step(recording)
    assert recording.status.state is State.OPEN
    recording.dump()
    assert recording.status.state is State.OPEN
    recording.close()
    assert recording.status.state is State.CLOSED
    assert recording.stats().frames_written == 2
    recording.close()
    assert recording.status.state is State.CLOSED


def test_a_closed_recording_keeps_no_blocks(recording):
    """References to a closed recording may live long, for example in a reference cycle until garbage is collected."""
    step(recording)
    blocks = [weakref.ref(block) for buffer in recording._buffers.in_use for block in buffer._blocks]
    assert blocks
    gc.disable()
    try:
        recording.close()
        assert not [each for each in blocks if each() is not None]
    finally:
        gc.enable()


def test_a_recording_that_was_interrupted_in_close_is_closing(recording):
    states, count, came = set(), 0, True
    while came and not recording.is_over:
        with interrupted(count, Recording.close) as came:
            recording.close()
        states.add(recording.status.state)
        count += 7
    recording.close()
    assert states >= {State.OPEN, State.CLOSING}
    assert recording.status.state is State.CLOSED


def test_a_recording_that_lost_its_file_is_failed(recording, path):
    path.unlink()
    step(recording)
    with pytest.raises(RecordingError, match="was removed"):
        recording.close()
    assert recording.status.state is State.FAILED
    assert recording.stats().frames_lost == 2
    with pytest.raises(RecordingError, match="was removed"):
        recording.dump()


def test_a_recording_without_frames_leaves_no_file(path):
    recording = Recording(FileTarget(path).open(), Source((2,)), Options(), run_id="run")
    recording.close()
    assert recording.status.state is State.CLOSED
    assert not path.exists()


def test_a_forked_process_does_not_change_the_recording_of_its_parent(recording):
    child = os.fork()
    if child == 0:
        os._exit(recording.status.state is not State.CLOSED)
    assert os.waitpid(child, 0)[1] == 0
    assert recording.status.state is State.OPEN
    recording.close()


def test_old_frames_are_written_without_a_later_frame(recording):
    step(recording)
    deadline = time.monotonic() + 30
    while recording.stats().frames_waiting:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    recording.close()


def test_an_error_of_the_clock_gives_a_warning_at_the_next_frame(recording):
    def fails(at_once):
        raise ZeroDivisionError

    recording.step(FrameValues([np.ones((2, 3), np.float32)], [], []), revise=fails)
    deadline = time.monotonic() + 30
    while recording.status.error is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    recording._last = None
    with pytest.warns(RuntimeWarning, match="failed"):
        step(recording)
    with pytest.raises(RecordingError, match="failed"):
        recording.close()
    assert recording.status.state is State.FAILED
