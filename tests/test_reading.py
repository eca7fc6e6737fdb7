"""`load` gives back recorded data: of each kind of environment, way of recording and kind of file."""

from __future__ import annotations

import collections
import functools
import multiprocessing
import pickle
import signal
import subprocess
import sys
import textwrap
import warnings
from datetime import UTC, datetime

import numpy as np
import pytest
import rerun as rr
import torch
from tensordict import TensorDict
from torchrl.collectors import Collector
from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer
from torchrl.envs import GymEnv, GymWrapper, ParallelEnv, SerialEnv, Transform, TransformedEnv, step_mdp
from torchrl.envs.libs.vmas import VmasEnv
from torchrl.envs.utils import RandomPolicy
from torchrl.record import PixelRenderTransform

from environments import AutoResettingCartPole, Herd, Lengths, Says, Walkers, Zoo, cartpole, pendulum, pixel_cartpole
from programs import python
from readback import Rows, read, same
from reference import assert_same, leaves, of_episodes
from servers import PATIENCE
from torchrl_rerun import RerunRecorder, list_episodes, load
from torchrl_rerun.reading.query import table_of
from torchrl_rerun.writing import file as sinks


def record(env, path, steps=40, **options):
    env = env.append_transform(RerunRecorder(path, **options))
    rollout = env.rollout(steps, break_when_any_done=False)
    env.close()
    return rollout


ENVIRONMENTS = {
    "single": cartpole,
    "series": functools.partial(SerialEnv, 3, cartpole),
    "one in series": functools.partial(SerialEnv, 1, cartpole),
    "pixels": pixel_cartpole,
    "continuous": functools.partial(SerialEnv, 2, pendulum),
    "mujoco": functools.partial(GymEnv, "HalfCheetah-v5"),
    "two batch dimensions": functools.partial(SerialEnv, 2, functools.partial(SerialEnv, 3, cartpole)),
    "vector": functools.partial(GymEnv, "CartPole-v1", num_envs=3),
    "auto-reset": lambda: AutoResettingCartPole("CartPole-v1", auto_reset=True, auto_reset_replace=True),
    "agents that are done one by one": Herd,
    "agents": functools.partial(VmasEnv, "flocking", num_envs=3, n_agents=2, max_steps=12, seed=0),
    "walkers": functools.partial(Walkers, 20),
    "zoo": functools.partial(Zoo, ()),
    "zoos": functools.partial(Zoo, (2, 2)),
}


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_a_rollout_comes_back(path, name):
    rollout = record(ENVIRONMENTS[name](), path, 30, image_format="png")
    assert_same(load(path).rollout(), rollout)


@pytest.mark.parametrize("name", ["series", "vector", "zoos", "two batch dimensions", "auto-reset"])
@pytest.mark.parametrize("split", ["run", "episode"])
def test_episodes_come_back_one_by_one(tmp_path, name, split):
    rollout = record(ENVIRONMENTS[name](), tmp_path / "run", 30, image_format="png", split=split)
    episodes = load(tmp_path / "run")
    wanted = of_episodes(rollout)
    assert {each.properties.id for each in episodes} == set(wanted)
    for each in [*episodes, *reversed(episodes)]:  # in any order
        of_one = wanted[each.properties.id]
        assert_same(each.tensordict(), of_one)
        assert each.properties.length == len(of_one)
        assert each.properties.terminated == bool(of_one[-1]["next", "terminated"].any())
        assert each.properties.interrupted == (not of_one[-1]["next", "done"].any())
        assert each.properties.episode_return == pytest.approx(of_one["next", "reward"].double().sum().item())
        rewards = each["reward"]
        assert same(rewards, of_one["next", "reward"])
        assert len(each["done"]) == len(of_one) + 1
    assert_same(episodes.rollout(), rollout)


