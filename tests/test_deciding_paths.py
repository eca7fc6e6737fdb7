"""Entity paths of keys, and files that belong to one run."""

from __future__ import annotations

import dataclasses

import pytest

from torchrl_rerun.kinds.describe import describe
from torchrl_rerun.kinds.entity_paths import EntityPaths, free_key, unlike
from torchrl_rerun.kinds.leaf import Leaf
from torchrl_rerun.kinds.scalars import Scalars
from torchrl_rerun.kinds.streams import Stream, entity_path
from torchrl_rerun.rrd.runs import FOLDER_OF_WORKER, elsewhere, family, parts_of


def path_of(*key, env=0, agents=(), agent=0):
    """Return the entity path of a key of numbers."""
    shape = (len(agents), 3) if agents else (3,)
    stream = describe(Leaf(key, "float32", shape, agents=agents))
    assert isinstance(stream, Stream)
    return entity_path(stream, env, agent)


@pytest.mark.parametrize(
    ("key", "path"),
    [
        (("observation",), "/env_0/observation"),
        (("robot", "arm", "angle"), "/env_0/robot/arm/angle"),
        (("a b",), "/env_0/a\\ b"),
        (("a/b",), "/env_0/a\\/b"),
        (("frame",), "/env_0/frame"),
    ],
)
def test_a_key_is_a_path_below_its_environment(key, path):
    assert path_of(*key) == path


def test_paths_of_an_episode_file_have_no_environment():
    assert path_of("observation", env=None) == "/observation"


def test_each_agent_of_a_group_has_an_entity():
    agents = ("red", "blue")
    paths = [path_of("agents", "reward", env=3, agents=agents, agent=agent) for agent in range(2)]
    assert paths == ["/env_3/agents/reward/red", "/env_3/agents/reward/blue"]


def test_names_that_differ_in_escaped_characters_have_different_paths():
    names = ["a/b", "a b", "a\\b", "a\nb", "a.b", "a"]
    assert len({path_of(name) for name in names}) == len(names)


def test_streams_have_different_paths():
    paths_of_streams = EntityPaths(("batch",))
    stream = Stream(("a",), Scalars(), "float32", (1,))
    others = [dataclasses.replace(stream, key=key) for key in [("a",), ("a_2",), ("batch", "a")]]
    paths = [entity_path(paths_of_streams.assign(each), 0) for each in [stream, *others]]
    assert paths == ["/env_0/a", "/env_0/a_2", "/env_0/a_2_2", "/env_0/batch_2/a"]


def test_a_key_of_the_recorder_is_renamed_if_the_environment_has_it():
    assert free_key(("episode_return",), []) == ("episode_return",)
    assert free_key(("agents", "episode_return"), [("agents", "episode_return")]) == (
        "agents",
        "recorded_episode_return",
    )


def test_agents_with_equal_names_get_numbers():
    assert unlike(["a", "a", "a_2", "b"]) == ("a", "a_3", "a_2", "b")


def files(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return folder


def test_parts_and_resumed_files_belong_to_their_first_file(tmp_path):
    ours = ["run.part_1.rrd", "run.part_10.rrd", "run.resumed_1.rrd", "run.resumed_1.part_1.rrd"]
    others = ["run.worker_0.rrd", "run2.rrd", "run.part_x.rrd", "run.part_1.mp4", "a.run.part_1.rrd", "run.rrd"]
    files(tmp_path, *ours, *others)
    assert [path.name for path in parts_of(tmp_path / "run.rrd")] == sorted(ours)
    assert parts_of(tmp_path / "nowhere" / "run.rrd") == []


def test_glob_characters_in_a_name_are_literal(tmp_path):
    files(tmp_path, "a[1]*.part_1.rrd", "a1x.part_1.rrd")
    assert [path.name for path in parts_of(tmp_path / "a[1]*.rrd")] == ["a[1]*.part_1.rrd"]


def test_workers_of_a_run_are_found_by_their_files(tmp_path):
    files(tmp_path, "run.worker_0.rrd", "run.worker_2.part_1.rrd", "run.worker_10.rrd", "other.worker_5.rrd", "run.rrd")
    assert family(tmp_path / "run.worker_2.rrd") == [0, 2, 10]
    assert family(tmp_path / "run.rrd") == []


def test_recordings_in_worker_folders_and_in_the_run_folder_exclude_each_other(tmp_path):
    files(tmp_path, "run/worker_0/a.rrd", "run/worker_x/b.rrd", "run/c.rrd")

    def recordings(folder):
        return sorted(folder.glob("*.rrd"))

    run = tmp_path / "run"
    assert elsewhere(run, recordings) == [run / "worker_0" / "a.rrd"]
    assert elsewhere(run / "worker_0", recordings) == [run / "c.rrd"]
    assert not FOLDER_OF_WORKER.fullmatch("worker_x")
