"""Known names: names of the observations and actions of well-known environments, as Gymnasium knows these.

- A simulator in this process is found by its class, and may name its own actions.
- A simulator elsewhere is found by the id that it is registered under.
- Names are used only if they fit a key in kind and size: a wrong name is worse than none.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torchrl_rerun.kinds.leaf import Leaf

Labels = tuple[str, ...]
"""Names in the order of what they name."""

_GYMNASIUM = "gymnasium.envs."


@dataclass(frozen=True)
class Names:
    """Names of an environment's numbers: one list for each kind of number, or several of different lengths.

    Attributes:
        observations: names of the numbers of ``"observation"``.
        actions: names of the categories of a discrete ``"action"``.
        controls: names of the numbers of a continuous ``"action"``.
    """

    observations: tuple[Labels, ...] = ()
    actions: tuple[Labels, ...] = ()
    controls: tuple[Labels, ...] = ()


def names_for(leaf: Leaf, names: Callable[[], Names]) -> Labels:
    """Return the names of the numbers or the categories of a key; empty: unknown.

    Args:
        leaf: the facts about the key.
        names: returns the names of the environment. Called for observations and actions alone, and may fail.
    """
    if leaf.key not in (("observation",), ("action",)):
        return ()
    is_row = len(leaf.shape) == 1
    if leaf.key == ("observation",):
        candidates, fits, size = "observations", leaf.discrete is None and is_row, math.prod(leaf.shape)
    elif leaf.discrete is None:
        candidates, fits, size = "controls", is_row, math.prod(leaf.shape)
    else:
        one = is_row if leaf.discrete == "one_hot" else leaf.shape in ((), (1,))
        candidates, fits, size = "actions", one and len(leaf.categories) == 1, max(leaf.categories, default=0)
    if not fits:
        return ()
    with contextlib.suppress(Exception):  # code of the environment runs here: names aren't worth an error
        return next((labels for labels in getattr(names(), candidates) if len(labels) == size), ())
    return ()


def common(found: Iterable[Names]) -> Names:
    """Return the names that all environments of a batch share; none if they differ.

    Args:
        found: the names of each environment.
    """
    several = set(found)
    return several.pop() if len(several) == 1 else Names()


def of_id(name: str) -> Names:
    """Return the names of an environment that is registered with gymnasium.

    Args:
        name: the id of the environment.
    """
    import gymnasium  # noqa: PLC0415 - the engine imports no framework

    spec = gymnasium.registry.get(name.rpartition(":")[2])
    if spec is None or spec.entry_point is None:
        return Names()
    point = spec.entry_point
    path = point if isinstance(point, str) else _path(point)
    if path == ATARI:
        game = spec.kwargs.get("game", "")
        minimal = [indices for games, indices in MINIMAL_ACTIONS.items() if game in games.split()]
        return Names(actions=(ATARI_ACTIONS, *(tuple(ATARI_ACTIONS[i] for i in indices) for indices in minimal)))
    return _of_path(path)


def of_simulator(simulator: Any) -> Names:
    """Return the names of a simulator in this process, from its class, its methods and its MuJoCo model.

    Args:
        simulator: a gymnasium environment, unwrapped.
    """
    known = _of_path(_path(type(simulator)))
    if callable(getattr(simulator, "get_action_meanings", None)):
        return dataclasses.replace(known, actions=(tuple(map(str, simulator.get_action_meanings())),))
    model = getattr(simulator, "model", None)
    if type(model).__name__ == "MjModel":
        robot = Robot.of(model)
        structure = getattr(simulator, "observation_structure", None)
        if isinstance(structure, dict):
            return robot.names(structure.get("skipped_qpos", 0))
        is_the_known_one = known.controls == (robot.actuators,)
        return Names(known.observations if is_the_known_one else (), controls=(robot.actuators,))
    return known


def _path(thing: type | Callable[..., Any]) -> str:
    return f"{thing.__module__}:{getattr(thing, '__qualname__', '')}"  # a partial function has none


def _of_path(path: str) -> Names:
    """Return the names of the environments of a class, of any version."""
    if not path.startswith(_GYMNASIUM):
        return Names()
    return KNOWN.get(re.sub(r"_v[45]:", ":", path.removeprefix(_GYMNASIUM)), Names())


# --- MuJoCo ---

_FREE = ("x", "y", "z", "qw", "qx", "qy", "qz"), ("vx", "vy", "vz", "wx", "wy", "wz")
_BALL = ("qw", "qx", "qy", "qz"), ("wx", "wy", "wz")


@dataclass(frozen=True)
class Robot:
    """Names of the parts of a MuJoCo model.

    Attributes:
        positions: names of the numbers of ``qpos``.
        velocities: names of the numbers of ``qvel``.
        actuators: names of the actuators. An actuator without a name has that of the joint which it moves.
    """

    positions: Labels
    velocities: Labels
    actuators: Labels

    @classmethod
    def of(cls, model: Any) -> Robot:
        """Return the robot of a compiled ``mujoco.MjModel``."""
        positions: list[str] = []
        velocities: list[str] = []
        for index in range(model.njnt):
            joint = model.joint(index)
            of_position, of_velocity = {0: _FREE, 1: _BALL}.get(int(joint.type[0]), (("",), ("vel",)))
            positions += [f"{joint.name} {part}".strip() for part in of_position]
            velocities += [f"{joint.name} {part}".strip() for part in of_velocity]
        actuators = [
            model.actuator(index).name or model.joint(int(model.actuator(index).trnid[0])).name
            for index in range(model.nu)
        ]
        return cls(tuple(positions), tuple(velocities), tuple(actuators))

    @classmethod
    def hinged(cls, joints: str, actuators: str) -> Robot:
        """Return a robot of joints that slide or turn about an axis.

        >>> Robot.hinged("slider hinge", "slide").velocities
        ('slider vel', 'hinge vel')
        """
        names = tuple(joints.split())
        return cls(names, tuple(f"{name} vel" for name in names), tuple(actuators.split()))

    def names(self, *left_out: int) -> Names:
        """Return names for observations of the positions and all velocities.

        Args:
            left_out: numbers of first positions that are left out, one for each version of the observation.
        """
        observations = tuple(self.positions[count:] + self.velocities for count in left_out)
        return Names(observations, controls=(self.actuators,))


_ANT_JOINTS = "hip_1 ankle_1 hip_2 ankle_2 hip_3 ankle_3 hip_4 ankle_4"
_ARM = (
    "r_shoulder_pan_joint r_shoulder_lift_joint r_upper_arm_roll_joint r_elbow_flex_joint r_forearm_roll_joint "
    "r_wrist_flex_joint r_wrist_roll_joint"
)
_LEGS = "thigh_joint leg_joint foot_joint"
_TWO_LEGS = f"{_LEGS} thigh_left_joint leg_left_joint foot_left_joint"
_CHEETAH = "bthigh bshin bfoot fthigh fshin ffoot"
_HUMANOID = (
    "abdomen_y abdomen_z abdomen_x right_hip_x right_hip_z right_hip_y right_knee left_hip_x left_hip_z left_hip_y "
    "left_knee right_shoulder1 right_shoulder2 right_elbow left_shoulder1 left_shoulder2 left_elbow"
)


def _ant() -> Names:
    legs = Robot.hinged(_ANT_JOINTS, "hip_4 ankle_4 hip_1 ankle_1 hip_2 ankle_2 hip_3 ankle_3")
    positions, velocities = (tuple(f"root {part}" for part in parts) for parts in _FREE)
    return Robot(positions + legs.positions, velocities + legs.velocities, legs.actuators).names(2, 0)


# --- known environments ---


def _called(*, observation: str = "", actions: str = "", controls: str = "", shorter: int | None = None) -> Names:
    """Return names, given as lists with commas between them.

    Args:
        observation: names of the numbers of an observation.
        actions: names of the categories of a discrete action.
        controls: names of the numbers of a continuous action.
        shorter: the number of the observation's numbers in another version of the environment.
    """
    observed = tuple(observation.split(", "))
    return Names(
        observations=() if not observation else (observed,) if shorter is None else (observed[:shorter], observed),
        actions=(tuple(actions.split(", ")),) if actions else (),
        controls=(tuple(controls.split(", ")),) if controls else (),
    )


KNOWN: Mapping[str, Names] = {
    "classic_control.acrobot:AcrobotEnv": _called(
        observation="cos theta1, sin theta1, cos theta2, sin theta2, theta1 vel, theta2 vel",
        actions="torque -1, torque 0, torque +1",
    ),
    "classic_control.cartpole:CartPoleEnv": _called(
        observation="cart position, cart velocity, pole angle, pole angular velocity", actions="left, right"
    ),
    "classic_control.mountain_car:MountainCarEnv": _called(
        observation="car position, car velocity", actions="left, coast, right"
    ),
    "classic_control.continuous_mountain_car:Continuous_MountainCarEnv": _called(
        observation="car position, car velocity", controls="force"
    ),
    "classic_control.pendulum:PendulumEnv": _called(
        observation="cos theta, sin theta, angular velocity", controls="torque"
    ),
    "toy_text.blackjack:BlackjackEnv": _called(actions="stick, hit"),
    "toy_text.cliffwalking:CliffWalkingEnv": _called(actions="up, right, down, left"),
    "toy_text.frozen_lake:FrozenLakeEnv": _called(actions="left, down, right, up"),
    "toy_text.taxi:TaxiEnv": _called(actions="down, up, right, left, pick up, drop off"),
    "box2d.bipedal_walker:BipedalWalker": _called(
        observation="hull angle, hull angular velocity, vx, vy, "
        "hip 1, hip 1 vel, knee 1, knee 1 vel, leg 1 contact, hip 2, hip 2 vel, knee 2, knee 2 vel, leg 2 contact, "
        + ", ".join(f"lidar {i}" for i in range(10)),
        controls="hip 1, knee 1, hip 2, knee 2",
    ),
    "box2d.car_racing:CarRacing": _called(
        actions="nothing, steer right, steer left, gas, brake", controls="steering, gas, brake"
    ),
    "box2d.lunar_lander:LunarLander": _called(
        observation="x, y, vx, vy, angle, angular velocity, leg 1 contact, leg 2 contact",
        actions="nothing, left engine, main engine, right engine",
        controls="main engine, side engines",
    ),
    "mujoco.ant:AntEnv": _ant(),
    "mujoco.half_cheetah:HalfCheetahEnv": Robot.hinged(f"rootx rootz rooty {_CHEETAH}", _CHEETAH).names(1, 0),
    "mujoco.hopper:HopperEnv": Robot.hinged(f"rootx rootz rooty {_LEGS}", _LEGS).names(1, 0),
    "mujoco.humanoid:HumanoidEnv": Names(controls=(tuple(_HUMANOID.split()),)),
    "mujoco.humanoidstandup:HumanoidStandupEnv": Names(controls=(tuple(_HUMANOID.split()),)),
    "mujoco.inverted_double_pendulum:InvertedDoublePendulumEnv": _called(
        observation="slider, sin hinge, sin hinge2, cos hinge, cos hinge2, slider vel, hinge vel, hinge2 vel, "
        "slider constraint, hinge constraint, hinge2 constraint",
        controls="slide",
        shorter=9,
    ),
    "mujoco.inverted_pendulum:InvertedPendulumEnv": Robot.hinged("slider hinge", "slide").names(0),
    "mujoco.pusher:PusherEnv": _called(
        observation=", ".join([*_ARM.split(), *(f"{joint} vel" for joint in _ARM.split())])
        + ", tip x, tip y, tip z, object x, object y, object z, goal x, goal y, goal z",
        controls=", ".join(_ARM.split()),
    ),
    "mujoco.reacher:ReacherEnv": _called(
        observation="cos joint0, cos joint1, sin joint0, sin joint1, target_x, target_y, joint0 vel, joint1 vel, "
        "tip-target x, tip-target y, tip-target z",
        controls="joint0, joint1",
        shorter=10,
    ),
    "mujoco.swimmer:SwimmerEnv": Robot.hinged(
        "slider1 slider2 free_body_rot motor1_rot motor2_rot", "motor1_rot motor2_rot"
    ).names(2, 0),
    "mujoco.walker2d:Walker2dEnv": Robot.hinged(f"rootx rootz rooty {_TWO_LEGS}", _TWO_LEGS).names(1, 0),
}
"""Names by the module and class of gymnasium's own environments, without the version."""

