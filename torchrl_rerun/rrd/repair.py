"""Repairing: what a killed process left behind, made a whole recording, with a footer and its layout."""

from __future__ import annotations

import json
import os
import re
import shutil
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from rerun.chunk import Chunk, LazyChunkStream

from torchrl_rerun.kinds.schema import PROPERTY, Schema, shown_envs
from torchrl_rerun.kinds.streams import Key
from torchrl_rerun.layout.blueprint import Recorded, layout
from torchrl_rerun.paths import absolute, check_name, is_file, shown, target_of
from torchrl_rerun.rrd.atomic import placed
from torchrl_rerun.rrd.blueprints import add_layout, encode
from torchrl_rerun.rrd.contents import has_footer, is_whole, reader_of
from torchrl_rerun.rrd.framing import FOOTER, HEADER_BYTES, MAGIC, MESSAGE, MESSAGES, messages
from torchrl_rerun.rrd.locks import lock
from torchrl_rerun.rrd.runs import family

_ENV = re.compile(r"/env_(\d+)/")


@dataclass(frozen=True)
class Repaired:
    """What a repair found.

    Attributes:
        path: the file that is whole now.
        frames: recorded resets and steps that are in it, at least in part.
        episodes: episodes in it, of all environments together, the unfinished ones included.
        envs: environments in it.
        cut_bytes: size of the unfinished message that was cut off the end; 0: there was none.
        lacking: keys that have fewer rows than others of the same frames, with how many they have, and of how many.
            Pictures are written after what is small; those that were still in memory are lost.
    """

    path: Path
    frames: int
    episodes: int
    envs: int
    cut_bytes: int
    lacking: Mapping[Key, tuple[int, int]]


def repair(path: str | os.PathLike[str], out: str | os.PathLike[str] | None = None) -> Repaired | None:
    """Make a recording whole that a killed process left behind: torn within a message, without a footer or a layout.

    What is whole in it stays, bit for bit; the unfinished message at its end is cut off. The layout is made from the
    recording's own schema. The repaired file is written beside the other one and takes its place at the very end, so
    that nothing is lost whatever goes wrong. Of links that is repaired, or written, to which they lead.

    Args:
        path: the recording. A leading ``~`` is the user's home, as in all paths.
        out: where to write the repaired one; None: in the place of the other.

    Returns:
        What was found, or None if the file is whole already; it is then left as it is, and copied to ``out`` if given.

    Raises:
        FileNotFoundError: there is no such file.
        IsADirectoryError: it is a folder.
        FileExistsError: ``out`` exists, or a live recorder still writes to ``path``.
        ValueError: it isn't a recording of torchrl_rerun, nothing was recorded in it yet, or it is damaged elsewhere than
            at its end; it, or ``out``, is no regular file.
        OSError: it can't be read or written.

    Examples:
        >>> import tempfile
        >>> from torchrl.envs import GymEnv
        >>> import torchrl_rerun
        >>> path = f"{tempfile.mkdtemp()}/run.rrd"
        >>> env = GymEnv("CartPole-v1").append_transform(torchrl_rerun.RerunRecorder(path))
        >>> rollout = env.rollout(10)
        >>> env.close()
        >>> torchrl_rerun.repair(path) is None  # it was closed: it is whole
        True
    """
    source = absolute(path).resolve()
    target = source if out is None else target_of(out).resolve()
    if not is_file(source):
        raise IsADirectoryError(f"{shown(source)} is a folder: pass the files in it that are to be repaired")
    check_name(source)
    with source.open("rb") as file:
        if target != source and target.exists():
            raise FileExistsError(f"{shown(target)} exists; choose another path")
        lock(file.fileno(), source)
        begins = file.read(len(MAGIC))
        if not begins:
            raise ValueError(f"{shown(source)} is empty: nothing was recorded in it")
        if begins != MAGIC:
            raise ValueError(f"{shown(source)} is not a recording: it doesn't begin as an .rrd file does")
        if is_whole(source):
            if target != source:
                with placed(target, overwrite=False) as hidden:
                    shutil.copyfile(source, hidden)
            return None
        with placed(target, overwrite=target == source) as hidden:
            return _repair(file, source, target, hidden)


