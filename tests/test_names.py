"""Names of the numbers of well-known environments, and names by the user."""

from __future__ import annotations

import functools
import re
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from torchrl.envs import (
    CatFrames,
    Compose,
    GymEnv,
    GymWrapper,
    ObservationNorm,
    ParallelEnv,
    RenameTransform,
    SerialEnv,
    StepCounter,
    TransformedEnv,
)
from torchrl.envs.libs.vmas import VmasEnv

from environments import OfOnesOwn
from readback import read
from torchrl_rerun import RerunRecorder
from torchrl_rerun.chunks.chunks import static_chunks
from torchrl_rerun.kinds.leaf import Leaf
from torchrl_rerun.kinds.scalars import Scalars
from torchrl_rerun.kinds.streams import Stream
from torchrl_rerun.recording.known_names import ATARI_ACTIONS, KNOWN, MINIMAL_ACTIONS, Robot, of_simulator
from torchrl_rerun.transform.known_names import known_names

CARTPOLE = ["cart position", "cart velocity", "pole angle", "pole angular velocity"]
CHEETAH = [
    *("rootz", "rooty", "bthigh", "bshin", "bfoot", "fthigh", "fshin", "ffoot"),
    *(f"{joint} vel" for joint in ["rootx", "rootz", "rooty", "bthigh", "bshin", "bfoot", "fthigh", "fshin", "ffoot"]),
]

pytestmark = pytest.mark.filterwarnings("ignore:.*out of date", "ignore:.*Gym")


def names_in(path, env, *, steps=3, **options):
    """Record a few steps. Return the names in the schema by key, and the recording."""
    env = env.append_transform(RerunRecorder(path, **options))
    env.rollout(steps, break_when_any_done=False)
    env.close()
    recorded = read(path)
    return {entry["key"][-1]: entry["names"] for entry in recorded.schema["keys"] if "names" in entry}, recorded


def wrapped_cartpole():
    return TransformedEnv(GymWrapper(gymnasium.make("CartPole-v1")), StepCounter())


# --- known environments ---


@pytest.mark.parametrize(
    "make",
    [
        lambda: GymEnv("CartPole-v1"),
        lambda: GymEnv("CartPole-v1", categorical_action_encoding=True),
        wrapped_cartpole,
        lambda: SerialEnv(2, functools.partial(GymEnv, "CartPole-v1")),
        lambda: SerialEnv(2, [functools.partial(GymEnv, f"CartPole-v{i}") for i in (0, 1)]),
        lambda: ParallelEnv(2, functools.partial(GymEnv, "CartPole-v1")),
        lambda: GymEnv("CartPole-v1", num_envs=2),
    ],
    ids=["single", "categorical", "wrapper", "serial", "two versions", "parallel", "vector"],
)
def test_cartpole_has_names_in_each_kind_of_batch(path, make):
    names, recorded = names_in(path, make(), steps=20)
    assert names == {"observation": CARTPOLE, "action": ["left", "right"]}
    for env in recorded.schema["envs"]:
        assert recorded.static[f"/env_{env}/observation"]["SeriesLines:names"] == CARTPOLE
        assert recorded.static[f"/env_{env}/action"]["StateConfiguration:labels"] == ["left", "right"]
        states = {label for labels in recorded[f"/env_{env}/action"].states for label in labels or ()}
        assert states == {"left", "right"}


def test_environments_of_different_types_in_a_batch_have_no_names(path):
    """Both robots have 17 numbers and 6 actions."""
    robots = [functools.partial(GymEnv, name) for name in ("HalfCheetah-v5", "Walker2d-v5")]
    assert not names_in(path, SerialEnv(2, robots))[0]
    assert not known_names(Leaf(("action",), "float32", (6,)), ParallelEnv(2, robots))


