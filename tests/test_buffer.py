"""Blocks: bounded, handed over when full or old, and waited for when the writer is behind."""

from __future__ import annotations

import threading
import time

import numpy as np

from torchrl_rerun.buffer import BLOCKS, Block, Buffer, Track
from torchrl_rerun.schema import Moment
from torchrl_rerun.streams import Stream

STREAM = Stream(("x",), "scalars", "float32", (10,))
TRACK = Track((STREAM,), Moment.OBSERVED)
POSITION = np.zeros((3, 5), np.int64)


def buffer_of(capacity, hand_over, *, alive=lambda: True, max_age=1e9):
    buffer = Buffer(3, capacity, hand_over, alive, max_age)
    buffer.tracks = (TRACK,)
    return buffer


def add(buffer, value, rows=None):
    block = buffer.frame()
    if block is not None:
        block.append(0, rows, POSITION, {("x",): np.full((3, 10), value, np.float32)})
    return block


def bytes_of(block):
    return sum(array.nbytes for values in block.values for array in values.values()) + sum(
        positions.nbytes for positions in block.positions
    )


def test_both_blocks_together_keep_to_the_bound():
    for capacity in (1_000, 10_000, 1_000_000):
        buffer = buffer_of(capacity, lambda block: None)
        block = add(buffer, 0)
        one_frame = 3 * TRACK.row_bytes
        assert bytes_of(block) * BLOCKS <= max(capacity, one_frame * BLOCKS)


def test_a_block_holds_at_least_one_frame():
    handed = []
    buffer = buffer_of(1, handed.append)
    add(buffer, 0)
    add(buffer, 1)
    assert [block.frames for block in handed] == [1]


def test_rows_are_those_that_were_added():
    block = Block((TRACK,), 3, 8)
    for value, rows in enumerate([None, np.array([0, 2]), None, np.array([1]), None]):
        block.begin_frame()
        block.append(0, rows, POSITION + value, {("x",): np.full((3, 10), value, np.float32)})
    kept = [block.values[0][("x",)][env, 0, : block.lengths[0][env], 0].tolist() for env in range(3)]
    assert kept == [[0, 1, 2, 4], [0, 2, 3, 4], [0, 1, 2, 4]]
    assert block.positions[0][1, :4, 0].tolist() == [0, 2, 3, 4]


def test_room_is_counted_by_the_fullest_environment():
    block = Block((TRACK,), 3, 4)
    frames = 0
    while block.has_room():
        block.begin_frame()
        block.append(0, np.array([frames % 3]), POSITION, {("x",): np.zeros((3, 10), np.float32)})
        frames += 1
    assert max(block.lengths[0]) == 4
    assert frames >= 10


def test_the_environment_waits_for_a_writer_that_is_behind():
    handed = []
    buffer = buffer_of(1, handed.append)
    add(buffer, 0)
    add(buffer, 1)
    waited = threading.Event()
    third = threading.Thread(target=lambda: (add(buffer, 2), waited.set()), daemon=True)
    third.start()
    assert not waited.wait(0.3)
    buffer.give_back(handed[0])
    assert waited.wait(5)
    assert buffer.lost_frames == 0


def test_nobody_waits_for_a_writer_that_is_gone():
    alive = [True]
    buffer = buffer_of(1, lambda block: None, alive=lambda: alive[0])
    add(buffer, 0)
    add(buffer, 1)
    alive[0] = False
    start = time.monotonic()
    assert add(buffer, 2) is None
    assert time.monotonic() - start < 1
    assert buffer.lost_frames == 2  # the one that was being filled, and the new one


def test_an_old_block_is_handed_over_though_it_is_not_full():
    handed = []
    buffer = buffer_of(1_000_000, handed.append, max_age=0.05)
    add(buffer, 0)
    add(buffer, 1)
    assert handed == []
    time.sleep(0.1)
    add(buffer, 2)
    assert [block.frames for block in handed] == [2]
