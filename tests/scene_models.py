"""Models of MuJoCo's with everything that can be drawn, an environment that simulates one, and where its shapes must be."""

from __future__ import annotations

import gymnasium
import mujoco
import numpy as np

GEOMS = """
<mujoco>
  <asset>
    <texture name="checker" type="2d" builtin="checker" width="64" height="64" rgb1=".2 .3 .4" rgb2=".6 .7 .8"/>
    <material name="floor" texture="checker" texrepeat="2 2" texuniform="true"/>
    <material name="red" rgba=".9 .1 .1 1"/>
    <mesh name="wedge" vertex="0 0 0  .3 0 0  0 .3 0  0 0 .3"/>
    <hfield name="hills" nrow="8" ncol="6" size="1 1 .2 .1"/>
  </asset>
  <worldbody>
    <geom name="ground" type="plane" size="3 3 .1" material="floor"/>
    <geom name="field" type="hfield" hfield="hills" pos="4 0 0"/>
    <body name="welded" pos="0 0 .5" euler="0 30 0"><geom name="shelf" type="box" size=".2 .1 .05"/></body>
    <body name="free" pos="0 0 1"><freejoint/>
      <geom name="ball" type="sphere" size=".1" material="red"/>
      <geom name="egg" type="ellipsoid" size=".1 .2 .3" pos=".2 0 0" euler="10 20 30"/>
      <body name="arm" pos="0 .2 0"><joint type="hinge" axis="0 1 0"/>
        <geom name="bone" type="capsule" fromto="0 0 0 .3 0 .1" size=".04"/>
        <body name="hand" pos=".3 0 .1"><joint type="ball"/>
          <geom name="can" type="cylinder" size=".05 .1" euler="40 0 0"/>
          <body name="finger"><joint type="slide" axis="0 0 1"/><geom name="block" type="box" size=".02 .03 .04" pos="0 0 .1"/></body>
        </body>
      </body>
    </body>
    <body name="wedged" pos="1 1 1"><freejoint/><geom name="stone" type="mesh" mesh="wedge"/></body>
    <body name="target" mocap="true" pos="1 0 1"><geom name="mark" type="sphere" size=".05" contype="0" conaffinity="0"/></body>
    <body name="hidden" pos="2 2 2"><freejoint/><geom name="ghost" type="sphere" size=".1" group="4"/></body>
    <body name="tied" pos="-1 0 1"><joint type="hinge" axis="0 1 0"/>
      <geom name="rod" type="capsule" size=".03 .2"/><site name="tip" pos="0 0 .2" size=".02"/></body>
    <site name="nail" pos="-1 0 2" size=".02"/>
  </worldbody>
  <tendon><spatial name="rope"><site site="nail"/><site site="tip"/></spatial></tendon>
</mujoco>
"""
"""All types of geoms and joints, nested, welded and mocap bodies, and a tendon."""


class Simulated(gymnasium.Env):
    """Drops the bodies of a model. The mocap body goes along a line."""

    def __init__(self, xml=GEOMS, push=0.1):
        self.model = mujoco.MjModel.from_xml_string(xml)
        self.data = mujoco.MjData(self.model)
        self.push = push
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (self.model.nq,), np.float64)
        self.action_space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)
        self.states = []  # qpos, mocap_pos and mocap_quat when the recorder looks

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        mujoco.mj_resetData(self.model, self.data)
        self.data.qvel[:] = self.np_random.normal(size=self.model.nv)
        return self._now(), {}

    def step(self, action):
        if self.model.nmocap:
            self.data.mocap_pos[0, 0] += self.push
        mujoco.mj_step(self.model, self.data, 5)
        return self._now(), float(action[0]), False, False, {}

    def _now(self):
        data = self.data
        self.states.append(np.concatenate([data.qpos, data.mocap_pos.ravel(), data.mocap_quat.ravel()]))
        return data.qpos.copy()


def forward(model, state):
    """Return the data of ``mj_forward`` at a state."""
    data = mujoco.MjData(model)
    count = model.nq
    data.qpos[:] = state[:count]
    data.mocap_pos[:] = state[count : count + 3 * model.nmocap].reshape(-1, 3)
    data.mocap_quat[:] = state[count + 3 * model.nmocap :].reshape(-1, 4)
    mujoco.mj_forward(model, data)
    return data