@pytest.mark.parametrize(
    ("make", "leaf", "expected"),
    [
        (wrapped_cartpole, Leaf(("observation",), "float32", (4,)), CARTPOLE),
        (functools.partial(GymEnv, "HalfCheetah-v5"), Leaf(("observation",), "float64", (17,)), CHEETAH),
        (functools.partial(GymEnv, "HalfCheetah-v5"), Leaf(("observation",), "float64", (18,)), ["rootx", *CHEETAH]),
        (functools.partial(GymEnv, "HalfCheetah-v5"), Leaf(("observation",), "float64", (19,)), []),
        (functools.partial(GymEnv, "HalfCheetah-v5"), Leaf(("action",), "float32", (6,)), CHEETAH[2:8]),
    ],
)
def test_environments_in_workers_have_names_without_starting_them(make, leaf, expected):
    """No worker is started."""
    env = ParallelEnv(2, make)
    assert list(known_names(leaf, env)) == expected
    assert env.is_closed


class OfOnesOwnThatSays(OfOnesOwn):
    def get_action_meanings(self):
        return ["push", "pull"]


class OfOnesOwnThatFails(OfOnesOwn):
    def get_action_meanings(self):
        raise RuntimeError


def test_unknown_environments_have_the_names_that_they_declare(path, tmp_path):
    assert not names_in(path, GymWrapper(OfOnesOwn()))[0]
    assert names_in(tmp_path / "says.rrd", GymWrapper(OfOnesOwnThatSays()))[0] == {"action": ["push", "pull"]}
    assert not names_in(tmp_path / "fails.rrd", GymWrapper(OfOnesOwnThatFails()))[0]


# --- keys that get names ---


def test_the_users_names_win(path):
    own = {"observation": list("abcd"), "action": []}
    names, recorded = names_in(path, GymEnv("CartPole-v1"), names=own)
    assert names == {"observation": list("abcd")}
    assert recorded.static["/env_0/action"]["StateConfiguration:labels"] == ["0", "1"]


@pytest.mark.parametrize(
    ("transform", "named"),
    [
        (lambda: ObservationNorm(loc=1.0, scale=2.0, in_keys=["observation"]), True),
        (lambda: CatFrames(N=2, dim=-1, in_keys=["observation"]), False),
        (lambda: RenameTransform(["observation"], ["state"]), False),
    ],
    ids=["another scale", "another size", "another key"],
)
def test_observations_that_a_transform_changes_have_no_names(path, transform, named):
    names, _ = names_in(path, TransformedEnv(GymEnv("CartPole-v1"), Compose(transform())))
    assert names == {"action": ["left", "right"]} | ({"observation": CARTPOLE} if named else {})


@pytest.mark.parametrize(
    ("kinds", "left"),
    [
        ({"observation": "tensor"}, {"action"}),
        ({"action": "scalars"}, {"observation"}),
        ({}, {"action", "observation"}),
    ],
)
def test_keys_of_another_kind_have_no_names(path, kinds, left):
    assert set(names_in(path, GymEnv("CartPole-v1"), kinds=kinds)[0]) == left


# --- MuJoCo ---


@pytest.mark.parametrize("version", [4, 5])
def test_numbers_of_a_robot_are_named_by_its_joints(path, version):
    names, recorded = names_in(path, GymEnv(f"HalfCheetah-v{version}"))
    assert names == {"observation": CHEETAH, "action": CHEETAH[2:8]}
    assert recorded.static["/env_0/observation"]["SeriesLines:names"] == CHEETAH
    colors = dict(zip(CHEETAH, recorded.static["/env_0/observation"]["SeriesLines:colors"], strict=True))
    assert len({colors[name] for name in CHEETAH[:8]}) == 8
    assert all(colors[name] == colors[f"{name} vel"] for name in CHEETAH[:8])


ROBOTS = sorted(
    spec.id
    for spec in gymnasium.registry.values()
    if str(spec.entry_point).startswith("gymnasium.envs.mujoco")
    and spec.version in (4, 5)
    and spec.id != "Pusher-v4"  # not supported by MuJoCo 3 and later
)


def known(name):
    path = str(gymnasium.spec(name).entry_point).removeprefix("gymnasium.envs.")
    return KNOWN[re.sub(r"_v[45]:", ":", path)]