def _repair(file: BinaryIO, source: Path, target: Path, mended: Path) -> Repaired:
    size, readable = os.fstat(file.fileno()).st_size, source
    whole_bytes = size if has_footer(reader_of(source)) else _whole_bytes(file, source, size)
    if whole_bytes < size:  # Rerun refuses a file that ends within a message
        readable = mended.with_name("cut.rrd")
        shutil.copyfile(source, readable)
        os.truncate(readable, whole_bytes)
    contents = _rewrite(readable, mended, source)
    if contents.schema is None:
        raise ValueError(f"{shown(source)} holds nothing to repair: no recording of torchrl_rerun has begun in it")
    lacking: Mapping[Key, tuple[int, int]] = {}
    try:
        schema = Schema.from_fields(contents.schema)
        lacking = schema.lacking(contents.rows)
        envs = shown_envs(schema.envs, schema.source.envs, family(source))
        made = layout(Recorded.of_schema(schema, envs))
        add_layout(mended, encode(made, contents.application_id))
    except Exception as error:  # of a future version, perhaps: the data is worth more than its layout
        warnings.warn(f"the recording is complete, but has no layout: {error}", RuntimeWarning, stacklevel=3)
    shutil.copymode(source, mended)
    return Repaired(
        target,
        frames=contents.frames,
        episodes=sum(last - first + 1 for first, last in contents.episodes.values()),
        envs=len(contents.schema["envs"]),
        cut_bytes=size - whole_bytes,
        lacking=lacking,
    )


def _whole_bytes(file: BinaryIO, path: Path, size: int) -> int:
    """Up to where a file of ``size`` bytes holds whole messages.

    Raises:
        ValueError: what comes then is no unfinished message: whole ones may follow it.
    """
    end = HEADER_BYTES
    for start, kind, length in messages(file, size):
        if kind not in (FOOTER, *MESSAGES):
            raise ValueError(f"{shown(path)} is damaged at byte {start:,} of {size:,}: nothing is cut off there")
        if kind == FOOTER or start + MESSAGE.size + length > size:
            break
        end = start + MESSAGE.size + length
    return end


class _Contents:
    """What is in a recording, noted while its chunks pass.

    Attributes:
        application_id: what the recording is of.
        schema: the last one in it; None: there is none.
        episodes: the first and the last of each environment.
        rows: how many there are at each entity path.
    """

    def __init__(self, application_id: str = "") -> None:
        self.application_id = application_id
        self.schema: dict[str, Any] | None = None
        self.episodes: dict[str, tuple[int, int]] = {}
        self.rows: Counter[str] = Counter()
        self._first, self._last = 0, -1

    @property
    def frames(self) -> int:
        """How many frames there are."""
        return self._last - self._first + 1

    def noting(self, chunks: Iterable[Chunk]) -> Iterator[Chunk]:
        """The same chunks."""
        for chunk in chunks:
            if chunk.entity_path == f"/__properties/{PROPERTY}":
                self.schema = json.loads(chunk.to_record_batch().column("schema")[-1].as_py()[0])
            elif "frame" in chunk.timeline_names:
                self._note(chunk)
            yield chunk

    def _note(self, chunk: Chunk) -> None:
        batch = chunk.to_record_batch()
        self.rows[chunk.entity_path] += len(batch)
        first, last = _ends(batch, "frame")
        self._first, self._last = (first, last) if self._last < 0 else (min(self._first, first), max(self._last, last))
        env = _ENV.match(chunk.entity_path)
        if env is not None:
            first, last = _ends(batch, "episode")
            before = self.episodes.get(env[1], (first, last))
            self.episodes[env[1]] = min(before[0], first), max(before[1], last)


def _ends(batch: Any, timeline: str) -> tuple[int, int]:
    times = batch.column(timeline).to_numpy()
    return int(times.min()), int(times.max())


def _rewrite(readable: Path, mended: Path, source: Path) -> _Contents:
    """Write the recording in a file anew, with a footer. ``rerun rrd merge`` would hold all of it in memory."""
    reader = reader_of(readable)
    if reader is None:
        raise ValueError(f"{shown(source)} is damaged: Rerun can't read it")
    try:
        # `rerun rrd route` leaves an empty one beside each layout that it joins to a file (rerun-sdk 0.41).
        recordings = [each for each in reader.recordings() if next(iter(reader.stream(store=each)), None) is not None]
        if not recordings:
            return _Contents()
        if len(recordings) > 1:
            raise ValueError(f"{shown(source)} holds several recordings; a recorder writes one")
        contents = _Contents(recordings[0].application_id)
        LazyChunkStream.from_iter(contents.noting(reader.stream(store=recordings[0]))).write_rrd(
            mended, application_id=contents.application_id, recording_id=recordings[0].recording_id
        )
    except RuntimeError as error:
        raise OSError(f"{shown(source)} could not be repaired: {error}") from error
    return contents
