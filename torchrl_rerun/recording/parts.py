"""The parts of a recording, made and connected once: for all environments together, or for a file of each episode."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torchrl_rerun.blocks.black_box import RECORDED
from torchrl_rerun.blocks.buffer import Buffer
from torchrl_rerun.blocks.devices import Devices
from torchrl_rerun.blocks.memory import MaxAge, Memory
from torchrl_rerun.chunks.output import Output
from torchrl_rerun.chunks.whole_run import WholeRun
from torchrl_rerun.kinds.schema import PROPERTIES_ENTITY, Source
from torchrl_rerun.recording.buffers import Buffers
from torchrl_rerun.recording.description import Description
from torchrl_rerun.recording.env_state import EnvState
from torchrl_rerun.recording.episode_log import EpisodeLog
from torchrl_rerun.recording.options import Options
from torchrl_rerun.writing.episode_files import EpisodeFiles
from torchrl_rerun.writing.live import LiveSink
from torchrl_rerun.writing.target import ChunkWriter
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


def make_parts(
    chunk_writer: ChunkWriter,
    source: Source,
    options: Options,
    state: EnvState,
    *,
    ids: Ids,
    live_sinks: Sequence[LiveSink],
    max_age: MaxAge,
    first_frame: int,
    memory: Memory,
) -> Parts:
    """Return the parts of a recording: of all environments together, or with a file for each episode.

    Args:
        chunk_writer: takes the chunks. If it has a folder of episodes, each episode has a file.
        source: the environments.
        options: how to record them.
        state: where the environments are.
        ids: the ids of the recording.
        live_sinks: get copies of the chunks.
        max_age: how long a frame may wait.
        first_frame: number of the frame that is 0 in the recording.
        memory: where what waits lies.
    """
    state.keep_in(memory)
    folder = chunk_writer.episodes
    capacity = options.buffer_bytes if folder is None else options.buffer_bytes // BLOCKS_SHARE
    devices = Devices()
    small, bulky = (
        Buffer(len(state.envs), capacity, max_age=max_age, devices=devices, memory=memory, role=RECORDED)
        for _ in range(2)
    )
    log: EpisodeLog | None = None
    output: Output
    if folder is None:
        output = WholeRun(
            source,
            state.envs,
            state.returns,
            split=options.split,
            max_age=max_age,
            first_frame=first_frame,
            memory=memory,
        )
    else:
        log = EpisodeLog(state.envs, memory)
        output = EpisodeFiles(
            folder,
            source,
            state.envs,
            state.returns,
            ended=log.ended,
            buffers=(small, bulky),
            application_id=ids.application_id,
            recording_id=ids.run_id,
            capacity=options.buffer_bytes - capacity,
            max_age=options.max_age.otherwise,
            memory=memory,
        )
    writer = WriterThread(
        chunk_writer, live_sinks, output, application_id=ids.application_id, recording_id=ids.recording_id
    )
    buffers = Buffers(small, bulky, writer, output, capacity=capacity, devices=devices, go_together=folder is not None)
    # A recording of one episode has no `/env_{i}` before its keys.
    description = Description(reserved=() if folder is None else (PROPERTIES_ENTITY,))
    return Parts(state, description, log, buffers, output, writer)
