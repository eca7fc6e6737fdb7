"""Replays of arrays: layouts by names, beginnings and ends of episodes, and several sources."""

from __future__ import annotations

import os
import re
import stat
import warnings

import h5py
import minari
import numpy as np
import pytest
import torch
from gymnasium import spaces
from minari.data_collector import EpisodeBuffer
from minari.dataset.minari_storage import MinariStorage
from tensordict import NonTensorStack, TensorDict, lazy_stack
from torchrl.collectors import Collector
from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer
from torchrl.envs import GymEnv, SerialEnv
from typer.testing import CliRunner

from environments import Count
from readback import same
from rebuilt import episodes_in, steps_in
from torchrl_rerun import replay
from torchrl_rerun.cli import app
from torchrl_rerun.stored.formats import open_source


def column(*values, dtype="f4"):
    return np.array(values, dtype)[:, None]


def episodes(path):
    return list(steps_in(path).values())


def ends(path):
    """Return, for each episode, its length and whether it was terminated, truncated or interrupted."""
    return [
        (each.length, each.terminated, each.truncated, not (each.terminated or each.truncated))
        for each in episodes_in(path)
    ]


def saved(path, **arrays):
    """Save arrays in an HDF5 or a NumPy file."""
    if path.suffix == ".npz":
        np.savez(path, **arrays)
    else:
        with h5py.File(path, "w") as file:
            for name, values in arrays.items():
                file[name] = values
    return path


def asked(*arguments):
    done = CliRunner().invoke(app, ["replay", *map(str, arguments)])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done


@pytest.fixture(params=["npz", "hdf5"])
def file(request, tmp_path):
    return tmp_path / f"stored.{request.param}"


# --- arrays and keys ---


def test_two_arrays_never_share_a_key(file, path):
    arrays = {
        "states": np.full((5, 4), 7, "f4"),
        "obs": np.arange(10, dtype="f4").reshape(5, 2),
        "actions": np.ones((5, 1), "f4"),
        "act": np.zeros((5, 1), "f4"),
        "rewards": np.arange(5, dtype="f4"),
        "dones": np.arange(5) == 4,
    }
    replayed = replay(saved(file, **arrays), path)
    [steps] = episodes(path)
    assert same(steps["observation"], torch.from_numpy(arrays["obs"]))
    assert same(steps["states"], torch.from_numpy(arrays["states"]))
    assert same(steps["action"], torch.from_numpy(arrays["actions"]))
    assert same(steps["act"], torch.from_numpy(arrays["act"]))
    assert replayed.array_keys == {
        "obs": ("observation",),
        "states": ("states",),
        "act": ("act",),
        "actions": ("action",),
        "rewards": ("reward",),
        "dones": ("done",),
    }


def test_robomimic_demos_are_replayed_with_observations_and_states(path, tmp_path):
    with h5py.File(tmp_path / "demos.hdf5", "w") as written:
        for demo, length in (10, 3), (9, 4):
            group = written.create_group(f"data/demo_{demo}")
            group["states"] = np.full((length, 6), demo, "f8")
            group["actions"], group["rewards"] = np.ones((length, 2), "f4"), np.arange(length, dtype="f8")
            group["dones"] = (np.arange(length) == length - 1).astype("i8")
            for name in "eef", "image":
                seen = np.arange(length + 1, dtype="f4")[:, None] + demo
                group[f"obs/{name}"], group[f"next_obs/{name}"] = seen[:-1], seen[1:]
        written["mask/train"] = np.array([b"demo_9"])
    with pytest.warns(UserWarning, match=r"left out mask/train \(in no episode\)"):
        replay(tmp_path / "demos.hdf5", path)
    first, second = episodes(path)
    assert (len(first), len(second)) == (4, 3), "demo_9 comes before demo_10"
    for name in "eef", "image":
        assert same(second["observation", name], torch.arange(10.0, 13)[:, None])
        assert same(second["next", "observation", name], torch.arange(11.0, 14)[:, None])
    assert same(second["states"], torch.full((3, 6), 10.0, dtype=torch.float64))


