"""Environments of Gymnasium with any spaces, and a reference of what they did, as plain lists."""

from __future__ import annotations

import copy

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from readback import is_equal


class Drawn(gym.Env):
    """Draws observations from a space, rewards from a normal distribution, and the ends of episodes."""

    metadata = {"render_modes": ["rgb_array", "rgb_array_list"], "render_fps": 20}

    def __init__(self, observation_space=None, action_space=None, *, ends=0.2, render_mode=None, noise=0):
        # Copies: a space has a random generator, which environments must not share.
        self.observation_space = copy.deepcopy(observation_space) or spaces.Box(-1, 1, (3,))
        self.action_space = copy.deepcopy(action_space) or spaces.Discrete(3)
        self.ends, self.render_mode, self.noise = ends, render_mode, noise
        self.frame = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        if seed is not None:
            self.observation_space.seed(seed)
            self.frame = 0
        self.frame += 1
        return self.observation_space.sample(), {"frame": self.frame, "start": 0.5}

    def step(self, action):
        self.frame += 1
        up = self.np_random.random()
        info = {"frame": self.frame, "position": np.full(2, self.frame, np.float32), "said": f"step {self.frame}"}
        reward = float(self.np_random.normal())
        return self.observation_space.sample(), reward, up < self.ends / 2, self.ends / 2 <= up < self.ends, info

    def render(self):
        picture = np.full((8, 8, 3), self.frame % 256, np.uint8)
        return [picture, picture] if self.render_mode == "rgb_array_list" else picture


SPACES = {
    "box": spaces.Box(-1, 1, (2, 3)),
    "double": spaces.Box(-np.inf, np.inf, (3,), np.float64),
    "bytes": spaces.Box(0, 255, (5,), np.uint8),
    "discrete": spaces.Discrete(4),
    "from three": spaces.Discrete(4, start=3),
    "from below": spaces.Discrete(4, start=-2),
    "many": spaces.MultiDiscrete([2, 5]),
    "many from": spaces.MultiDiscrete([[2, 5], [3, 3]], start=[[1, -1], [0, 2]]),
    "bits": spaces.MultiBinary(4),
    "dict": spaces.Dict(position=spaces.Box(-1, 1, (2,)), switch=spaces.Discrete(2)),
    "nested": spaces.Dict(a=spaces.Dict(b=spaces.Box(0, 1, (1,)), c=spaces.Discrete(3)), d=spaces.Box(0, 1, ())),
    "tuple": spaces.Tuple([spaces.Discrete(3), spaces.Box(0, 1, (2,)), spaces.Dict(x=spaces.MultiBinary(2))]),
    "text": spaces.Text(8),
    "sequence": spaces.Sequence(spaces.Box(0, 1, (2,))),
    "stacked": spaces.Sequence(spaces.Discrete(5), stack=True),
    "of dicts": spaces.Sequence(spaces.Dict(x=spaces.Box(0, 1, (2,)), said=spaces.Text(3))),
    "graph": spaces.Graph(spaces.Box(-1, 1, (3,)), spaces.Discrete(4)),
    "one of": spaces.OneOf([spaces.Discrete(3), spaces.Box(0, 1, (2,)), spaces.Text(4)]),
    "odd names": spaces.Dict({"reward": spaces.Discrete(2), "a/b": spaces.Box(0, 1, (1,)), "next": spaces.Discrete(3)}),
}


def parts(space, value, key):
    """Return the parts of a value by their keys, as the documentation says."""
    if isinstance(space, spaces.Dict):
        found = {}
        for name, each in space.spaces.items():
            found |= parts(each, value[name], (*key, name))
        return found
    if isinstance(space, spaces.Tuple):
        found = {}
        for index, each in enumerate(space.spaces):
            found |= parts(each, value[index], (*key, str(index)))
        return found
    if isinstance(space, spaces.Graph):
        found = {(*key, name): getattr(value, name) for name in ("nodes", "edges", "edge_links")}
        return {each: array for each, array in found.items() if array is not None}
    if isinstance(space, spaces.OneOf):
        index, chosen = value
        return {(*key, "index"): np.int64(index)} | parts(space.spaces[index], chosen, (*key, str(index)))
    if isinstance(space, spaces.Sequence):
        if space.stack:
            return {key: np.asarray(value)}
        if isinstance(space.feature_space, spaces.Dict):
            found = {}
            for name, each in space.feature_space.spaces.items():
                found |= parts(spaces.Sequence(each), [one[name] for one in value], (*key, name))
            return found
        if isinstance(space.feature_space, spaces.Text):
            return {key: list(value)}
        rows = [np.asarray(one) for one in value]
        feature = space.feature_space
        return {key: np.stack(rows) if rows else np.zeros((0, *feature.shape), feature.dtype)}
    return {key: value}


def observed_parts(space, value):
    names = {"action", "reward", "done", "terminated", "truncated", "info", "next"}
    is_at_root = isinstance(space, spaces.Dict) and not names & set(space.spaces)
    return parts(space, value, () if is_at_root else ("observation",))


class Reference:
    """What one environment did: for each key the episode, the step within it, and the value of each row."""

    def __init__(self, env):
        self.spaces = env.observation_space, env.action_space
        self.rows = {}
        self.episode, self.step = -1, 0

    def reset(self, observation):
        self.episode, self.step = self.episode + 1, 0
        self._observe(observation, terminated=False, truncated=False)

    def stepped(self, action, observation, reward, terminated, truncated):
        for key, value in parts(self.spaces[1], action, ("action",)).items():
            self._add(key, value)
        self.step += 1
        self._observe(observation, terminated=bool(terminated), truncated=bool(truncated))
        self._add(("reward",), np.array([reward]))

    def _observe(self, observation, *, terminated, truncated):
        for key, value in observed_parts(self.spaces[0], observation).items():
            self._add(key, value)
        for name, flag in (("terminated", terminated), ("truncated", truncated), ("done", terminated or truncated)):
            self._add((name,), np.array([flag]))

    def _add(self, key, value):
        copy = value.copy() if isinstance(value, np.ndarray) else value
        self.rows.setdefault(key, []).append((self.episode, self.step, copy))


def assert_same_rows(recorded, references):
    """Assert that a recording holds the rows of the references, and no others but returns."""
    keys = {key for reference in references for key in reference.rows}
    assert {key for key in recorded.keys() if not key[-1].startswith(("episode_return", "recorded_"))} >= keys
    for env, reference in enumerate(references):
        for entry in recorded.schema["keys"]:
            key = tuple(entry["key"])
            if "sums" in entry:
                continue
            rows = recorded.entities.get(path_of(env, entry))
            found = (
                []
                if rows is None
                else list(zip(rows.along("episode"), rows.along("episode_step"), rows.values, strict=True))
            )
            wanted = reference.rows.get(key, [])
            assert [row[:2] for row in found] == [row[:2] for row in wanted], (env, key)
            for (_, step, value), (_, _, expected) in zip(found, wanted, strict=True):
                assert as_recorded(value, expected), (env, key, step, value, expected)


def path_of(env, entry):
    import rerun as rr

    return rr.new_entity_path([f"env_{env}", *(entry.get("place") or entry["key"])])


def as_recorded(value, expected):
    """Return whether a value that was read is the one that the environment gave, dtype and bits included."""
    if hasattr(value, "numpy"):
        value = value.numpy()
    if isinstance(value, np.ndarray):
        given = np.asarray(expected)
        return value.dtype == given.dtype and value.shape == given.shape and value.tobytes() == given.tobytes()
    return is_equal(value, expected)