@pytest.mark.parametrize("name", ["agents that are done one by one", "walkers"])
def test_properties_of_episodes_do_not_depend_on_the_split(tmp_path, name):
    """The recorder stores the properties of an episode file. `load` computes those of a run from the rows."""
    found = []
    for split in ("run", "episode"):
        torch.manual_seed(0)
        record(ENVIRONMENTS[name](), tmp_path / split, 60, split=split)
        found.append([each.properties for each in load(tmp_path / split)])
    assert len(found[0]) > 1
    for a, b in zip(*found, strict=True):
        assert a.properties | {"start_time": None} == b.properties | {"start_time": None}


@pytest.mark.parametrize("split", ["run", "episode"])
def test_keys_named_like_the_recorders_come_back(tmp_path, split):
    keys = ["episode_return", "recorded_episode_return", ("__properties", "episode"), ("batch", "reward"), "batch_"]
    rollout = record(Says(*keys), tmp_path, 7, split=split)
    episodes = load(tmp_path)
    assert_same(episodes.rollout(), rollout)
    assert [each.properties.length for each in episodes] == [3, 3, 1]
    assert [each.properties.episode_return for each in episodes] == [36.0, 36.0, 11.0]


def test_values_that_plots_would_round_come_back_bit_for_bit(path):
    rng = np.random.default_rng(0)
    bits = {
        "float32": rng.integers(0, 2**32, (9, 3), np.uint32).view(np.float32),
        "nans": (rng.integers(0, 2**22, (9, 3), np.uint32) | 0x7F800001).view(np.float32),
        "float64": rng.integers(0, 2**63, (9, 3), np.uint64).view(np.float64),
        "uint64": rng.integers(0, 2**64, (9, 3), np.uint64),
        "int64": rng.integers(-(2**63), 2**63 - 1, (9, 100), np.int64),
        "float16": rng.integers(0, 2**16, (9, 3), np.uint16).view(np.float16),
        "uint16": rng.integers(0, 2**16, (9, 3), np.uint16),
        "flags": rng.random((9, 4, 5)) > 0.5,
        "matrix": rng.integers(0, 2**16, (9, 3, 4), np.uint16).view(np.float16),
        "scalar": rng.standard_normal((9,)),
    }
    data = {key: torch.from_numpy(value) for key, value in bits.items()}
    data["bfloat16"] = torch.from_numpy(rng.integers(-(2**15), 2**15, (9, 3), np.int16)).view(torch.bfloat16)
    root, following = ({key: value[part] for key, value in data.items()} for part in (slice(0, 8), slice(1, 9)))
    following |= {"reward": torch.rand(8, 1), "done": torch.zeros(8, 1, dtype=torch.bool)}
    root |= {"done": torch.zeros(8, 1, dtype=torch.bool)}
    rollout = TensorDict({**root, "next": TensorDict(following, [8])}, [8])
    with RerunRecorder(path) as recorder:
        recorder.log_rollout(rollout)
    assert_same(load(path).rollout(), rollout)


def test_arrays_of_varying_shape_come_back(path):
    make = functools.partial(cartpole, render_mode="rgb_array")
    env = SerialEnv(2, lambda: make().append_transform(PixelRenderTransform(as_non_tensor=True)))
    rollout = record(env, path, 5, image_format="png")
    [first, *_] = load(path)
    wanted = [rollout[0, 0]["pixels"], *(rollout[0, t]["next", "pixels"] for t in range(len(first.tensordict())))]
    assert all(same(a, b) for a, b in zip(first["pixels"], wanted, strict=True))
    assert_same(load(path).rollout(["observation"]), rollout.select("observation", ("next", "observation")))


def test_a_single_picture_of_a_whole_batch_comes_back(path):
    class Rendered(Zoo):
        def render(self):
            return np.full((12, 16, 3), self.t, np.uint8)

    env = TransformedEnv(Rendered((3,)), PixelRenderTransform())
    rollout = record(env, path, 4, in_keys=["pixels", "count"], image_format="raw")
    found = load(path).rollout()
    assert same(found["count"], rollout["count"])
    for env in range(3):
        for t in range(4):
            assert same(found[env, t]["next", "pixels"], rollout[0, t]["next", "pixels"])


