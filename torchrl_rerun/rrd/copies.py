"""Copies: recordings of which there is more than one file, which count once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torchrl_rerun.errors import warn
from torchrl_rerun.kinds.schema import RECORDING_INFO
from torchrl_rerun.paths import shown
from torchrl_rerun.rrd.contents import Contents
from torchrl_rerun.rrd.index import FilePart, parts_in

Copies = Mapping[tuple[Path, str], Path]
"""Files and ids of the recordings in them that count elsewhere, and in which file."""


def copies_among(found: Iterable[Contents]) -> Copies:
    """Which recordings are in another one of some files, too. Files are read only if they say that they hold the same.

    Args:
        found: what files say of the recordings in them.
    """
    said: dict[tuple[str, int | None], list[Contents]] = {}
    for each in found:
        began = each.properties.get(RECORDING_INFO, {}).get("RecordingInfo:start_time")
        said.setdefault((each.recording_id, began), []).append(each)
    several = {(each.file, each.recording_id) for of_one in said.values() if len(of_one) > 1 for each in of_one}
    parts = [part for file in dict.fromkeys(file for file, _ in several) for part in parts_in(file)]
    return copies_in([part for part in parts if (part.contents.file, part.contents.recording_id) in several])


def copies_in(parts: Iterable[FilePart]) -> Copies:
    """Which parts of recordings hold nothing but what others hold.

    Chunks have ids: a copy has those of the other one, and one that was torn or is older has some of them. What was
    written anew by another program is known by its first row's time and by the steps at each entity.
    That one counts which holds most of the recording, in the folder that holds most of it; of equal ones a finished one,
    and that whose name is the shortest.

    Args:
        parts: what files hold of recordings.
    """
    recordings: dict[str, list[FilePart]] = {}
    for part in parts:
        recordings.setdefault(part.contents.recording_id, []).append(part)
    copies = {}
    for recording_id, several in recordings.items():
        if len(several) > 1:
            for copy, other in _copies_of_one(several):
                copies[copy.contents.file, recording_id] = other.contents.file
    return copies


def _copies_of_one(several: Sequence[FilePart]) -> Iterable[tuple[FilePart, FilePart]]:
    ids = [part.ids() for part in several]
    in_folder: dict[Path, set[bytes]] = {}
    for part, own in zip(several, ids, strict=True):
        in_folder.setdefault(part.contents.file.parent, set()).update(own)

    def rank(at: int) -> tuple[Any, ...]:
        contents, file = several[at].contents, several[at].contents.file
        of_folder = -len(in_folder[file.parent]), len(str(file.parent)), str(file.parent)
        return *of_folder, -len(ids[at]), not contents.is_finished, len(file.name), file.name

    kept: list[int] = []
    for at in sorted(range(len(several)), key=rank):
        other = next((before for before in kept if _is_in(several, ids, at, before)), None)
        if other is None:
            kept.append(at)
        else:
            yield several[at], several[other]


def _is_in(parts: Sequence[FilePart], ids: Sequence[frozenset[bytes]], at: int, other: int) -> bool:
    """Whether one part holds nothing but what another one holds."""
    if ids[at] <= ids[other]:
        return True
    one, two = parts[at], parts[other]
    return bool(one.steps) and (one.began, one.steps) == (two.began, two.steps)


def told_copies(copies: Copies) -> str:
    """What is said of files that hold the same recordings as others, once for all of them."""
    files = {copy: other for (copy, _), other in copies.items()}
    copy, other = next(iter(files.items()))
    others = f" (and {len(files) - 1} other copies)" if len(files) > 1 else ""
    return f"{shown(copy)} is a copy of {shown(other)}, and counts once{others}"


def say_copies(copies: Copies) -> None:
    """Warn of copies, if there are any."""
    if copies:
        warn(told_copies(copies))
