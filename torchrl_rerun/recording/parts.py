"""The parts of a recording, made and connected once: for all environments together, or for a file of each episode."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torchrl_rerun.blocks.buffer import Buffer
from torchrl_rerun.blocks.devices import Devices
from torchrl_rerun.kinds.schema import PROPERTIES_ENTITY, Source
from torchrl_rerun.recording.buffers import Buffers
from torchrl_rerun.recording.description import Description
from torchrl_rerun.recording.env_state import EnvState
from torchrl_rerun.recording.episode_log import EpisodeLog
from torchrl_rerun.recording.options import Options
from torchrl_rerun.writing.episode_files import EpisodeFiles
from torchrl_rerun.writing.live import LiveSink
from torchrl_rerun.writing.output import Output
from torchrl_rerun.writing.target import ChunkWriter
from torchrl_rerun.writing.whole_run import WholeRun
from torchrl_rerun.writing.writer import WriterThread

BLOCKS_SHARE = 4
"""Blocks have one in so many of ``buffer_bytes`` if episodes wait in memory until they are over, and these the rest."""


class Ids(NamedTuple):
    """The ids of a recording.

    Attributes:
        application_id: the id by which the viewer groups recordings.
        recording_id: the id of the Rerun recording.
        run_id: the id of the run that the recording is a part of.
    """

    application_id: str
    recording_id: str
    run_id: str


class Parts(NamedTuple):
    """The parts of a recording.

    Attributes:
        state: where the environments are.
        description: the streams.
        episode_log: follows the episodes; None unless each has a recording of its own.
        buffers: take the frames.
        output: makes chunks of them.
        writer: the thread that writes the chunks.
    """

    state: EnvState
    description: Description
    episode_log: EpisodeLog | None
    buffers: Buffers
    output: Output
    writer: WriterThread


def parts_for_run(
    chunk_writer: ChunkWriter,
    source: Source,
    options: Options,
    state: EnvState,
    *,
    ids: Ids,
    live_sinks: Sequence[LiveSink],
    max_age: float,
) -> Parts:
    """Return the parts of a recording of all environments together.

    Args:
        chunk_writer: takes the chunks.
        source: the environments.
        options: how to record them.
        state: where the environments are.
        ids: the ids of the recording.
        live_sinks: get copies of the chunks.
        max_age: seconds that a frame may wait.
    """
    devices = Devices()
    small, bulky = _pair(state, options.buffer_bytes, max_age, devices)
    output = WholeRun(
        source,
        state.envs,
        state.returns,
        split=options.split,
        max_age=max_age,
        first_frame=state.counters.frames if options.split == "dump" else 0,
    )
    writer = _writer(chunk_writer, live_sinks, output, ids)
    buffers = Buffers(small, bulky, writer, output, capacity=options.buffer_bytes, devices=devices)
    return Parts(state, Description(), None, buffers, output, writer)


def parts_for_episodes(
    chunk_writer: ChunkWriter,
    source: Source,
    options: Options,
    state: EnvState,
    *,
    ids: Ids,
    live_sinks: Sequence[LiveSink],
    max_age: float,
) -> Parts:
    """Return the parts of a recording with a file for each episode.

    Args:
        chunk_writer: takes the chunks, and has the folder of the files.
        source: the environments.
        options: how to record them.
        state: where the environments are.
        ids: the ids of the recording.
        live_sinks: get copies of the chunks.
        max_age: seconds that a frame may wait.
    """
    assert chunk_writer.episodes is not None, "episodes have files in a folder"
    capacity = options.buffer_bytes // BLOCKS_SHARE
    devices = Devices()
    small, bulky = _pair(state, capacity, max_age, devices)
    log = EpisodeLog(state.envs)
    output = EpisodeFiles(
        chunk_writer.episodes,
        source,
        state.envs,
        state.returns,
        ended=log.ended,
        buffers=(small, bulky),
        application_id=ids.application_id,
        recording_id=ids.run_id,
        capacity=options.buffer_bytes - capacity,
        max_age=options.flush_seconds,
    )
    writer = _writer(chunk_writer, live_sinks, output, ids)
    # A recording of one episode has no `/env_{i}` before its keys.
    description = Description(reserved=(PROPERTIES_ENTITY,))
    buffers = Buffers(small, bulky, writer, output, capacity=capacity, devices=devices)
    return Parts(state, description, log, buffers, output, writer)


def _pair(state: EnvState, capacity: int, max_age: float, devices: Devices) -> tuple[Buffer, Buffer]:
    """Return buffers for small and for bulky rows of the environments that are recorded in detail."""
    small, bulky = (Buffer(len(state.envs), capacity, max_age=max_age, devices=devices) for _ in range(2))
    return small, bulky


def _writer(chunk_writer: ChunkWriter, live_sinks: Sequence[LiveSink], output: Output, ids: Ids) -> WriterThread:
    return WriterThread(
        chunk_writer, live_sinks, output, application_id=ids.application_id, recording_id=ids.recording_id
    )
