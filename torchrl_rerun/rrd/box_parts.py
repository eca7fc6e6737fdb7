"""Parts of recordings in black boxes: what a file lacks, and episodes that have no files yet."""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

from torchrl_rerun.blocks.snapshot import Snapshot, read_box, state_of
from torchrl_rerun.kinds.schema import PROPERTY
from torchrl_rerun.rrd.chunk_index import ChunkIndex
from torchrl_rerun.rrd.file_part import RECOVERED, FilePart, FileVersion, entry_of, frames_in
from torchrl_rerun.rrd.left_behind import LeftEpisode, Part, rest_of_episodes, rest_of_run
from torchrl_rerun.rrd.locks import is_locked
from torchrl_rerun.rrd.parts import Properties, episode_in


def with_rest(opened: BinaryIO, file: Path, found: list[FilePart], box: Snapshot) -> list[FilePart]:
    """Return the parts in an unfinished file, together with what is in its black box."""
    ids = box.said["application_id"], box.said["recording_id"]
    part = next((part for part in found if part.recording_id == ids[1]), None)
    if part is None:
        nothing = ChunkIndex.of_entries([])
        part = FilePart(
            file=file,
            application_id=ids[0],
            recording_id=ids[1],
            properties={},
            is_finished=False,
            has_layout=False,
            index=nothing,
            store=b"",
            version=FileVersion.of(opened),
        )
    schema = part.properties.get(PROPERTY, {}).get("schema")
    recovered = tuple(rest_of_run(box, functools.partial(frames_in, part), schema))
    properties: dict[bytes, Properties] = {part.store: dict(part.properties)}
    entries = [
        entry_of(batch, RECOVERED + number, batch.nbytes, properties[part.store])
        for number, batch in enumerate(recovered)
    ]
    whole = replace(
        part,
        properties=properties[part.store],
        index=part.index.with_more(ChunkIndex.of_entries(entries)),
        recovered=recovered,
    )
    return [*(each for each in found if each is not part), whole]


def episodes_in(path: Path, parts_in: Callable[[Path], list[FilePart]]) -> list[FilePart]:
    """Return the episodes in the black box of a folder, which have no files yet, or not all of their rows in one.

    Args:
        path: the box.
        parts_in: returns the parts in a file.
    """
    return list(_episodes_in(path, parts_in, state_of(path)))


@functools.lru_cache(maxsize=2)  # readers come for one episode after the other
def _episodes_in(
    path: Path, parts_in: Callable[[Path], list[FilePart]], state: tuple[Any, ...]
) -> tuple[FilePart, ...]:
    del state  # which differs if there is more in the box
    box = read_box(path, is_in_use=is_locked(path.parent))
    there: dict[str, list[Part]] = {}
    for file in () if box is None else sorted(path.parent.glob("env_*_episode_*.rrd")):
        with contextlib.suppress(OSError, ValueError):  # other readers tell of it
            for part in parts_in(file):
                episode = episode_in(part.properties)
                if episode is not None:
                    name = _WITHOUT_SUFFIX.sub("", file.name)
                    there.setdefault(name, []).append((file, episode, functools.partial(frames_in, part, first=0)))
    return () if box is None else tuple(_left_part(path, box, each) for each in rest_of_episodes(box, there))


_WITHOUT_SUFFIX = re.compile(r"(?<=_episode_\d{6})(_\d+)?(\.part_\d+)?\.rrd")


def _left_part(path: Path, box: Snapshot, left: LeftEpisode) -> FilePart:
    properties: Properties = {}
    entries = [
        entry_of(batch, RECOVERED + number, batch.nbytes, properties) for number, batch in enumerate(left.chunks)
    ]
    found = path.stat()
    return FilePart(
        file=path,
        application_id=box.said["application_id"],
        recording_id=left.recording_id,
        properties=properties,
        is_finished=False,
        has_layout=False,
        index=ChunkIndex.of_entries(entries),
        store=b"",
        version=FileVersion(found.st_dev, found.st_ino, found.st_mtime_ns),
        recovered=tuple(left.chunks),
    )