@pytest.mark.parametrize("name", ROBOTS)
def test_known_names_of_robots_equal_those_of_their_models(name):
    """Names from a model equal the names that are used without the model."""
    env = gymnasium.make(name)
    names, ours = of_simulator(env.unwrapped), known(name)
    (size,) = env.observation_space.shape
    assert names.controls == ours.controls
    of_this_size, expected = ([o for o in each.observations if len(o) == size] for each in (names, ours))
    assert of_this_size == expected
    assert expected or size > 64  # too many for a plot


@pytest.mark.parametrize("name", [name for name in ROBOTS if name.endswith("v5") and "Humanoid" not in name])
def test_each_name_of_an_observation_belongs_to_its_joint(name):
    """Moving a joint changes only the numbers with the name of that joint."""
    import mujoco

    options = {"Ant-v5": {"include_cfrc_ext_in_observation": False}}
    env = gymnasium.make(name, **options.get(name, {}))
    env.reset(seed=0)
    simulator = env.unwrapped
    (labels,) = (each for each in known(name).observations if len(each) == env.observation_space.shape[0])
    robot = Robot.of(simulator.model)
    seen = set()
    for joints, values in ((robot.positions, simulator.data.qpos), (robot.velocities, simulator.data.qvel)):
        for i, joint in enumerate(joints):
            before, value = simulator._get_obs(), values[i]
            values[i] += 0.1
            mujoco.mj_forward(simulator.model, simulator.data)
            changed = ~np.isclose(before, simulator._get_obs(), atol=1e-4)
            values[i] = value
            mujoco.mj_forward(simulator.model, simulator.data)
            moved = {labels[k] for k in np.flatnonzero(changed)} & {*robot.positions, *robot.velocities}
            assert moved == {joint} & set(labels)
            seen |= moved
    assert seen == set(labels) & {*robot.positions, *robot.velocities}
    assert seen


# --- other environments ---


def test_gridworld_actions_move_in_their_named_direction():
    moves = {"left": (0, -1), "right": (0, 1), "up": (-1, 0), "down": (1, 0)}
    (lake,), (cliff,), (taxi,) = (
        KNOWN[f"toy_text.{name}"].actions
        for name in ("frozen_lake:FrozenLakeEnv", "cliffwalking:CliffWalkingEnv", "taxi:TaxiEnv")
    )
    for labels, env, columns, start in (
        (lake, gymnasium.make("FrozenLake-v1", is_slippery=False, desc=["SFFF"] * 4), 4, 5),
        (cliff, gymnasium.make("CliffWalking-v1"), 12, 13),
    ):
        for action, label in enumerate(labels):
            ((_, after, _, _),) = env.unwrapped.P[start][action]
            assert divmod(after, columns) == tuple(np.add(divmod(start, columns), moves[label]))
    simulator = gymnasium.make("Taxi-v4").unwrapped
    for action, label in enumerate(taxi[:4]):
        ((_, after, _, _),) = simulator.P[simulator.encode(2, 2, 0, 1)][action]
        assert list(simulator.decode(after))[:2] == list(np.add((2, 2), moves[label]))


def test_classic_control_actions_move_in_their_named_direction():
    cartpole = gymnasium.make("CartPole-v1")
    cartpole.reset(seed=0)
    for action, sign in ((0, -1), (1, 1)):
        assert KNOWN["classic_control.cartpole:CartPoleEnv"].actions[0][action] == ("left", "right")[action]
        before = cartpole.unwrapped.state[1]
        assert np.sign(cartpole.step(action)[0][1] - before) == sign
    pendulum = gymnasium.make("Pendulum-v1")
    pendulum.reset(seed=0)
    theta, velocity = pendulum.unwrapped.state
    assert np.allclose(pendulum.unwrapped._get_obs(), [np.cos(theta), np.sin(theta), velocity])


@pytest.mark.parametrize("name", ["LunarLander-v3", "BipedalWalker-v3", "CarRacing-v3"])
@pytest.mark.parametrize("continuous", [True, False])
def test_box2d_environments_have_names(path, name, continuous):
    pytest.importorskip("Box2D")
    if name == "BipedalWalker-v3" and not continuous:
        pytest.skip("it has no discrete actions")
    options = {} if name == "BipedalWalker-v3" else {"continuous": continuous}
    names, recorded = names_in(path, GymEnv(name, **options))
    (entry,) = (entry for entry in recorded.schema["keys"] if entry["key"] == ["action"])
    assert len(names["action"]) == entry["shape"][0]
    assert ("observation" in names) == (name != "CarRacing-v3")


