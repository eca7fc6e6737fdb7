"""The default layout: as the viewer shows it for each scene of the gallery, and its parts."""

from __future__ import annotations

import functools
import subprocess
from pathlib import Path

import pytest
import rerun as rr
import rerun.blueprint as rrb
from rerun.chunk import RrdReader
from torchrl.envs import GymEnv, ParallelEnv, SerialEnv

from environments import Walkers
from looking import mujoco_draws, opened, record, rerun_views, trouble
from programs import python
from readback import read
from torchrl_rerun import RerunRecorder, layout
from torchrl_rerun.kinds.image import Image
from torchrl_rerun.kinds.scalars import Scalars
from torchrl_rerun.kinds.state import State
from torchrl_rerun.kinds.streams import Stream

cartpole = functools.partial(GymEnv, "CartPole-v1")

SCENES = (
    "one_environment",
    "four_environments",
    "sixteen_environments",
    "sixty_four_environments",
    "thousands_of_environments",
    "joints",
    "long_vectors",
    "agents",
    "cameras",
    "the_worst_episode",
)


@pytest.fixture(scope="module")
def gallery(tmp_path_factory):
    mujoco_draws()
    # In a process of its own: the drawing libraries interfere with each other.
    code = """
import sys
from pathlib import Path
import gallery
for name, scene in gallery.SCENES.items():
    print(name, scene.record(Path(sys.argv[1], f"{name}.rrd"), 24), sep="=")
"""
    folder, docs = tmp_path_factory.mktemp("gallery"), Path(__file__).parents[1] / "docs"
    done = subprocess.run([*python(), "-c", code, str(folder)], cwd=docs, capture_output=True, text=True, timeout=400)
    assert not done.returncode, done.stderr
    files = dict(line.split("=", 1) for line in done.stdout.splitlines() if line.split("=")[0] in SCENES)
    assert tuple(files) == SCENES
    return files


@pytest.mark.parametrize("name", SCENES)
def test_views_of_each_scene_have_no_errors(name, gallery, viewer):
    file = gallery[name]
    assert len(RrdReader(file).blueprints()) == 1
    views = opened(viewer, file, 5)
    assert views
    assert trouble(views) == []


def test_a_wall_shows_pictures_of_all_environments_and_plots_in_tabs(viewer, path):
    record(SerialEnv(20, cartpole), path, 5)
    views = rerun_views(opened(viewer, path, 3))
    assert {(origin, name) for _, origin, name in views if ":" not in name} == {
        *((f"/env_{env}", f"env {env}") for env in range(20)),
        ("/", "episode_return of the first 16 environments, whole run"),
    }
    assert {name for _, _, name in views if ":" in name} == {
        f"env {env}: {name}"
        for env in range(8)  # a tab for each
        for name in ("reward", "action, terminated, truncated", "observation")
    }


def recorded_of(envs, *streams):
    return layout.Recorded(streams, envs)


def names_in(part):
    if isinstance(part, rrb.Container):
        return [name for each in part.contents for name in names_in(each)]
    return [part.name]


REWARD = Stream(("reward",), Scalars(), "float32", (1,))
RETURN = Stream(("episode_return",), Scalars(), "float64", (1,), reward_key=("reward",))
FLAG = Stream(("terminated",), State(), "bool", (1,))


def test_actions_come_before_counters():
    many = [Stream((name,), Scalars(), "float32", (2,)) for name in ("step_count", "position", "action")]
    names = names_in(layout.cell(recorded_of([0], REWARD, RETURN, *many), 0))
    assert names == ["reward", "action", "position", "step_count"]


def test_returns_have_a_plot_of_their_own():
    def names(envs, *streams, **known):
        return names_in(layout.layout(layout.Recorded([REWARD, RETURN, *streams], envs, **known)).root_container)

    picture = Stream(("pixels",), Image(channels="HWC"), "uint8", (8, 8, 3))
    assert names([0]) == ["reward", "episode_return, whole run"]
    assert names([None]) == ["reward", "return"]
    assert names([0, 1], statistics=[("reward",)]) == [
        "reward of all environments, whole run",
        "env 0",
        "env 1",
        "env 0: reward",
        "env 1: reward",
    ]
    of_each = [f"env {env}: {name}" for env in (0, 1) for name in ("pixels", "reward", "return")]
    assert names([0, 1], picture, statistics=[("reward",)])[3:] == of_each


def test_each_agent_has_a_plot_of_its_own():
    observation = Stream(("agents", "observation"), Scalars(), "float32", (2, 4), agents=("fox", "hare"))
    reward = Stream(("agents", "reward"), Scalars(), "float32", (2, 1), agents=("fox", "hare"))
    names = [name for part in layout.plots(recorded_of([0], reward, observation), 0) for name in names_in(part)]
    assert names == ["reward of each agent", "fox: observation", "hare: observation"]


def views_in(part):
    return [view for each in part.contents for view in views_in(each)] if isinstance(part, rrb.Container) else [part]