def test_d4rl_arrays_are_replayed(file, path):
    seen, led_to = np.arange(12, dtype="f4").reshape(6, 2), np.arange(2, 14, dtype="f4").reshape(6, 2)
    led_to[[2, 4]] = 100
    arrays = {
        "observations": seen,
        "next_observations": led_to,
        "actions": np.ones((6, 1), "f4"),
        "rewards": np.arange(6, dtype="f4"),
        "terminals": np.array([0, 0, 1, 0, 0, 0], bool),
        "timeouts": np.array([0, 0, 0, 0, 1, 0], bool),
        "infos/qpos": seen * 2,
        "metadata/weights": np.zeros((3, 3)),
    }
    with pytest.warns(UserWarning, match="left out metadata/weights"):
        replay(saved(file, **arrays), path)
    assert ends(path) == [(3, True, False, False), (2, False, True, False), (1, False, False, True)]
    steps = torch.cat(episodes(path))
    assert same(steps["next", "observation"], torch.from_numpy(led_to))
    assert same(steps["infos", "qpos"], torch.from_numpy(seen * 2))


def leaping(by):
    """Save six steps of one episode. The next observations of three differ slightly from the next row."""
    seen = np.arange(12, dtype="f4").reshape(6, 2)
    led_to = seen + 2
    led_to[[0, 3], 1] += by
    led_to[4] += np.float32(by) / 2
    return {"obs": seen, "next_obs": led_to, "acts": np.ones((6, 1), "f4"), "rews": np.ones(6, "f4")}


@pytest.mark.parametrize("flags", [{"dones": np.arange(6) == 5}, {}])
def test_steps_whose_next_observation_differs_from_the_next_row_are_counted(file, path, monkeypatch, flags):
    """Each difference begins an episode. Rounding in a file makes many, hence the warning."""
    for moments in (1024, 2):
        monkeypatch.setattr("torchrl_rerun.stored.segments._MOST_TIME_STEPS", moments)
        with pytest.warns(UserWarning, match="next row") as caught:
            replay(saved(file, **leaping(0.25), **flags), path, overwrite=True)
        [said] = [str(each.message) for each in caught if "next row" in str(each.message)]
        assert said == (
            f"{file}: in 3 of 6 rows 'next_obs' is not the observation of the next row, though no episode is "
            "marked to end there: a new episode begins after each. The first is row 0; the largest difference is 0.25. If "
            "rounding causes it, leave 'next_obs' out of the file"
        )
        assert [len(each) for each in episodes(path)] == [1, 3, 1, 1]


def test_next_observations_that_differ_at_an_end_give_no_warning(file, path, recwarn):
    arrays = leaping(0.25) | {"dones": np.isin(np.arange(6), [0, 3, 4, 5])}
    replay(saved(file, **arrays), path)
    assert not [each for each in recwarn if "next row" in str(each.message)]


@pytest.mark.parametrize("way", ["saved", "mapped"])
def test_a_rollout_without_flags_gives_a_warning(path, tmp_path, way):
    rollout = Count(9).rollout(4)
    for flag in "done", "terminated":
        del rollout[flag], rollout["next", flag]
    rollout.memmap(tmp_path / "rollout") if way == "mapped" else torch.save(rollout, tmp_path / "rollout")
    with pytest.warns(UserWarning, match=r"NOTHING SAYS WHERE EPISODES END.*A TensorDict needs \('next', 'done'\)"):
        replay(tmp_path / "rollout", path)
    assert [len(each) for each in episodes(path)] == [4]


def test_a_flag_of_a_whole_trajectory_is_refused_with_advice(file, path):
    arrays = {"obs": column(1, 2, 3), "acts": np.ones((3, 1), "f4"), "terminal": np.array(True)}
    with pytest.raises(ValueError, match="store that in the row of its last step"):
        replay(saved(file, **arrays), path)