@pytest.fixture(scope="module")
def ale():
    module = pytest.importorskip("ale_py")
    gymnasium.register_envs(module)
    return module


@pytest.mark.parametrize("full", [False, True])
def test_atari_games_have_names_in_this_process_and_in_workers(path, ale, full):
    make = functools.partial(GymEnv, "ALE/Breakout-v5", full_action_space=full)
    names, _ = names_in(path, make())
    assert names["action"] == (list(ATARI_ACTIONS) if full else ["NOOP", "FIRE", "RIGHT", "LEFT"])
    leaf = Leaf(("action",), "int64", (len(names["action"]),), discrete="one_hot", categories=(len(names["action"]),))
    assert list(known_names(leaf, ParallelEnv(2, make))) == names["action"]


def test_names_of_atari_actions_equal_those_of_the_emulator(ale):
    ale.ALEInterface.setLoggerMode(ale.LoggerMode.Error)
    assert list(ATARI_ACTIONS) == list(ale.Action.__members__)
    for games, indices in {**MINIMAL_ACTIONS, "seaquest": tuple(range(18))}.items():
        interface = ale.ALEInterface()
        interface.loadROM(ale.roms.get_rom_path(games.split()[0]))
        assert tuple(action.value for action in interface.getMinimalActionSet()) == indices


# --- display ---


def test_agents_have_names_and_colours_of_their_own(path):
    _, recorded = names_in(path, VmasEnv("flocking", num_envs=2, n_agents=3, max_steps=20))
    agents = ["agent_0", "agent_1", "agent_2"]
    styles = [recorded.static[f"/env_1/agents/action/{agent}"] for agent in agents]
    assert [style["SeriesLines:names"] for style in styles] == [["action[0]", "action[1]"]] * 3  # each agent has a plot
    assert len({tuple(style["SeriesLines:colors"]) for style in styles}) == 1
    lines = {
        tuple(recorded.static[f"/env_{env}/agents/{key}/{agent}"]["SeriesLines:colors"][0] for agent in agents)
        for env in (0, 1)
        for key in ("reward", "episode_return")
    }
    assert len(lines) == 1  # colours are equal on all plots
    assert len(set(*lines)) == 3


def test_agents_of_several_groups_have_colours_of_their_own():
    groups = {"wolves": ("wolf_0", "wolf_1"), "sheep": ("sheep_0",)}
    rewards = [Stream((group, "reward"), Scalars(), "float32", (len(a), 1), agents=a) for group, a in groups.items()]
    (colors,) = zip(
        *(chunk.to_record_batch().column("SeriesLines:colors").to_pylist()[0] for chunk in static_chunks(rewards, [0])),
        strict=True,
    )
    assert len(set(colors)) == 3


def test_a_one_hot_state_of_many_categories_is_a_single_lane(path):
    """Taxi has 500 states, one-hot encoded."""
    names, recorded = names_in(path, GymEnv("Taxi-v4"), steps=20)
    assert names == {"action": ["down", "up", "right", "left", "pick up", "drop off"]}
    assert recorded.kind("observation") == "state"
    rows = recorded["/env_0/observation"]
    shown = [labels[0] for labels in rows.states if labels]
    assert shown[0] == str(rows.values[0].argmax().item())
    assert all(value.sum() == 1 for value in rows.values)


def test_the_docs_list_all_known_environments():
    """The table on the page equals that of the module."""
    page = Path(__file__).parents[1].joinpath("docs", "names.md").read_text()
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", page, re.MULTILINE))
    assert rows == {
        path.partition(":")[2].removesuffix("Env"): " | ".join(
            " *or* ".join(map(", ".join, lists)) for lists in (names.observations[:1], names.actions + names.controls)
        )
        for path, names in KNOWN.items()
    }