def axis_of(view):
    """Return the range of the time axis of a view."""
    axis = view.properties.get("TimeAxis") or view.properties["TimeView"]
    [span] = axis.view_range.as_arrow_array().to_pylist()
    return span["start"], span["end"]


def test_plots_below_each_other_share_a_time_axis():
    many = [Stream((name,), Scalars(), "float32", (2,)) for name in ("position", "action")]
    *details, whole = views_in(layout.layout(recorded_of([0], REWARD, RETURN, FLAG, *many)).root_container)
    assert len(details) == 4
    assert whole.name == "episode_return, whole run"
    [axis] = {str(axis_of(view)) for view in details}
    assert axis != str(axis_of(whole))
    of_episode = views_in(layout.layout(recorded_of([None], REWARD, RETURN, FLAG, *many)).root_container)
    assert {str(axis_of(view)) for view in of_episode} == {str(axis_of(whole))}


def test_plots_of_two_to_eight_lines_have_a_legend():
    def has_legend(numbers, envs, agents=()):
        stream = Stream(("x",), Scalars(), "float32", (*[len(agents)] * bool(agents), numbers), agents=agents)
        [part] = layout.plots(recorded_of(envs, stream), envs[0])
        [shown] = views_in(part)[0].properties["PlotLegend"].visible.as_arrow_array().to_pylist()
        return shown

    assert [has_legend(numbers, [0]) for numbers in (1, 2, 8, 9)] == [False, True, True, False]
    assert [has_legend(numbers, [0, 1]) for numbers in (1, 2, 4, 5)] == [False, True, True, False]
    assert [has_legend(numbers, [0], ("fox", "hare")) for numbers in (2, 4, 5)] == [True, True, False]


def test_a_wall_without_pictures_and_returns_shows_all_plots():
    parts = recorded_of([0, 1], FLAG, Stream(("x",), Scalars(), "float32", (2,)))
    assert names_in(layout.wall(parts)) == ["env 0: x", "env 0: terminated", "env 1: x", "env 1: terminated"]


def test_a_function_of_the_user_may_make_the_layout(path, viewer):
    def mine(recorded):
        assert recorded.envs == [0, 1]
        return rrb.Blueprint(
            rrb.Horizontal(layout.wall(recorded), *layout.plots(recorded, env=1)),
            *layout.panels(recorded),
            auto_views=False,
        )

    record(SerialEnv(2, cartpole), path, 5, blueprint=mine)
    assert {name for _, _, name in rerun_views(opened(viewer, path, 3))} == {
        "env 0",
        "env 1",
        "env 1: reward",
        "env 1: action, terminated, truncated",
        "env 1: observation",
    }


def test_workers_get_the_layout_of_the_user(path):
    """Workers get a pickled recorder, with its layout."""
    line = rr.SeriesLines(names="what I get").visualizer()
    mine = rrb.Blueprint(rrb.TimeSeriesView(contents="/env_0/reward", overrides={"/env_0/reward": line}, name="mine"))

    def make():
        return cartpole().append_transform(RerunRecorder(path, blueprint=mine))

    env = ParallelEnv(2, make)
    env.rollout(5)
    env.close()
    for number in range(2):
        assert len(RrdReader(path.with_name(f"run.worker_{number}.rrd")).blueprints()) == 1


def test_the_default_layout_replaces_a_layout_that_fails(path):
    def mine(recorded):
        raise KeyError("pixels")

    with pytest.warns(UserWarning, match="gave KeyError.*'pixels'.*made from the streams"):
        record(cartpole(), path, 5, blueprint=mine)
    assert len(RrdReader(path).blueprints()) == 1
    with pytest.raises(TypeError, match="blueprint='wall' is of type str; pass True"):
        RerunRecorder(path, blueprint="wall")


def test_statistics_are_recorded_if_aggregate_is_true(path):
    record(SerialEnv(3, cartpole), path, 5, aggregate=True)
    recorded = read(path)
    assert recorded.schema["envs"] == [0, 1, 2]
    assert recorded.schema["statistics"] == [["reward"], ["episode_return"]]
    assert [row.tolist()[0] for row in recorded["/batch/reward"].values] == [1.0] * 5


@pytest.mark.filterwarnings("ignore:of 100 environments")
def test_no_statistics_are_recorded_if_aggregate_is_false(path):
    record(Walkers(), path, 5, aggregate=False)
    recorded = read(path)
    assert recorded.schema["statistics"] == []
    assert len(recorded.schema["envs"]) == 16
    with pytest.raises(ValueError, match="aggregate=True needs split='run'"):
        RerunRecorder(path.with_suffix(""), aggregate=True, split="episode")


def test_workers_have_no_statistics(path):
    def make():
        return cartpole().append_transform(RerunRecorder(path, aggregate=True))

    env = SerialEnv(2, make)
    with pytest.warns(UserWarning, match="a recorder inside the environments of a batch sees but its own ones"):
        env.rollout(5)
    env.close()
    for number in range(2):
        assert read(path.with_name(f"run.worker_{number}.rrd")).schema["statistics"] == []