ATARI = "ale_py.env:AtariEnv"
"""The class of all Atari games."""

ATARI_ACTIONS: Labels = (
    *("NOOP", "FIRE", "UP", "RIGHT", "LEFT", "DOWN", "UPRIGHT", "UPLEFT", "DOWNRIGHT", "DOWNLEFT"),
    *("UPFIRE", "RIGHTFIRE", "LEFTFIRE", "DOWNFIRE", "UPRIGHTFIRE", "UPLEFTFIRE", "DOWNRIGHTFIRE", "DOWNLEFTFIRE"),
)
"""The actions of a joystick with a button."""

MINIMAL_ACTIONS: Mapping[str, tuple[int, ...]] = {
    "freeway": (0, 2, 5),
    "skiing": (0, 3, 4),
    "backgammon": (1, 3, 4),
    "blackjack casino": (0, 1, 2, 5),
    "breakout kaboom": (0, 1, 3, 4),
    "atlantis atlantis2": (0, 1, 11, 12),
    "tetris": (0, 1, 3, 4, 5),
    "frogger pacman surround": (0, 2, 3, 4, 5),
    "video_checkers": (1, 6, 7, 8, 9),
    "basic_math king_kong qbert": (0, 1, 2, 3, 4, 5),
    "bowling pooyan up_n_down": (0, 1, 2, 5, 10, 13),
    "air_raid carnival demon_attack galaxian name_this_game pong sir_lancelot space_invaders": (0, 1, 3, 4, 11, 12),
    "assault": (0, 1, 2, 3, 4, 11, 12),
    "gopher": (0, 1, 2, 3, 4, 10, 11, 12),
    "phoenix": (0, 1, 3, 4, 5, 11, 12, 13),
    "tutankham": (0, 2, 3, 4, 5, 10, 11, 12),
    "video_pinball": (0, 1, 2, 3, 4, 5, 10, 11, 12),
    "beam_rider": (0, 1, 2, 3, 4, 6, 7, 11, 12),
    "enduro": (0, 1, 3, 4, 5, 8, 9, 11, 12),
    "asterix crazy_climber koolaid lost_luggage ms_pacman": (0, 2, 3, 4, 5, 6, 7, 8, 9),
    "othello tic_tac_toe_3d video_chess": (0, 1, 2, 3, 4, 5, 6, 7, 8, 9),
    "amidar mr_do time_pilot wizard_of_wor": (0, 1, 2, 3, 4, 5, 10, 11, 12, 13),
    "turmoil": (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12),
    "keystone_kapers": (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13),
    "asteroids": (0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 12, 13, 14, 15),
    "kung_fu_master": (0, 2, 3, 4, 5, 8, 9, 11, 12, 13, 14, 15, 16, 17),
    "journey_escape": (0, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 14, 15, 16, 17),
}
"""Indices of the actions that games have by default, by the names of the games. Other games have all actions."""