@pytest.mark.parametrize("image_format", ["jpeg", "h264"])
def test_lossy_pictures_have_their_shape_and_dtype(path, image_format):
    rollout = record(SerialEnv(2, pixel_cartpole), path, 20, image_format=image_format)
    found = load(path)
    pixels = found.rollout(["pixels"])["next", "pixels"]
    wanted = rollout["next", "pixels"]
    assert (pixels.shape, pixels.dtype) == (wanted.shape, wanted.dtype)
    assert (pixels.float() - wanted.float()).abs().mean() < 3
    # A part of a video is decoded like the whole.
    for each in reversed(found):
        whole = pixels[each.properties.env]
        first = each.properties.first_step
        of_one = each.tensordict(["pixels"])["next", "pixels"]
        assert torch.equal(of_one, whole[first : first + len(of_one)])
    slices = found.dataset(3, ["pixels"])
    for number in (0, len(slices) // 2, len(slices) - 1):
        assert any(
            torch.equal(slices[number]["next", "pixels"], pixels[e, t : t + 3]) for e in range(2) for t in range(38)
        )


# --- ways of recording ---


def test_rollouts_with_waiting_environments_come_back(path):
    env = SerialEnv(3, cartpole).append_transform(RerunRecorder(path))
    rollout = env.rollout(200, break_when_all_done=True)
    env.close()
    for each in load(path):
        wanted = rollout[each.properties.env, : each.properties.length]
        assert_same(each.tensordict(), wanted)
    with pytest.raises(ValueError, match="different numbers of steps"):
        load(path).rollout()


def test_rollouts_by_log_rollout_and_callback_come_back(tmp_path):
    rollout = SerialEnv(3, cartpole).rollout(60, break_when_any_done=False)
    with RerunRecorder(tmp_path / "logged.rrd") as recorder:
        recorder.log_rollout(rollout)
    assert_same(load(tmp_path / "logged.rrd").rollout(), rollout)
    with RerunRecorder(tmp_path / "called.rrd") as recorder:
        rollout = SerialEnv(2, cartpole).rollout(60, break_when_any_done=False, callback=recorder.callback)
    assert_same(load(tmp_path / "called.rrd").rollout(), rollout[:, :-1])  # TorchRL never passes the last one


def test_batches_of_a_collector_come_back(path):
    env = SerialEnv(2, cartpole).append_transform(RerunRecorder(path))
    collector = Collector(env, RandomPolicy(env.action_spec), frames_per_batch=40, total_frames=200)
    batches = torch.cat([batch.exclude("collector") for batch in collector], 1)
    collector.shutdown()
    assert_same(load(path).rollout(), batches)
    assert all(each.properties.length for each in load(path))  # the resets at the very end are no episodes


def make_recorded(path):
    return cartpole().append_transform(RerunRecorder(path))


def test_rollouts_of_workers_come_back(path):
    with pytest.warns(UserWarning, match="inside the environments of a batch"):
        env = SerialEnv(2, functools.partial(make_recorded, path))
    rollout = env.rollout(30, break_when_any_done=False)
    env.close()
    assert_same(load(path).rollout(), rollout)
    assert len(load(path)[0].files) == 1


class Late(Lengths):
    """Begins its first episode at its turn."""

    def __init__(self, shift, turn):
        super().__init__(shift)
        self.turn = turn

    def reset(self, **options):
        assert self.turn.wait(PATIENCE)
        return super().reset(**options)


class PassesTheTurn(Transform):
    """Lets the next environment begin after a reset."""

    def __init__(self, turn):
        super().__init__()
        self.turn = turn

    def _reset(self, tensordict, tensordict_reset):
        self.turn.set()
        return tensordict_reset


def make_late(path, number, turns, **options):
    env = GymWrapper(Late(number, turns[number])).append_transform(RerunRecorder(path, **options))
    return env.append_transform(PassesTheTurn(turns[number - 1]))


@pytest.mark.parametrize("split", ["run", "episode", "dump"])
@pytest.mark.filterwarnings("ignore:.*inside the environments of a batch")
def test_environments_of_workers_are_in_the_order_of_their_indices(tmp_path, split):
    place = tmp_path / ("run.rrd" if split == "run" else "runs")
    turns = [multiprocessing.Event() for _ in range(3)]  # the last environment begins first
    turns[2].set()
    make = functools.partial(make_late, place, turns=turns, split=split)
    env = ParallelEnv(3, [functools.partial(make, number) for number in range(3)])
    rollout = env.rollout(30, break_when_any_done=False)
    env.close()
    recordings = load(place)
    began = [each.properties.env for each in recordings if not each.properties.episode]
    assert began == [2, 1, 0]
    assert_same(recordings.rollout(), rollout)
    chosen = recordings.where(lambda episode: episode.env != 1)
    assert_same(chosen.rollout(), rollout[[0, 2]])


def test_runs_are_in_the_order_of_their_beginning(tmp_path):
    wanted = []
    for name in ("b", "a"):
        wanted.append(record(SerialEnv(2, cartpole), tmp_path / name / "run.rrd", 10))
    assert_same(load([tmp_path / "a", tmp_path / "b"]).rollout(), torch.cat(wanted, 0))


def test_samples_of_a_replay_buffer_come_back(path):
    rollout = SerialEnv(2, pendulum).rollout(20)
    buffer = TensorDictReplayBuffer(storage=LazyTensorStorage(4), batch_size=2, transform=RerunRecorder(path))
    buffer.extend(rollout)
    sample = buffer.sample()
    buffer._transform[0].close()
    assert_same(load(path).rollout(), sample)


def test_partial_steps_come_back(path):
    env = SerialEnv(3, pendulum).append_transform(RerunRecorder(path))
    tensordict = env.reset()
    wanted = {i: [] for i in range(3)}
    for mask in ([True, False, True], [True, True, True], [False, False, True]):
        tensordict = env.rand_action(tensordict).set("_step", torch.tensor(mask))
        tensordict = env.step(tensordict)
        for i in np.flatnonzero(mask):
            wanted[i].append(tensordict[i].exclude("_step", ("next", "_step")).clone())
        tensordict = env.step_mdp(tensordict)
        tensordict.pop("_step", None)
    env.close()
    for each in load(path):
        assert_same(each.tensordict(), torch.stack(wanted[each.properties.env]))


def test_triggered_episodes_come_back(path):
    rollout = record(GymWrapper(Lengths()), path, 30, episode_trigger=lambda episode: episode % 2 == 1)
    wanted = of_episodes(rollout)
    for each in load(path):
        assert each.properties.episode % 2
        assert_same(each.tensordict(), wanted[each.properties.id])


# --- files ---


@pytest.fixture
def short_files(monkeypatch):
    monkeypatch.setattr(sinks, "CHUNKS_PER_FILE", 40)


def test_parts_come_back_in_order(path, short_files):
    rollout = record(SerialEnv(2, cartpole), path, 500, buffer_bytes=2_000)
    assert len(list(path.parent.iterdir())) > 11  # part 10 comes after part 2
    for source in (path, path.parent, path.parent / "*.rrd", sorted(path.parent.iterdir())):
        found = load(source)
        assert_same(found.rollout(), rollout)
    last = of_episodes(rollout)[found[-1].properties.id]
    assert_same(found[-1].tensordict(), last)


def test_batches_of_different_sizes_with_one_id_come_back(path):
    rollouts = [SerialEnv(count, cartpole).rollout(5) for count in (2, 3, 2)]
    recorder = RerunRecorder(path, recording_id="mine")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        for rollout in rollouts:
            recorder.log_rollout(rollout)
            recorder.close()
    episodes = load(path)
    assert len(episodes) == 7
    for rollout, first in zip(rollouts, (0, 2, 5), strict=True):
        for env in range(rollout.shape[0]):
            assert_same(episodes[first + env].tensordict(), rollout[env])
    with pytest.raises(ValueError, match="several batch sizes"):
        episodes.rollout()


@pytest.mark.parametrize("split", ["dump", "run", "episode"])
def test_episodes_across_dumps_come_back(tmp_path, split):
    """With ``split="dump"`` an episode goes on in the next file."""
    recorder = RerunRecorder(tmp_path / "run", split=split)
    env = SerialEnv(2, pendulum).append_transform(recorder)
    rollouts, start = [], env.reset()
    for _ in range(12):
        rollouts.append(env.rollout(3, auto_reset=False, tensordict=start))
        start = step_mdp(rollouts[-1][:, -1])
        recorder.dump()
    env.close()
    found = load(tmp_path / "run")
    assert [each.properties.length for each in found] == [36, 36]
    assert_same(found.rollout(), torch.cat(rollouts, 1))


def test_a_resumed_run_comes_back(tmp_path):
    first = GymWrapper(Lengths()).append_transform(RerunRecorder(tmp_path / "run"))
    before = first.rollout(6, break_when_any_done=False)
    first.close()
    second = GymWrapper(Lengths()).append_transform(RerunRecorder(tmp_path / "run", resume=True))
    after = second.rollout(3)
    second.close()
    found = load(tmp_path / "run")
    assert [each.properties.episode for each in found] == [0, 1, 2, 3]
    assert_same(torch.cat([each.tensordict() for each in found]), torch.cat([before, after]))


def test_a_run_that_was_resumed_twice_comes_back_as_one_rollout(tmp_path):
    """The path of the recorder is enough to read all of its files."""
    rollouts = []
    for _ in range(3):
        env = SerialEnv(2, [lambda shift=shift: GymWrapper(Lengths(shift)) for shift in range(2)])
        env = env.append_transform(RerunRecorder(tmp_path / "run.rrd", resume=True))
        rollouts.append(env.rollout(5, break_when_any_done=False))
        env.close()
    assert_same(load(tmp_path / "run.rrd").rollout(), torch.cat(rollouts, -1))


KILLED = """
    import os, sys, torch
    from torchrl.envs import GymEnv, SerialEnv
    from torchrl_rerun import RerunRecorder
    torch.manual_seed(0)
    env = SerialEnv(2, lambda: GymEnv("CartPole-v1"))
    env.set_seed(0)
    env = env.append_transform(RerunRecorder(sys.argv[1], buffer_bytes=10_000))
    rollout = env.rollout(1000, break_when_any_done=False)
    env.transform.dump()
    torch.save(rollout.to_dict(), sys.argv[1] + ".pt")
    os.kill(os.getpid(), 9)
"""


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """Make the file of a killed process. Return its path and the rollout."""
    path = tmp_path_factory.mktemp("killed") / "run.rrd"
    command = [*python(), "-c", textwrap.dedent(KILLED), path]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    rollout = TensorDict.from_dict(torch.load(f"{path}.pt", weights_only=True), batch_size=[2, 1000])
    return path.read_bytes(), rollout


def test_a_killed_run_comes_back(path, killed):
    left, rollout = killed
    path.write_bytes(left)
    assert_same(load(path).rollout(), rollout)


def whole_steps(recorded):
    """Return, by episode, the number of steps with rows of each key, before and after the step."""
    found = collections.Counter()
    for env in recorded.schema["envs"]:
        acted, observed, *led_to = (
            {(at["episode"], at["episode_step"]) for at in recorded.entities.get(f"/env_{env}/{key}", Rows()).times}
            for key in ("action", "observation", "reward", "done", "terminated", "truncated")
        )
        after = observed.intersection(*led_to)
        found.update((env, episode) for episode, step in acted & observed if (episode, step + 1) in after)
    return found


@pytest.mark.parametrize("share", [0.13, 0.2, 0.35, 0.5, 0.77, 0.99])
def test_complete_steps_of_a_torn_file_come_back(path, killed, share):
    """Steps with any row come back, with masks of missing values. Rerun's own reader gives the reference."""
    left, rollout = killed
    path.write_bytes(left[: int(len(left) * share)])
    mended = path.with_name("mended.rrd")
    subprocess.run([sys.executable, "-m", "rerun_cli", "rrd", "merge", path, "-o", mended], check=True)
    wanted, there = of_episodes(rollout), whole_steps(read(mended))
    assert there
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*isn't finished")
        found = {each.properties.id: each.tensordict() for each in load(path)}
    assert there.keys() <= found.keys()
    for episode, steps in found.items():
        assert len(steps) >= there[episode]
        is_whole = torch.ones(len(steps), dtype=torch.bool)
        for of_steps, of_rollout in ((steps, wanted[episode]), (steps["next"], wanted[episode]["next"])):
            for key, value in of_steps.exclude("recorded", "next").items():
                is_there = of_steps.get(("recorded", key), torch.ones(len(steps), dtype=torch.bool))
                assert same(value[is_there], of_rollout[key][: len(steps)][is_there]), key
                is_whole &= is_there
        assert int(is_whole.sum()) == there[episode]


def test_a_file_that_ends_in_zeros_comes_back(path, killed):
    """Some file systems leave zeros after a power cut."""
    left, rollout = killed
    path.write_bytes(left + bytes(5000))
    assert_same(load(path).rollout(), rollout)


def test_a_run_can_be_read_while_recording(path):
    env = SerialEnv(2, cartpole).append_transform(RerunRecorder(path))
    first = env.rollout(30, break_when_any_done=False)
    env.transform.dump()
    assert_same(load(path).rollout(), first)
    second = env.rollout(30, break_when_any_done=False)
    env.close()
    assert_same(load(path).rollout(), torch.cat([first, second], 1))


def test_a_replaced_file_is_read_again(path):
    """Cached chunks of the earlier file are not used."""
    for _ in range(2):
        rollout = record(cartpole(), path, 20, overwrite=True)
        assert same(load(path)[0]["observation"][:-1], of_episodes(rollout)[0, 0]["observation"])


def test_files_merged_by_rerun_come_back(tmp_path):
    rollout = record(Zoo((2,)), tmp_path / "run", 30, split="episode", image_format="png")
    files = [str(found.path) for found in list_episodes(tmp_path / "run").episodes]
    merged = tmp_path / "merged.rrd"
    for command in ("merge", "optimize"):
        subprocess.run([sys.executable, "-m", "rerun_cli", "rrd", command, *files, "-o", merged], check=True)
        assert_same(load(merged).rollout(), rollout)


def test_a_catalog_comes_back(tmp_path):
    rollout = record(SerialEnv(2, cartpole), tmp_path / "run", 40, split="episode")
    files = [found.path for found in list_episodes(tmp_path / "run").episodes]
    with rr.server.Server(host="127.0.0.1", datasets={"ppo": files}) as server:
        found = load(server.client().get_dataset("ppo"))
        assert_same(found.rollout(), rollout)
        assert (
            found.where(lambda episode: episode.env == 1)[0].properties
            == load(files).where(lambda episode: episode.env == 1)[0].properties
        )


def test_a_catalog_of_whole_runs_comes_back(tmp_path):
    rollout = record(SerialEnv(2, pixel_cartpole), tmp_path / "run.rrd", 40, image_format="png")
    with rr.server.Server(host="127.0.0.1", datasets={"runs": [str(tmp_path / "run.rrd")]}) as server:
        dataset = server.client().get_dataset("runs")
        found = load(dataset)
        assert_same(found.rollout(), rollout)
        for one, other in zip(found, load(tmp_path / "run.rrd"), strict=True):
            assert one.properties == other.properties
            assert_same(one.tensordict(), other.tensordict())
        assert {each.files for each in found} == {()}
        assert table_of(found)["files"].to_pylist() == [[]] * len(found)


def test_sources_without_recordings_are_refused(tmp_path, path):
    with pytest.raises(FileNotFoundError, match="nowhere doesn't exist"):
        load(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="nothing matches"):
        load(tmp_path / "*.rrd")
    path.write_text("precious")
    with pytest.raises(ValueError, match="is not a recording"):
        load(path)
    path.write_bytes(b"")
    with pytest.raises(ValueError, match="is empty"):
        load(path)
    rr.RecordingStream("other").save(path)
    with pytest.raises(ValueError, match=r"no recording of torchrl_rerun|isn't finished"):
        load(path)


def test_a_damaged_file_among_others_is_left_out(tmp_path):
    rollout = record(cartpole(), tmp_path / "run.rrd", 5)
    (tmp_path / "other.rrd").write_text("precious")
    with pytest.warns(RuntimeWarning, match=r"left out: .*other.rrd is not a recording"):
        found = load(tmp_path)
    assert_same(found.rollout(), rollout)


# --- selections ---


def test_episodes_and_keys_can_be_selected(tmp_path):
    rollout = record(SerialEnv(3, cartpole), tmp_path / "run.rrd", 60)
    found = load(tmp_path / "run.rrd")
    short = found.where(lambda episode: episode.env == 1 and episode.length < 20)
    assert 0 < len(short) < len(found)
    assert all(each.properties.env == 1 for each in short)
    steps = short.rollout(["observation", ("next", "reward")])
    assert set(leaves(steps)) == {"observation", ("next", "observation"), ("next", "reward")}
    wanted = torch.cat([of_episodes(rollout)[each.properties.id] for each in short])
    assert same(steps["observation"][0], wanted["observation"])
    assert len(found[2:5]) == 3
    assert ("episode_return",) in found.keys()
    assert found.rollout(["action"]).shape == (3, 60)
    assert same(
        found.rollout(["episode_return"])["next", "episode_return"][0, :5], torch.arange(1.0, 6).double()[:, None]
    )
    with pytest.raises(KeyError, match="'obs' is not recorded, but 'observation'"):
        found.rollout(["obs"])
    with pytest.raises(TypeError, match=r"pass a list of keys.*\['action'\]"):
        found[0].tensordict("action")
    assert "episodes, 180 steps in all, of 'observation'" in repr(found)


def test_episodes_can_be_selected_by_annotations(tmp_path):
    recorder = RerunRecorder(tmp_path / "run", split="episode")
    env = GymWrapper(Lengths()).append_transform(recorder)
    for number in range(4):
        env.rollout(100)
        recorder.annotate(success=number > 1)
    env.close()
    found = load(tmp_path / "run").where(lambda episode: episode["success"])
    assert [each.properties.episode for each in found] == [2, 3]
    assert found[0].properties.start_time < datetime.now(UTC)


def test_only_chunks_of_selected_episodes_and_keys_are_read(path, monkeypatch):
    from torchrl_rerun.rrd import file_part

    record(SerialEnv(2, pixel_cartpole), path, 120, buffer_bytes=1 << 20, image_format="jpeg")
    read = []
    original = file_part._read_chunk
    monkeypatch.setattr(
        file_part, "_read_chunk", lambda part, at: read.append(int(part.index.sizes[at])) or original(part, at)
    )
    episodes = load(path)
    assert not read
    last = episodes[-1]
    read.clear()
    last.tensordict(["observation"])
    assert sum(read) < 50_000
    last.tensordict(["pixels"])
    assert sum(read) < path.stat().st_size / 4


# --- learning from recordings ---


def test_a_replay_buffer_samples_slices_within_episodes(path):
    rollout = record(SerialEnv(2, cartpole), path, 100)
    episodes = load(path)
    buffer = episodes.replay_buffer(batch_size=32, slice_len=4)
    assert len(buffer) == 200
    wanted = {number: of_episodes(rollout)[each.properties.id] for number, each in enumerate(episodes)}
    for _ in range(20):
        for piece in buffer.sample().reshape(-1, 4):
            [number] = piece["collector", "traj_ids"].unique().tolist()  # interrupted episodes end, too
            rows = wanted[number]["observation"].tolist()
            first = rows.index(piece["observation"][0].tolist())
            assert piece["observation"].tolist() == rows[first : first + 4]
    assert load(path).replay_buffer(batch_size=7).sample().shape == (7,)
    with pytest.raises(ValueError, match="batch_size=6 is no multiple of slice_len=4"):
        load(path).replay_buffer(batch_size=6, slice_len=4)
    with pytest.raises(ValueError, match="no episode has 1000 steps: the longest has"):
        episodes.replay_buffer(batch_size=32, slice_len=1000)


def test_a_replay_buffer_holds_every_step_once(tmp_path):
    rollout = record(Zoo((2,)), tmp_path / "run", 60, image_format="png", split="episode")
    for storage in (None, LazyTensorStorage(200)):
        buffer = load(tmp_path / "run").replay_buffer(batch_size=4, storage=storage, keys=["count", "image", "reward"])
        found = sorted(zip(buffer[:]["count"].tolist(), buffer[:]["next", "reward"].flatten().tolist(), strict=True))
        wanted = zip(rollout["count"].flatten().tolist(), rollout["next", "reward"].flatten().tolist(), strict=True)
        assert found == sorted(wanted)


def test_datasets_hold_all_steps_and_slices(path):
    rollout = record(SerialEnv(2, cartpole), path, 60)
    episodes = load(path)
    steps = episodes.dataset()
    assert len(steps) == 120
    wanted = torch.cat([of_episodes(rollout)[each.properties.id] for each in episodes])
    assert_same(torch.stack([steps[i] for i in range(120)]), wanted)
    slices = episodes.dataset(5)
    assert len(slices) == sum(max(0, each.properties.length - 4) for each in episodes)
    for number in (0, 17, len(slices) - 1, -1):
        assert slices[number].shape == (5,)
        assert not slices[number]["next", "done"][:-1].any()
    with pytest.raises(IndexError, match="and none is"):
        slices[len(slices)]
    with pytest.raises(ValueError, match="slice_len=0"):
        episodes.dataset(0)
    assert same(pickle.loads(pickle.dumps(slices))[3]["observation"], slices[3]["observation"])


def test_a_data_loader_reads_with_forked_workers(path):
    rollout = record(SerialEnv(2, pixel_cartpole), path, 10, image_format="png")
    dataset = load(path).dataset(keys=["pixels", "action"])
    loader = torch.utils.data.DataLoader(dataset, 10, num_workers=2, collate_fn=torch.stack)
    found = torch.cat(list(loader))
    wanted = torch.cat([of_episodes(rollout)[each.properties.id] for each in load(path)])
    assert same(found["next", "pixels"], wanted["next", "pixels"])
    assert same(found["action"], wanted["action"])


def test_a_data_loader_reads_with_a_spawned_worker(path):
    record(cartpole(), path, 40)
    episodes = load(path)
    items = torch.utils.data.ConcatDataset([episodes.dataset(), episodes.dataset(4)])
    loader = torch.utils.data.DataLoader(items, num_workers=1, multiprocessing_context="spawn", collate_fn=torch.stack)
    found = list(loader)
    assert len(found) == len(items) > 40
    for each, wanted in zip(found, items, strict=True):
        assert_same(each, wanted.unsqueeze(0))


WRITE = """
import torch
from tensordict import TensorDict
from torchrl_rerun import RerunRecorder

pixels = torch.randint(0, 256, (301, 84, 84, 3), dtype=torch.uint8)
done = torch.arange(1, 301)[:, None] == 300
of_one = {"reward": torch.rand(300, 1), "done": done, "pixels": pixels[1:]}
episode = TensorDict({"pixels": pixels[:-1], "done": torch.zeros_like(done), "next": of_one}, [300])
with RerunRecorder("run.rrd", image_format="raw", buffer_bytes=8 << 20) as recorder:
    for _ in range(20):
        recorder.log_rollout(episode)
"""
READ = """
import resource
from torchrl_rerun import load

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10

load("run.rrd")[0]["reward"]
before = peak()
{read}
print(peak() - before)
"""


def test_data_that_is_not_selected_takes_no_memory(tmp_path):
    """The recording has 120 MiB; a process of its own measures its memory."""

    def told(program):
        done = subprocess.run([*python(), "-c", program], cwd=tmp_path, capture_output=True, text=True)
        assert not done.returncode, done.stderr
        return done.stdout

    told(WRITE)
    assert (tmp_path / "run.rrd").stat().st_size > 120 << 20
    an_episode = "assert len(load('run.rrd')[5].tensordict()) == 300"
    a_key = "assert len(load('run.rrd').rollout(['reward'])) == 6000"
    assert int(told(READ.format(read=an_episode))) < 80
    assert int(told(READ.format(read=a_key))) < 20
