"""`kill -9` at any moment: all dumped frames are in the file, and no frame that did not happen."""

from __future__ import annotations

import random
import subprocess
from collections import Counter
from pathlib import Path

from rerun.chunk import RrdReader

import killed
import killed_behind
from programs import python
from readback import read, same
from reference import Reference, of_rollout
from torchrl_rerun import repair

OBSERVED = ["observation", "done", "terminated", "truncated"]


def reference() -> tuple[Reference, dict[int, int]]:
    """Return the recording of a process that was not killed, and the last frame of each rollout by number of steps."""
    env, made, ends = killed.environment(), None, {0: -1}
    for length, _ in killed.lengths():
        made = of_rollout(env.rollout(length, break_when_any_done=False), observed=OBSERVED, reference=made)
        ends[made.step] = made.frame
    env.close()
    return made, ends


def test_kill_9_at_random_moments_loses_no_dumped_frame(tmp_path):
    seed = random.randrange(10**6)
    print(f"seed {seed}")
    command = [*python(), killed.__file__, str(tmp_path), str(seed)]
    forked = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    assert forked.stderr == ""
    (wanted, ends), found = reference(), Counter()
    for i in range(killed.PROCESSES):
        found[check(tmp_path / f"run_{i}.rrd", wanted, ends)] += 1
    print(dict(found))
    assert check(tmp_path / "whole.rrd", wanted, ends) == "closed"
    assert found["dumped"] + found["closed"] > 1  # of 12


def check(path: Path, wanted: Reference, ends: dict[int, int]) -> str:
    """Compare the file of a killed process with the reference. Return the number of its frames."""
    notes = path.with_suffix(".dumped").read_text().split()
    closed, dumped = "closed" in notes, ends[max((int(note) for note in notes if note != "closed"), default=0)]
    if not path.exists():
        assert not notes, path
        return "not begun"
    try:
        repaired = repair(path)
    except ValueError as nothing:
        if notes:
            raise
        return f"{nothing}".partition("rrd ")[2]
    reader = RrdReader(path)
    assert reader.store() is not None
    assert len(reader.blueprints()) == 1
    recorded = read(path)
    for (env, key), rows in wanted.rows.items():
        where = f"{path.name}: env {env}, {key}"
        entity = recorded.entities.get(f"/env_{env}/{key}")
        length = 0 if entity is None else len(entity.values)
        # All dumped frames, and later frames without a gap.
        assert length >= sum(row.frame + (key == "action") <= dumped for row in rows), where
        for timeline in ("frame", "step", "episode", "episode_step") if length else ():
            assert entity.along(timeline) == [getattr(row, timeline) for row in rows[:length]], (where, timeline)
        assert all(same(value, row.value) for value, row in zip(entity.values if length else (), rows, strict=False)), (
            where
        )
        if closed:
            assert length == len(rows), where
    if all(f"/env_{env}/episode_return" in recorded.entities for env in range(wanted.envs)):
        wanted.compare_returns(recorded)
    if repaired is None:
        assert notes, path
    return "closed" if closed else "dumped" if dumped >= 0 else "recorded"


# --- the flags of the last frame ---

FLAGS = ("done", "terminated", "truncated")


def test_the_last_frame_has_the_flags_that_the_recorder_saw_or_later_ones(tmp_path):
    """A process is killed between steps, or while transforms behind the recorder process a step."""
    command = [*python(), killed_behind.__file__, str(tmp_path)]
    forked = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    assert forked.stderr == ""
    rollout = killed_behind.environment().rollout(killed_behind.STEPS, break_when_any_done=False)
    wanted = of_rollout(rollout, observed=OBSERVED)
    assert [row.step for row in wanted.rows[1, "truncated"] if row.value] == [*range(3, killed_behind.STEPS + 1, 3)]
    for moment in killed_behind.MOMENTS:
        for last in killed_behind.LAST:
            path = tmp_path / f"{moment}, {last}.rrd"
            seen = flags_of_the_last_frame(path, wanted, last if moment != "any" else None)
            if moment == "written":
                assert seen == ["later", "later"], path.name
            elif moment == "in front of the counter":
                assert seen == ["later", "later" if last % 3 else "hook"], path.name


def flags_of_the_last_frame(path: Path, wanted: Reference, last: int | None) -> list[str]:
    """Return, by environment, whether the last frame has the flags of the rollout, or those at the recorder's hook.

    Args:
        path: file of a killed process.
        wanted: the complete recording.
        last: last step that must be in the file. Default: None, unknown.
    """
    try:
        repair(path)
        recorded = read(path)
    except (FileNotFoundError, ValueError):
        assert last is None, f"{path.name}: nothing is there"
        return []
    frame = max((at for rows in recorded.entities.values() for at in rows.along("frame")), default=-1)
    seen = []
    for env in range(wanted.envs):
        found, later = {}, {}
        for key in OBSERVED:
            rows, entity = wanted.rows[env, key], recorded.entities.get(f"/env_{env}/{key}")
            length = 0 if entity is None else len(entity.values)
            assert entity is None or entity.along("frame") == [row.frame for row in rows[:length]]
            for row, value in zip(rows, [] if entity is None else entity.values, strict=False):
                if key in FLAGS and row.frame == frame:
                    found[key], later[key] = value.item(), row.value.item()
                else:
                    assert same(value, row.value), (path.name, env, key, row)
            if last is not None:
                assert rows[length - 1].step == last, (path.name, env, key)
        # The counter truncates episodes, the environments don't.
        terminated = later.get("terminated", False)
        hook = {key: terminated and key != "truncated" for key in found}
        assert found in (later, hook), (path.name, env, found)
        seen.append("later" if found == later else "hook")
    return seen
