"""Put rollouts and episodes together, frame by frame, from the rows that Rerun's own reader gives."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any, NamedTuple

import rerun as rr
import torch
from tensordict import NonTensorData, TensorDict, lazy_stack

from readback import Recorded, read

Key = tuple[str, ...]
At = tuple[int, int]
"""Episode and frame. The episode is 0 unless each episode has its own file, with its own count of frames."""


class Ended(NamedTuple):
    """An episode: its environment, its number, its steps, and how it ended."""

    env: int
    episode: int
    length: int
    terminated: bool
    truncated: bool


class Lane:
    """The recorded data of one environment: times of its frames, and values of each key by frame."""

    def __init__(self) -> None:
        self.times: dict[At, dict[str, int]] = {}
        self.values: dict[str, dict[Key, dict[At, Any]]] = {"observed": {}, "stepped": {}, "acted": {}}
        self.ends: list[Key] = []

    def at(self, frame: At, *moments: str) -> dict[Key, Any]:
        return {key: rows[frame] for moment in moments for key, rows in self.values[moment].items() if frame in rows}

    def steps(self) -> list[tuple[At, At]]:
        """Return the frames before and after each step. Both are of one episode, one step apart."""
        return [(a, b) for a, b in itertools.pairwise(sorted(self.times)) if self.position(b) == self.position(a, 1)]

    def position(self, frame: At, later: int = 0) -> tuple[int, int]:
        """Return the episode of a frame, and its step within the episode plus ``later``."""
        times = self.times[frame]
        return times["episode"], times["episode_step"] + later


def files_of(source: str | Path) -> list[Path]:
    """Return all files of a folder, or a file with the files beside it that are named after it."""
    source = Path(source)
    found = source.rglob("*.rrd") if source.is_dir() else source.parent.glob(f"{source.stem}*.rrd")
    return sorted(path for path in found if path.stat().st_size)  # a part without frames may be an empty file


def lanes_of(source: str | Path) -> dict[int, Lane]:
    """Return the recorded data of each environment."""
    lanes: dict[int, Lane] = {}
    for path in files_of(source):
        recorded = read(path)
        for env in recorded.schema["envs"]:
            whole = recorded.schema["split"] != "episode"
            number, file = (env, 0) if whole else (recorded.episode["env"], recorded.episode["episode"])
            lane = lanes.setdefault(number, Lane())
            lane.ends = [tuple(key) for key in recorded.schema["ends"]]
            for entry in recorded.schema["keys"]:
                if not entry.get("sums"):
                    _add(lane, recorded, entry, [f"env_{env}"] if whole else [], file)
    return dict(sorted(lanes.items()))


def returns_in(source: str | Path) -> dict[tuple[int, int], float]:
    """Return the running return at the last frame of each episode, by environment and episode. Needs a single reward."""
    found = {}
    for path in files_of(source):
        recorded = read(path)
        [entry] = [each for each in recorded.schema["keys"] if each.get("sums")]
        by_episode = recorded.schema["split"] == "episode"
        for env in recorded.schema["envs"]:
            rows = recorded[rr.new_entity_path([*([] if by_episode else [f"env_{env}"]), *entry["key"]])]
            for times, value in zip(rows.times, rows.values, strict=True):
                found[env, times["episode"]] = value.item()
    return found


def _add(lane: Lane, recorded: Recorded, entry: dict[str, Any], prefix: list[str], file: int) -> None:
    key = tuple(entry["key"])
    parts = [*prefix, *(entry.get("place") or key)]
    agents = [recorded.entities.get(rr.new_entity_path([*parts, agent])) for agent in entry.get("agents", ())]
    rows = agents[0] if agents else recorded.entities.get(rr.new_entity_path(parts))
    values = lane.values[entry["moment"]].setdefault(key, {})
    for row, times in enumerate(rows.times if rows else ()):
        at = (file, times["frame"])
        lane.times[at] = {"episode": file} | times
        values[at] = torch.stack([each.values[row] for each in agents]) if agents else rows.values[row]


def rollout_in(source: str | Path) -> TensorDict:
    """Return the recorded rollout ``[*batch, time]``; ``[envs, time]`` if workers recorded it."""
    lanes = lanes_of(source)
    batch = read(files_of(source)[0]).schema["batch_size"]
    found = [_stacked([_step(lane, *frames) for frames in lane.steps()]) for lane in lanes.values()]
    if math.prod(batch) != len(found):
        batch = [len(found)]
    return torch.stack(found).reshape(*batch, -1) if batch else found[0]


def steps_in(source: str | Path) -> dict[tuple[int, int], TensorDict]:
    """Return the steps ``[time]`` of each episode with steps, by environment and episode."""
    found: dict[tuple[int, int], list[TensorDict]] = {}
    for env, lane in lanes_of(source).items():
        for before, after in lane.steps():
            found.setdefault((env, lane.times[after]["episode"]), []).append(_step(lane, before, after))
    return {episode: _stacked(steps) for episode, steps in found.items()}


def _step(lane: Lane, before: At, after: At) -> TensorDict:
    """Return a step: the values at the frame before it, and under "next" the values at the frame after it."""
    step = lane.at(before, "observed", "acted")
    step |= {("next", *key): value for key, value in lane.at(after, "observed", "stepped").items()}
    return TensorDict({key: _held(value) for key, value in step.items()})


def _stacked(steps: list[TensorDict]) -> TensorDict:
    return lazy_stack(steps) if _differ(steps) else torch.stack(steps)


def _held(value: Any) -> Any:
    return value if isinstance(value, torch.Tensor) else NonTensorData(value)


def _differ(steps: list[TensorDict]) -> bool:
    """Return whether keys or shapes differ between steps."""
    shapes = [
        {key: value.shape for key, value in each.items(True, True) if isinstance(value, torch.Tensor)} for each in steps
    ]
    return any(each != shapes[0] for each in shapes)


def episodes_in(source: str | Path) -> list[Ended]:
    """Return the recorded episodes with steps, one environment after the other."""
    found = []
    for env, lane in lanes_of(source).items():
        last: dict[int, At] = {}
        for frame in sorted(lane.times):
            last[lane.times[frame]["episode"]] = frame
        for episode, frame in last.items():
            times = lane.times[frame]
            if times["episode_step"]:
                ended = _ended(lane.at(frame, "observed"), lane.ends)
                found.append(Ended(env, episode, times["episode_step"], *ended))
    return found


def _ended(values: dict[Key, Any], ends: list[Key]) -> tuple[bool, bool]:
    """Return whether an episode terminated, and whether it was truncated, by the flags of its last frame."""
    groups: dict[Key, torch.Tensor] = {}
    for key in ends:
        if key in values:
            groups[key[:-1]] = groups.get(key[:-1], torch.tensor(False)) | values[key]
    if not groups or not all(up.all() if group else up.any() for group, up in groups.items()):
        return False, False
    terminated, truncated = (
        any(bool(values[key].any()) for key in ends if key in values and key[-1] == name)
        for name in ("terminated", "truncated")
    )
    return terminated or not truncated, truncated
