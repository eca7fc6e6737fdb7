"""Environments with the shape of Isaac Lab's, which needs Isaac Sim and a GPU.

What is modelled: ``env.unwrapped.scene`` with its families of objects, their ``data`` with poses in the world of all
environments (tensors and w first before Isaac Lab 3, proxies of arrays and w last since), ``env_origins``, and the reset
within a step.
"""

from __future__ import annotations

from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector.utils import batch_space

SPACING = 10.0
BODIES = ("base", "arm", "tip")


class Proxy:
    """An array of Isaac Lab 3: the tensor is one of its views."""

    def __init__(self, tensor):
        self.torch = tensor
        self.shape = tensor.shape
        self.device = SimpleNamespace(is_cuda=False)


class NewtonsScene(SimpleNamespace):
    """A scene of Isaac Lab with Newton, as it was at first: it refuses some families."""

    @property
    def rigid_objects(self):
        raise NotImplementedError

    @property
    def rigid_object_collections(self):
        raise NotImplementedError


class IsaacEnv(gym.Env):
    """Robots whose bodies move with each step, a cube and two balls. An episode of environment i has 3 + i steps.

    Args:
        version: Isaac Lab's.
        has_newton: whether the scene is Newton's.
    """

    def __init__(self, version=3, envs=3, *, has_newton=False):
        self.num_envs, self.version = envs, version
        self.single_observation_space = gym.spaces.Dict(policy=gym.spaces.Box(-np.inf, np.inf, (1,)))
        self.single_action_space = gym.spaces.Box(-1, 1, (1,))
        self.observation_space = batch_space(self.single_observation_space, envs)
        self.action_space = batch_space(self.single_action_space, envs)
        self.device = "cpu"
        self.count = torch.zeros(envs)
        self.robot = SimpleNamespace(body_names=list(BODIES), data=SimpleNamespace())
        self.cube = SimpleNamespace(body_names=["Cube"], data=SimpleNamespace())
        self.balls = SimpleNamespace(
            data=SimpleNamespace(), **{"object_names" if version == 2 else "body_names": ["a", "b"]}
        )
        origins = torch.zeros(envs, 3)
        origins[:, 0] = SPACING * torch.arange(envs)
        families = {"articulations": {"robot": self.robot}, "env_origins": origins}
        if has_newton:
            self.scene = NewtonsScene(**families)
        else:
            self.scene = SimpleNamespace(
                **families, rigid_objects={"cube": self.cube}, rigid_object_collections={"balls": self.balls}
            )
        self.seen = []
        self._move()

    def reset(self, *, seed=None, options=None):
        self.count.zero_()
        self._move()
        return self._observed(), {}

    def step(self, action):
        self.count += 1
        done = self.count >= 3 + torch.arange(self.num_envs)
        self.count[done] = 0
        self._move()
        return self._observed(), torch.ones(self.num_envs), done, torch.zeros(self.num_envs, dtype=torch.bool), {}

    def poses(self, count):
        """Return the poses of all bodies relative to the origins, by the steps of each episode: positions, x, y, z, w."""
        bodies = torch.arange(6.0)
        poses = torch.zeros(self.num_envs, 6, 7)
        poses[..., 0] = 0.25 * count[:, None]
        poses[..., 2] = 0.5 * bodies
        half = (0.125 * count[:, None] + bodies) / 2
        poses[..., 3], poses[..., 6] = half.sin(), half.cos()
        return poses

    def _move(self):
        poses = self.poses(self.count)
        self.seen.append(poses.clone())
        poses[..., :3] += self.scene.env_origins[:, None]
        if self.version == 2:
            poses = torch.cat([poses[..., :3], poses[..., 6:], poses[..., 3:6], torch.zeros(self.num_envs, 6, 6)], -1)
            names, made = ("body_link_state_w", "object_link_state_w"), torch.clone
        else:
            names, made = ("body_link_pose_w", "body_link_pose_w"), Proxy
        setattr(self.robot.data, names[0], made(poses[:, :3]))
        setattr(self.cube.data, names[0], made(poses[:, 3:4]))
        setattr(self.balls.data, names[1], made(poses[:, 4:]))

    def _observed(self):
        return {"policy": self.count[:, None].clone()}


IsaacEnv.__module__ = "isaaclab.envs.manager_based_rl_env"