def test_pickled_infos_of_imitation_are_never_loaded(path, tmp_path):
    arrays = {
        "obs": column(0, 1, 2, 3),
        "acts": np.arange(4),
        "rews": np.arange(4, dtype="f4"),
        "dones": np.array([0, 1, 0, 1], bool),
        "infos": np.array([{}, {"a": 1}, {}, {}], object),
    }
    with pytest.warns(UserWarning, match=r"left out infos \(Python objects, which are never loaded\)"):
        replayed = replay(saved(tmp_path / "it.npz", **arrays), path)
    assert "infos" not in replayed.array_keys
    assert [each["action"].tolist() for each in episodes(path)] == [[0, 1], [2, 3]]


def test_an_array_named_by_the_user_takes_the_key_and_the_other_is_left_out(file, path):
    arrays = {"img": column(5, 6, 7), "observation": column(1, 2, 3), "act": column(0, 0, 0), "done": column(0, 0, 1)}
    with pytest.warns(UserWarning, match=r"left out observation \(img is 'observation' already\)"):
        replay(saved(file, **arrays), path, keys={"observation": "img"})
    assert same(episodes(path)[0]["observation"], torch.from_numpy(arrays["img"]))


# --- beginnings and ends of episodes ---


def test_the_beginning_of_an_episode_ends_the_one_before(file, path):
    starts = np.array([1, 0, 0, 0, 1, 0], bool)
    seen = column(*range(6))
    replay(saved(file, obs=seen, actions=seen, rewards=seen[:, 0], episode_starts=starts), path)
    assert [(length, interrupted) for length, _, _, interrupted in ends(path)] == [(4, False), (2, True)]
    first, last = episodes(path)
    assert first["next", "observation"][:3].flatten().tolist() == [1, 2, 3]
    assert first["next", "observation"][3].isnan().all(), "it isn't stored"
    assert first["next", "done"].flatten().tolist() == [False, False, False, True]
    assert not last["next", "done"].any(), "nobody knows"


def test_an_episode_that_ended_without_a_terminal_was_truncated(file, path):
    starts, terminals = np.array([1, 0, 1, 0, 1], bool), np.array([0, 1, 0, 0, 0], bool)
    seen = column(*range(5))
    replay(saved(file, obs=seen, actions=seen, episode_starts=starts, terminals=terminals), path)
    assert ends(path) == [(2, True, False, False), (2, False, True, False), (1, False, False, True)]


def test_a_row_with_is_last_has_only_an_observation(file, path):
    """RLDS: rows with is_last have no action and no reward. is_terminal is True if the state is terminal."""
    rows = 8
    arrays = {
        "observation": column(*range(rows)),
        "action": column(*range(10, 10 + rows)),
        "reward": np.array([1, 2, 0, 3, 4, 5, 0, 6], "f4"),
        "discount": np.arange(rows, dtype="f4"),
        "is_first": np.array([1, 0, 0, 1, 0, 0, 0, 1], bool),
        "is_last": np.array([0, 0, 1, 0, 0, 0, 1, 0], bool),
        "is_terminal": np.array([0, 0, 1, 0, 0, 0, 0, 0], bool),
    }
    assert replay(saved(file, **arrays), path).steps == 6
    assert ends(path) == [(2, True, False, False), (3, False, True, False), (1, False, False, True)]
    one, two, three = episodes(path)
    assert one["observation"].flatten().tolist() == [0, 1]
    assert one["next", "observation"].flatten().tolist() == [1, 2]
    assert two["next", "observation"].flatten().tolist() == [4, 5, 6]
    assert three["next", "observation"].isnan().all()
    assert two["action"].flatten().tolist() == [13, 14, 15]
    assert two["next", "reward"].flatten().tolist() == [3, 4, 5]
    assert two["next", "discount"].flatten().tolist() == [4, 5, 6], "nothing else is lost"


def test_rewards_in_rows_with_is_last_give_a_warning(file, path):
    arrays = {"obs": column(0, 1, 2), "acts": column(0, 1, 2), "rews": np.ones(3), "is_last": np.array([0, 0, 1], bool)}
    with pytest.warns(UserWarning, match=r"'rews' is not 0 in 1 of 1 rows with is_last.*--key done=is_last"):
        replay(saved(file, **arrays), path)
    assert ends(path)[0][0] == 2
    replay(file, path, keys={"done": "is_last"}, overwrite=True)
    assert [len(each) for each in episodes(path)] == [3]


