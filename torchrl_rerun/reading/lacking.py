"""Warnings of the rows that recordings lack whose process was killed, and whose black box isn't there."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from torchrl_rerun.errors import warn
from torchrl_rerun.kinds.keys import Key
from torchrl_rerun.kinds.schema import Schema, told_lacking
from torchrl_rerun.paths import format_path
from torchrl_rerun.reading.recordings import OpenedRecording, schema_of
from torchrl_rerun.rrd.file_part import FilePart
from torchrl_rerun.rrd.listing import RecordedEpisode
from torchrl_rerun.rrd.reader import parts_in
from torchrl_rerun.rrd.rests import missing_box

Lacking = dict[Key, tuple[int, int]]
"""Keys that have fewer rows than there are frames, with how many they have, and how many frames there are."""


def warn_of_lacking_rows(recording: OpenedRecording[FilePart]) -> None:
    """Warn if a process that was killed, or goes on, has written fewer rows of some keys than of others."""
    unfinished = [part.file for part in recording.parts if not part.is_finished]
    lacking = _lacking(recording.parts) if unfinished else {}
    if lacking:
        file = unfinished[-1]
        _warn(f"{format_path(file)} isn't finished: it holds", lacking, missing_box(file))


def warn_of_lacking_episodes(episodes: Iterable[RecordedEpisode]) -> None:
    """Warn if parts of episodes hold fewer rows of some keys than of others, and the black box of their folder isn't there."""
    torn: list[Path] = []
    summed: Lacking = {}
    for each in episodes:
        if ".part_" not in each.path.name or missing_box(each.path.parent) is None:
            continue
        try:
            found = [part for file in each.paths for part in parts_in(file) if part.recording_id == each.recording_id]
        except FileNotFoundError:  # its owner has written the episode as a whole, and removed its parts
            continue
        if lacking := _lacking(found):
            torn.append(each.path)
            for key, counts in lacking.items():
                before = summed.get(key, (0, 0))
                summed[key] = before[0] + counts[0], before[1] + counts[1]
    if torn:
        others = (
            f" and {len(torn) - 1:,} more are parts of episodes that aren't"
            if len(torn) > 1
            else " is a part of an episode that isn't"
        )
        folder = torn[0].parent
        _warn(f"{format_path(torn[0])}{others} finished:", summed, missing_box(folder))


def _warn(what: str, lacking: Lacking, box: Path | None) -> None:
    advice = "" if box is None else _ADVICE.format(format_path(box))
    warn(f"{what} {told_lacking(lacking)}. Where they are missing, masks say so: ('recorded', key){advice}")


_ADVICE = ". If this is a copy, the black box beside the original has the rest: copy that hidden folder to {}"


def _lacking(parts: Sequence[FilePart]) -> Lacking:
    """Return the keys of which a recording lacks rows."""
    schema = schema_of(parts[-1])
    paths = {path for part in parts for path in part.index.recorded_paths}
    rows = {path: sum(part.count(path) for part in parts) for path in paths}
    return schema.lacking(rows, [_episodes(parts, schema, env) for env in schema.envs])


def _episodes(parts: Sequence[FilePart], schema: Schema, env: int) -> int:
    """Return how many episodes of an environment are in a recording."""
    paths = {schema.path_of(each, env, agent) for each, _ in schema.described for agent in range(each.agent_count)}
    known = ((part, path) for part in parts for path in part.index.recorded_paths if path in paths)
    spans = [part.index.span_of(path, "episode") for part, path in known]
    return max(last for _, last in spans) - min(first for first, _ in spans) + 1 if spans else 0
