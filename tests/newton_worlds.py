"""Environments of Newton's: cart-poles, a world each. Newton isn't among what the tests install."""

from __future__ import annotations

import functools

import gymnasium as gym
import numpy as np
import pytest

newton = pytest.importorskip("newton", reason="needs newton")  # this file is collected, too, for its examples
warp = pytest.importorskip("warp", reason="needs warp-lang")


def cart_pole(bodies=2):
    """Return a world: a cart of a box with poles of capsules on it."""
    world = newton.ModelBuilder()
    cart = world.add_link(label="cart")
    world.add_shape_box(cart, hx=0.2, hy=0.3, hz=0.1)
    joints, parent = [world.add_joint_prismatic(parent=-1, child=cart, axis=(0, 1, 0))], cart
    for number in range(bodies - 1):
        pole = world.add_link(label=f"pole_{number}")
        world.add_shape_capsule(
            pole, radius=0.05, half_height=0.4, xform=warp.transform((0, 0, 0.4), warp.quat_identity())
        )
        joints.append(world.add_joint_revolute(parent=parent, child=pole, axis=(1, 0, 0)))
        parent = pole
    world.add_articulation(joints)
    world.joint_q[1:] = [0.3] * (bodies - 1)
    return world


@functools.cache
def models(bodies):
    """Return a model of worlds with so many bodies each, above a plane."""
    worlds = newton.ModelBuilder()
    for count in bodies:
        worlds.add_world(cart_pole(count))
    worlds.add_ground_plane()
    return worlds.finalize(device="cpu")


class CartPoles(gym.vector.VectorEnv):
    """Cart-poles that swing freely: an environment for each world."""

    def __init__(self, bodies=(2, 2, 2)):
        self.num_envs = len(bodies)
        self.single_observation_space = gym.spaces.Box(-np.inf, np.inf, (1,))
        self.single_action_space = gym.spaces.Box(-1, 1, (1,))
        self.observation_space = gym.vector.utils.batch_space(self.single_observation_space, self.num_envs)
        self.action_space = gym.vector.utils.batch_space(self.single_action_space, self.num_envs)
        self.metadata = {"autoreset_mode": gym.vector.AutoresetMode.NEXT_STEP}
        self.model = models(tuple(bodies))
        self.state_0, self.state_1 = self.model.state(), self.model.state()
        self.solver = newton.solvers.SolverFeatherstone(self.model)
        self.seen = []

    def reset(self, *, seed=None, options=None):
        newton.eval_fk(self.model, self.model.joint_q, self.model.joint_qd, self.state_0)
        return self._observed(), {}

    def step(self, actions):
        for _ in range(10):
            self.state_0.clear_forces()
            self.solver.step(self.state_0, self.state_1, None, None, 0.005)
            self.state_0, self.state_1 = self.state_1, self.state_0
        down = np.zeros(self.num_envs, bool)
        return self._observed(), np.zeros(self.num_envs), down, down, {}

    def _observed(self):
        poses = self.state_0.body_q.numpy().copy()
        self.seen.append(poses)
        of_world = self.model.body_world.numpy()
        return np.array([poses[of_world == world][0, 1:2] for world in range(self.num_envs)], np.float32)


class Holding(gym.vector.VectorEnv):
    """Cart-poles that an attribute of the environment holds."""

    def __init__(self, name):
        self.held = CartPoles()
        setattr(self, name, self.held)
        for each in ("num_envs", "metadata", "single_observation_space", "single_action_space"):
            setattr(self, each, getattr(self.held, each))
        self.observation_space, self.action_space = self.held.observation_space, self.held.action_space
        self.reset, self.step = self.held.reset, self.held.step


class CartPole(gym.Env):
    """A single cart-pole."""

    def __init__(self):
        self.poles = CartPoles((2,))
        self.model = self.poles.model
        self.observation_space = self.poles.single_observation_space
        self.action_space = self.poles.single_action_space

    @property
    def state_0(self):
        return self.poles.state_0

    def reset(self, *, seed=None, options=None):
        return self.poles.reset()[0][0], {}

    def step(self, action):
        return self.poles.step(None)[0][0], 0.0, False, False, {}
