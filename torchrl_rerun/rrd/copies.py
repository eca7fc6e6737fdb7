"""Copies: recordings of which there is more than one file, and which count once."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torchrl_rerun.errors import warn
from torchrl_rerun.paths import format_path
from torchrl_rerun.rrd.file_part import FilePart
from torchrl_rerun.rrd.parts import RecordingPart
from torchrl_rerun.rrd.reader import parts_in

Copies = Mapping[tuple[Path, str], Path]
"""The file and the recording id of each copy, with the file that counts instead."""

Claim = tuple[Path, str, int | None]
"""A file, the id of a recording in it, and when that began: two files that agree in both may hold the same."""


def copies_among(parts: Iterable[RecordingPart]) -> Copies:
    """Return which parts of recordings are copies; see :func:`copies_claimed`."""
    return copies_claimed((part.file, part.recording_id, part.start_time) for part in parts)


def copies_claimed(claims: Iterable[Claim]) -> Copies:
    """Return which recordings are copies. A file is read only if another one claims to hold the same recording.

    Args:
        claims: what the files say of the recordings in them.
    """
    of_one: dict[tuple[str, int | None], list[Claim]] = {}
    for claim in claims:
        of_one.setdefault(claim[1:], []).append(claim)
    several = {claim[:2] for claims in of_one.values() if len(claims) > 1 for claim in claims}
    parts: list[FilePart] = []
    for file in dict.fromkeys(file for file, _ in several):
        with contextlib.suppress(FileNotFoundError):  # parts of an episode are removed when it is written as a whole
            parts += parts_in(file)
    return copies_in([part for part in parts if (part.file, part.recording_id) in several])


def copies_in(parts: Iterable[FilePart]) -> Copies:
    """Return which parts of recordings hold nothing but what others hold.

    - A copy has the chunk ids of the other file. A copy that was torn, or is older, has some of them.
    - A copy that another program wrote anew has the time of the other file's first row, and its steps at each entity.
    - The file counts that holds most of the recording, in the folder that holds most of it. Among equal ones a finished
      file comes first, then the one with the shortest name.

    Args:
        parts: what files hold of recordings.
    """
    recordings: dict[str, list[FilePart]] = {}
    for part in parts:
        recordings.setdefault(part.recording_id, []).append(part)
    copies = {}
    for recording_id, several in recordings.items():
        if len(several) > 1:
            for copy, other in _copies_of_one(several):
                copies[copy.file, recording_id] = other.file
    return copies


def _copies_of_one(several: Sequence[FilePart]) -> Iterable[tuple[FilePart, FilePart]]:
    """Yield the copies among the parts of one recording, each with the part that counts instead."""
    ids = [part.chunk_ids() for part in several]
    in_folder: dict[Path, set[bytes]] = {}
    for part, own in zip(several, ids, strict=True):
        in_folder.setdefault(part.file.parent, set()).update(own)

    def rank(at: int) -> tuple[Any, ...]:
        file = several[at].file
        of_folder = -len(in_folder[file.parent]), len(str(file.parent)), str(file.parent)
        return *of_folder, -len(ids[at]), not several[at].is_finished, len(file.name), file.name

    kept: list[int] = []
    for at in sorted(range(len(several)), key=rank):
        other = next((before for before in kept if _is_in(several, ids, at, before)), None)
        if other is None:
            kept.append(at)
        else:
            yield several[at], several[other]


def _is_in(parts: Sequence[FilePart], ids: Sequence[frozenset[bytes]], at: int, other: int) -> bool:
    """Return whether one part holds nothing but what another part holds."""
    if ids[at] <= ids[other]:
        return True
    one, two = parts[at], parts[other]
    return bool(one.steps) and (one.began, one.steps) == (two.began, two.steps)


def describe_copies(copies: Copies) -> str:
    """Return the one sentence that names the first copy and counts the others."""
    files = {copy: other for (copy, _), other in copies.items()}
    copy, other = next(iter(files.items()))
    others = f" (and {len(files) - 1} other copies)" if len(files) > 1 else ""
    return f"{format_path(copy)} is a copy of {format_path(other)}, and counts once{others}"


def warn_of_copies(copies: Copies) -> None:
    """Warn of copies, if there are any."""
    if copies:
        warn(describe_copies(copies))