def test_arrays_without_ends_of_episodes_give_a_warning(file, path):
    saved(file, obs=column(0, 1, 2), actions=column(0, 1, 2))
    done = asked(file, "-o", path)
    assert done.exit_code == 0
    assert f"{file}: NOTHING SAYS WHERE EPISODES END" in done.stderr


def test_each_group_of_a_file_is_an_episode(path, tmp_path):
    saved(
        tmp_path / "it.hdf5", **{"a/obs": column(0, 1), "a/acts": column(0, 1), "b/obs": column(2), "b/acts": column(2)}
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        replay(tmp_path / "it.hdf5", path)
    assert [len(each) for each in episodes(path)] == [2, 1]


def test_flags_may_be_columns_or_vectors(file, path):
    terminals, timeouts = column(0, 1, 0, 0, dtype="?"), np.array([0, 0, 0, 1], bool)
    replay(saved(file, obs=column(*range(4)), acts=column(*range(4)), terminals=terminals, timeouts=timeouts), path)
    assert ends(path) == [(2, True, False, False), (2, False, True, False)]


@pytest.mark.parametrize("name", ["dones", "episode_starts"])
def test_flags_of_several_environments_are_refused(name, file, path):
    flags = np.array([[0, 1], [1, 0], [0, 0]], bool)
    saved(file, obs=np.zeros((3, 2, 4)), acts=np.zeros((3, 2)), **{name: flags})
    with pytest.raises(ValueError, match=f"'{name}' has 2 values a row.*store the steps of each one by itself"):
        replay(file, path)


# --- arrays of other lengths ---


@pytest.mark.parametrize("name", ["rewards", "terminals", "next_observations", "episode_starts"])
def test_only_observations_may_be_one_longer(name, file, path):
    arrays = {
        "observations": np.zeros((6, 2)),
        "actions": np.ones((5, 1)),
        "rewards": np.ones(5),
        "dones": np.ones(5, bool),
    }
    saved(file, **{**arrays, name: np.ones((6, 1))})
    with pytest.raises(
        ValueError, match=f"{file}: '{name}' has 6 rows, and 'actions' 5: .* Only observations may have 6"
    ):
        replay(file, path)
    assert not path.exists()


def test_other_arrays_that_are_one_longer_are_named(file, path):
    saved(file, obs=column(*range(4)), acts=column(0, 1, 2), dones=column(0, 0, 1), values=np.ones(4))
    with pytest.warns(
        UserWarning,
        match=r"left out values \(float64 \(4,\), not one row for each of 3 steps; .* --key infos/values=values\)",
    ):
        replayed = replay(file, path)
    assert "values" not in replayed.array_keys
    assert episodes(path)[0]["next", "observation"].flatten().tolist() == [1, 2, 3]


# --- texts ---


def test_texts_are_recorded(file, path):
    texts = ["go left", "", "Ünïcode ☃"]
    stored = np.array(texts) if file.suffix == ".npz" else texts
    saved(file, obs=column(0, 1, 2), acts=column(0, 1, 2), dones=column(0, 0, 1), instruction=stored)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        replay(file, path)
    assert [each["instruction"] for each in episodes(path)[0]] == texts


@pytest.mark.parametrize("data_format", ["hdf5", "arrow"])
def test_text_observations_of_minari(data_format, path, tmp_path):
    if data_format == "arrow":
        pytest.importorskip("pyarrow")
    folder = tmp_path / "set" / "data"
    folder.mkdir(parents=True)
    observed = spaces.Dict(told=spaces.Text(10), seen=spaces.Box(-9, 9, (2,)))
    storage = MinariStorage.new(
        folder, observation_space=observed, action_space=spaces.Discrete(2), env_spec=None, data_format=data_format
    )
    told = [["a", "b", "c"], ["d", "", "☃"]]
    for i, texts in enumerate(told):
        seen = [{"told": text, "seen": np.full(2, t, "f4")} for t, text in enumerate(texts)]
        both = {"told": texts, "seen": np.stack([each["seen"] for each in seen])}
        flags = {"terminations": [False, True], "truncations": [False, False]}
        buffer = EpisodeBuffer(
            id=i, seed=i, observations=both, actions=np.array([0, 1]), rewards=[1.0, 2.0], infos={}, **flags
        )
        storage.update_episodes([buffer])
    storage.update_metadata({"dataset_id": "texts/test-v0", "minari_version": minari.__version__})
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        replay(folder.parent, path)
    for texts, steps in zip(told, episodes(path), strict=True):
        assert [each["observation", "told"] for each in steps] == texts[:-1]
        assert [each["next", "observation", "told"] for each in steps] == texts[1:]


# --- dtypes that torch lacks ---


def test_longdouble_is_recorded_if_float64_is_exact(file, path):
    exact = np.arange(3, dtype=np.longdouble)
    fine = exact + np.longdouble(1) / 3
    saved(file, obs=exact[:, None], acts=column(0, 1, 2), dones=column(0, 0, 1), fine=fine)
    with pytest.warns(UserWarning, match=r"left out fine \(\w+ numbers that float64 doesn't hold exactly"):
        replay(file, path)
    assert same(episodes(path)[0]["observation"], torch.arange(3, dtype=torch.float64)[:, None])
    saved(file, obs=fine[:, None], acts=column(0, 1, 2), dones=column(0, 0, 1))
    with pytest.raises(ValueError, match=f"{file}: 'obs' can't be read: .*save them as float64"):
        replay(file, path, overwrite=True)


# --- several sources ---


def one_file(path, begin, count=3):
    return saved(
        path, obs=column(*range(begin, begin + count + 1)), acts=np.ones((count, 1)), dones=np.arange(count) == 99
    )


def test_several_files_are_replayed_in_order(path, tmp_path):
    """No file has an end of an episode, and the second goes on at the end of the first."""
    files = [one_file(tmp_path / "a.npz", 0), one_file(tmp_path / "b.hdf5", 3)]
    done = asked(*files, "-o", path)
    assert done.exit_code == 0, done.stderr
    assert [each["observation"].flatten().tolist() for each in episodes(path)] == [[0, 1, 2], [3, 4, 5]]
    assert "2 episodes, 6 steps of 1 environment" in " ".join(done.stdout.split())


def test_files_of_a_folder_are_replayed_by_number(path, tmp_path):
    folder = tmp_path / "all"
    folder.mkdir()
    for number in 9, 10, 1:
        one_file(folder / f"episode_{number}.npz", number * 10)
    (folder / "notes.txt").write_text("hello")
    with pytest.warns(UserWarning, match=r"left out notes\.txt"):
        replayed = replay(folder, path)
    assert [each["observation"][0].item() for each in episodes(path)] == [10, 90, 100]
    assert replayed.description.endswith("all: 3 files")


def test_a_truncated_file_in_a_folder_is_named(path, tmp_path):
    folder = tmp_path / "all"
    folder.mkdir()
    one_file(folder / "1.npz", 0)
    (folder / "2.npz").write_bytes(b"PK\3\4")
    done = asked(folder, "-o", path)
    assert done.exit_code == 1
    assert "2.npz looks like a zip file that is damaged or cut off" in done.stderr
    assert sorted(os.listdir(tmp_path)) == ["all"]


@pytest.mark.parametrize("as_tuple", [False, True])
def test_a_saved_list_of_rollouts_is_replayed(as_tuple, path, tmp_path):
    env = GymEnv("CartPole-v1")
    env.set_seed(0)
    rollouts = [env.rollout(steps) for steps in (4, 2, 6)]
    torch.save(tuple(rollouts) if as_tuple else rollouts, tmp_path / "list.pt")
    replay(tmp_path / "list.pt", path)
    for steps, stored in zip(episodes(path), rollouts, strict=True):
        for key in stored.keys(True, True):
            assert same(steps[key], stored[key]), key


def test_a_saved_list_of_steps_is_a_rollout(path, tmp_path):
    stored = GymEnv("CartPole-v1").rollout(5)
    torch.save([each.clone() for each in stored], tmp_path / "list.pt")
    replay(tmp_path / "list.pt", path)
    [steps] = episodes(path)
    assert same(steps["observation"], stored["observation"])


def test_a_saved_list_of_other_objects_is_refused(path, tmp_path):
    torch.save([torch.zeros(2)], tmp_path / "list.pt")
    with pytest.raises(ValueError, match=r"list\.pt was saved with torch.save, but is a list of Tensor and neither"):
        replay(tmp_path / "list.pt", path)


def test_sources_of_different_batches_are_refused(path, tmp_path):
    torch.save(GymEnv("CartPole-v1").rollout(2), tmp_path / "one.pt")
    torch.save(SerialEnv(2, lambda: GymEnv("CartPole-v1")).rollout(2), tmp_path / "two.pt")
    with pytest.raises(
        ValueError, match=r"two\.pt: .* has 2 environments, and .*one\.pt: .* has 1: replay them one at a"
    ):
        replay([tmp_path / "one.pt", tmp_path / "two.pt"], path)
    assert not path.exists()


# --- sources are not changed ---


def snapshot(folder):
    files = [each for each in folder.rglob("*") if each.is_file()]
    return {each: (each.read_bytes(), each.stat().st_mtime_ns) for each in files}


def dumped(folder):
    buffer = TensorDictReplayBuffer(storage=LazyTensorStorage(100), batch_size=4)
    buffer.extend(GymEnv("CartPole-v1").rollout(50, break_when_any_done=False))
    buffer.dumps(folder)
    return next((folder / "storage").glob("action.memmap"))


def mapped(folder):
    GymEnv("CartPole-v1").rollout(50, break_when_any_done=False).memmap(folder)
    return folder / "next" / "reward.memmap"


@pytest.mark.parametrize("make", [mapped, dumped])
def test_a_truncated_memory_map_is_refused_and_unchanged(make, path, tmp_path):
    cut = make(tmp_path / "source")
    os.truncate(cut, cut.stat().st_size // 2)
    before = snapshot(tmp_path / "source")
    with pytest.raises(ValueError, match=f"source.* {re.escape(cut.name)}|{re.escape(str(cut))}"):
        replay(tmp_path / "source", path)
    assert snapshot(tmp_path / "source") == before
    assert not path.exists()


@pytest.mark.parametrize("ending", ["", ".tdz"])
def test_a_memory_map_of_texts_and_stacks_is_read(ending, path, tmp_path):
    stored = GymEnv("CartPole-v1").rollout(4)
    stored["told"], stored["a b/c"] = NonTensorStack("a", "b", "", "d"), torch.ones(4, 2)
    stored = lazy_stack([stored, stored.clone()])
    source = tmp_path / f"source{ending}"
    stored.save(source)
    replay(source, path)
    for steps in episodes(path):
        assert [each["told"] for each in steps] == ["a", "b", "", "d"]
        assert same(steps["a b/c"], torch.ones(4, 2))


@pytest.mark.parametrize("make", [mapped, dumped])
def test_a_memory_map_that_lacks_a_file_is_refused(make, path, tmp_path):
    missing = make(tmp_path / "source")
    missing.unlink()
    with pytest.raises(ValueError, match=f"'{missing.stem}' is described in .*meta.json, and its file is missing"):
        replay(tmp_path / "source", path)


def test_a_replay_buffer_whose_files_are_too_short_is_refused(path, tmp_path):
    dumped(tmp_path / "source")
    described = tmp_path / "source" / "storage" / "storage_metadata.json"
    described.write_text(described.read_text().replace('"len": 50', '"len": 500'))
    with pytest.raises(ValueError, match="states 500 rows, of which 100 exist"):
        replay(tmp_path / "source", path)
    described.write_text("{}")
    with pytest.raises(ValueError, match=r"storage_metadata\.json doesn't state the number of rows"):
        replay(tmp_path / "source", path)


@pytest.mark.parametrize("make", [mapped, dumped, lambda folder: one_file(folder.with_suffix(".npz"), 0)])
def test_a_read_only_source_is_replayed_and_unchanged(make, path, tmp_path):
    folder = tmp_path / "sources"
    folder.mkdir()
    make(folder / "it")
    for each in (folder, *folder.rglob("*")):
        each.chmod(stat.S_IRUSR | (stat.S_IXUSR if each.is_dir() else 0))
    before = snapshot(folder)
    [source] = folder.iterdir()
    replay(source, path)
    assert snapshot(folder) == before
    assert len(episodes_in(path))
    for each in folder.rglob("*"):
        each.chmod(0o700)


# --- unknown observations have no picture ---


def test_a_last_observation_that_is_not_stored_has_a_black_picture(path, tmp_path):
    stored = GymEnv("CartPole-v1").rollout(3)
    arrays = {
        "obs": stored["observation"].numpy(),
        "acts": stored["action"].numpy(),
        "rews": stored["next", "reward"].numpy(),
    }
    saved(tmp_path / "it.npz", dones=np.arange(len(stored)) == len(stored) - 1, **arrays)
    done = asked(tmp_path / "it.npz", "-o", path, "--render", "CartPole-v1")
    assert (done.exit_code, "parts" in done.stderr) == (0, False), done.stderr
    [steps] = episodes(path)
    assert [picture.any().item() for picture in steps["next", "pixels"]] == [True] * (len(stored) - 1) + [False]
    assert steps["pixels"].flatten(1).any(1).all()
    assert steps["next", "observation"][-1].isnan().all()


def test_an_unknown_observation_has_a_black_picture_and_rendering_goes_on(path, tmp_path):
    stored = GymEnv("CartPole-v1").rollout(4)
    stored["observation"][2] = stored["next", "observation"][1] = np.nan
    torch.save(stored, tmp_path / "it.pt")
    assert not replay(tmp_path / "it.pt", path, render="CartPole-v1").divergences
    assert [picture.any().item() for picture in episodes(path)[0]["pixels"]] == [True, True, False, True]


# --- padded batches ---


def padded(own_mask=False):
    """Save a sparse file of twenty trajectories of 30 to 49 steps, of 40 kB each."""
    size = [20, 50]
    taken = torch.arange(50) < torch.arange(30, 50)[:, None]
    done = torch.zeros(*size, 1, dtype=torch.bool)
    image = torch.zeros(1).expand(*size, 10_000)
    following = TensorDict({"image": image, "reward": torch.zeros(*size, 1), "done": done}, size)
    if own_mask:
        return TensorDict({"image": image, "mask": taken, "next": following.set("mask", taken)}, size), taken
    return TensorDict({"image": image, "collector": {"mask": taken}, "next": following}, size), taken


def test_trajectories_of_a_padded_batch_are_read_a_few_at_a_time(tmp_path):
    stored, taken = padded()
    torch.save(stored, tmp_path / "it.pt")
    segments = list(open_source(tmp_path / "it.pt").read())
    assert len(segments) > 2
    assert {segment.tensordict.shape[-1] for segment in segments} == {50}
    assert torch.equal(torch.cat([segment.tensordict["collector", "mask"] for segment in segments]), taken)
    assert sum(segment.num_steps for segment in segments) == taken.sum()


def test_a_mask_of_the_environment_is_not_padding(tmp_path):
    stored, taken = padded(own_mask=True)
    torch.save(stored, tmp_path / "it.pt")
    segments = list(open_source(tmp_path / "it.pt").read())
    assert {len(segment.tensordict) for segment in segments} == {20}
    assert sum(segment.num_steps for segment in segments) == taken.numel()


def test_pictures_of_a_padded_batch_are_of_its_steps_alone(path, tmp_path):
    env = SerialEnv(2, lambda: GymEnv("CartPole-v1"))
    [batch] = Collector(env, None, frames_per_batch=60, total_frames=60, split_trajs=True)
    torch.save(batch, tmp_path / "it.pt")
    replayed = replay(tmp_path / "it.pt", path, render="CartPole-v1")
    lengths = batch["collector", "mask"].sum(-1).flatten().tolist()
    assert [len(steps) for steps in episodes(path)] == lengths
    assert replayed.steps == sum(lengths)
    assert all(steps["next", "pixels"].flatten(1).any(1).all() for steps in episodes(path))
