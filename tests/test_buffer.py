"""Blocks: bounded, handed to the writer when full or old, and waited for if the writer is slow."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from interrupts import interrupted
from servers import PATIENCE
from torchrl_rerun.blocks.block import Block, FrameValues, StreamGroup
from torchrl_rerun.blocks.buffer import BLOCKS, Buffer
from torchrl_rerun.blocks.events import NO_ENVS
from torchrl_rerun.blocks.lease import BlockLease
from torchrl_rerun.blocks.memory import MaxAge
from torchrl_rerun.kinds.scalars import Scalars
from torchrl_rerun.kinds.schema import Moment
from torchrl_rerun.kinds.streams import Stream
from torchrl_rerun.kinds.tensor import Tensor
from torchrl_rerun.recording.counters import Counters

SMALL = Stream(("x",), Scalars(), "float32", (10,))
LARGE = Stream(("x",), Tensor(), "float32", (2000,))
ENVS = 3


class Driver:
    """Fill a buffer with frames whose values are their numbers, and keep the leases of its blocks."""

    def __init__(self, capacity, *, stream=SMALL, is_writer_there=lambda: True, max_age=1e9, put=None):
        self.stream = stream
        self.leases = []
        self.episodes = Counters(ENVS)
        self.buffer = Buffer(ENVS, capacity, max_age=MaxAge.always(max_age))
        self.buffer.store((StreamGroup(Moment.OBSERVED, (stream,), (0,)),))
        self._put = put or self.leases.append
        self._is_writer_there = is_writer_there

    @property
    def handed(self):
        return [lease.block for lease in self.leases]

    def add(self, value, envs=None, now=None):
        """Add a frame. Return the number of waits for a lease, or None if the frame was lost."""
        event = self.episodes.event(envs, time.time_ns() if now is None else now, is_step=value > 0)
        values = np.full((ENVS, *self.stream.shape), value, np.float32)
        waited = 0
        while (lease := self.buffer.add(event, FrameValues([values]), self.episodes.positions)) is not None:
            if not lease.is_enqueued:
                self.enqueue(lease)
            elif not self._is_writer_there():
                return None
            else:
                waited += 1
                lease.wait(5)
        self.episodes.apply(event)
        return waited

    def flush(self):
        for lease in self.buffer.seal():
            self.enqueue(lease)

    def enqueue(self, lease):
        self._put(lease)
        lease.mark_enqueued()


def values_of(block):
    """Return the values of a block as numbers, in place of chunks."""
    yield from block.values[0][0].by_frame[: len(block.events), 0].max(axis=-1).tolist()


def bytes_of(block):
    return sum(values.array.nbytes for group in block.values for values in group)


@pytest.mark.parametrize("stream", [SMALL, LARGE])
@pytest.mark.parametrize("capacity", [1_000, 10_000, 1_000_000])
def test_both_blocks_together_keep_to_the_bound(capacity, stream):
    driver = Driver(capacity, stream=stream)
    driver.add(0)
    driver.flush()
    one_frame = ENVS * stream.row_bytes
    assert bytes_of(driver.handed[0]) * BLOCKS <= max(capacity, one_frame * BLOCKS)


def test_a_block_holds_at_least_one_frame():
    driver = Driver(1)
    driver.add(0)
    driver.add(1)
    assert [len(block.events) for block in driver.handed] == [1]


@pytest.mark.parametrize("stream", [SMALL, LARGE])
def test_rows_equal_added_values(stream):
    driver = Driver(1_000_000, stream=stream)
    for value, envs in enumerate([None, np.array([0, 2]), None, np.array([1]), None]):
        driver.add(value, envs)
    driver.flush()
    (block,) = driver.handed
    present = block.presence(0)
    kept = [block.values[0][0].rows(env, np.flatnonzero(present[:, env]))[:, 0].tolist() for env in range(ENVS)]
    assert kept == [[0, 1, 2, 4], [0, 2, 3, 4], [0, 1, 2, 4]]


def test_a_block_holds_the_positions_of_environments_before_it():
    driver = Driver(1)
    driver.add(0, now=100)
    driver.add(1, np.array([1]), now=200)
    driver.leases[0].release()
    driver.add(2, now=300)
    driver.flush()
    assert driver.handed[1].start.tolist() == [[0, 0, 0, 0, 100, 0]] * 3
    # the frame of the partial step was of environment 1 alone
    assert driver.handed[2].start.tolist() == [[0, 0, 0, 0, 100, 0], [1, 1, 0, 1, 200, 0], [0, 0, 0, 0, 100, 0]]


def test_a_track_without_values_gets_no_rows():
    driver = Driver(1_000_000)
    driver.buffer.store((*driver.buffer.groups, StreamGroup(Moment.STEPPED, (SMALL,), (0,))))
    driver.add(0)
    driver.add(1)
    driver.flush()
    assert [each.tolist() for each in driver.handed[-1].event_of_slot] == [[0, 1], []]


def test_the_environment_waits_for_a_slow_writer():
    driver = Driver(1)
    driver.add(0)
    driver.add(1)
    waited = threading.Event()
    third = threading.Thread(target=lambda: (driver.add(2), waited.set()), daemon=True)
    third.start()
    assert not waited.wait(0.3)
    driver.leases[0].release()
    assert waited.wait(PATIENCE)
    assert driver.buffer.oldest_waiting() == 1


def test_a_frame_without_a_free_block_names_the_segment_to_wait_for():
    driver = Driver(1, is_writer_there=lambda: False)
    driver.add(0)
    driver.add(1)
    assert driver.add(2) is None
    assert driver.buffer.oldest_waiting() == 0  # no row of it was written
    driver.leases[0].release()
    assert driver.add(2) == 0


def test_a_frame_waits_for_memory_in_preparation_and_not_for_a_frame():
    driver = Driver(1)
    driver.add(0)
    prepared = driver.buffer.prepare()
    assert driver.buffer.prepare() is None
    assert driver.buffer.oldest_waiting() == 0
    threading.Timer(0.05, prepared.release).start()
    assert driver.add(1) == 1
    assert [lease.frames for lease in driver.leases] == [None, (0, 1)]


def test_an_old_block_is_handed_over_before_it_is_full():
    driver = Driver(1_000_000, max_age=0.05)
    driver.add(0, now=0)
    driver.add(1, now=10_000_000)
    assert driver.handed == []
    driver.add(2, now=60_000_000)
    assert [len(block.events) for block in driver.handed] == [2]


def test_an_old_block_is_kept_while_the_writer_is_behind():
    driver = Driver(1_000_000, max_age=0.05)
    for i in range(5):
        driver.add(i, now=60_000_000 * i)
    assert [len(block.events) for block in driver.handed] == [1]


def test_a_cleared_block_can_be_filled_again():
    block = Block((StreamGroup(Moment.OBSERVED, (SMALL,), (0,)),), ENVS, 2)
    episodes = Counters(ENVS)
    for _ in range(2):
        while block.has_room():
            event = episodes.event(None, 0, is_step=False)
            block.add(event, FrameValues([np.zeros((ENVS, 10), np.float32)]))
        assert len(block.events) == 2
        assert block.bytes == 2 * ENVS * SMALL.row_bytes
        block.clear()
    assert block.bytes == 0


@pytest.mark.parametrize("is_writer_fast", [True, False])
@pytest.mark.parametrize("call", ["flush", "add"])
def test_ctrl_c_while_a_block_is_handed_over_loses_nothing_and_writes_nothing_twice(call, is_writer_fast):
    written, jobs = [], []

    def put(lease):
        jobs.append(lease)
        if is_writer_fast:
            write()

    def write(most=10):
        for lease in jobs[:most]:
            if not lease.is_released:
                written.extend(values_of(lease.block))
            lease.release()
        del jobs[:most]

    functions = (Buffer.seal, Buffer._start_block, Buffer._free_block, BlockLease.seal, Driver.enqueue, Driver.flush)
    for count in range(1000):
        written.clear()
        driver = Driver(ENVS * SMALL.row_bytes * 2 * BLOCKS, put=put)  # two frames a block
        driver.add(0)
        driver.add(1)
        with interrupted(count, *functions) as came:
            driver.flush() if call == "flush" else driver.add(2)
        for value, most in ((3, 1), (4, 10), (5, 10)):  # a block that was handed over twice is written late
            driver.add(value)
            driver.flush()
            write(most)
        assert [value for value in written if value != 2] == [0, 1, 3, 4, 5]  # the interrupt came during frame 2
        assert written == sorted(written)
        assert driver.buffer.oldest_waiting() is None
        driver.add(6)
        driver.flush()
        assert driver.add(7) == 0  # into the other block: no frame was lost
        driver.flush()
        write()
        if not came:
            break
    assert count > 10


def test_the_action_of_a_step_without_a_frame_waits_as_a_row_of_the_frame_before_it():
    buffer = Buffer(ENVS, 1 << 20, max_age=MaxAge.always(1e9))
    buffer.store((StreamGroup(Moment.ACTED, (SMALL,), (0,)),))
    counters = Counters(ENVS)
    values = FrameValues([np.zeros((ENVS, 10), np.float32)], [], [np.zeros((ENVS, 10), np.float32)])
    counters.apply(counters.event(None, 0, is_step=False))
    event = counters.event(None, 1, is_step=True, picked=(None, NO_ENVS))
    assert buffer.add(event, values, counters.positions) is None
    assert event.frame == 1
    assert buffer.oldest_waiting() == 0
