"""Faults and their results, section by section, with real files and real processes."""

from __future__ import annotations

import functools
import os
import re
import signal
import subprocess
import sys
import textwrap

import pytest
import torch
from tensordict import TensorDict
from torchrl.data import Unbounded
from torchrl.envs import Compose, GymEnv, ParallelEnv, SerialEnv, StepCounter, TransformedEnv, step_mdp

from driving import walk
from environments import Odd, Scripted
from interrupts import interrupted
from programs import python
from readback import read
from rrd_files import has_footer
from torchrl_rerun import Image, RecordingError, RerunRecorder
from torchrl_rerun.blocks.block import Block
from torchrl_rerun.blocks.buffer import Buffer
from torchrl_rerun.blocks.events import Events
from torchrl_rerun.blocks.lease import BlockLease
from torchrl_rerun.recording.buffers import Buffers
from torchrl_rerun.recording.recording import Recording
from torchrl_rerun.writing.writer import WriterThread
from trainings import PREAMBLE, run

cartpole = functools.partial(GymEnv, "CartPole-v1")


# --- mistakes of the user ---


def test_a_key_that_the_environment_lacks_is_an_error(path):
    env = cartpole().append_transform(RerunRecorder(path, in_keys=["observation", "pixles"]))
    with pytest.raises(KeyError, match=r"'pixles'.*'observation'"):
        env.rollout(3)
    assert not path.exists()


@pytest.mark.parametrize(
    "option", [{"names": {"observations": ["x"]}}, {"kinds": {"act": "scalars"}}, {"kinds": {"pixels": Image("raw")}}]
)
def test_an_option_for_a_key_that_is_not_recorded_is_an_error(path, option):
    env = cartpole().append_transform(RerunRecorder(path, **option))
    with pytest.raises(KeyError, match=r"is not recorded; there are 'action'"):
        env.rollout(3)
    assert not path.exists()


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("fps", "30", "pass frames per second"),
        ("blueprint", "grid", "rerun.blueprint.Blueprint"),
        ("recording_id", 5, "pass a string"),
        ("names", ["x"], "pass a dictionary"),
        ("names", {"action": "torque"}, r"even of one: \['torque'\]"),
        ("kinds", "image", "pass a dictionary"),
        ("image_format", 90, "pass a format"),
        ("logged_envs", 1.5, "pass indices"),
    ],
)
def test_options_of_the_wrong_type_are_refused(path, option, value, message):
    with pytest.raises(TypeError, match=f"{option}.*{message}"):
        RerunRecorder(path, **{option: value})


def test_empty_in_keys_and_logged_envs_are_refused(path):
    with pytest.raises(ValueError, match="in_keys is empty"):
        RerunRecorder(path, in_keys=[])
    with pytest.raises(ValueError, match="logged_envs is empty"):
        RerunRecorder(path, logged_envs=[])


@pytest.mark.parametrize("in_keys", ["reward", ("reward",), [("next", "reward")]])
def test_in_keys_may_be_a_single_key(path, in_keys):
    env = cartpole().append_transform(RerunRecorder(path, in_keys=in_keys))
    env.rollout(3)
    env.close()
    assert {name for name in read(path).entities if name.startswith("/env_0/")} == {
        "/env_0/reward",
        "/env_0/episode_return",
    }


def test_a_group_in_in_keys_is_an_error_that_names_its_leaves(path):
    class Grouped(Odd):
        def _observe(self):
            return TensorDict(robot=TensorDict(joints=torch.zeros(2), speed=torch.zeros(1)), x=torch.zeros(1))

    env = Grouped().append_transform(RerunRecorder(path, in_keys=["robot"]))
    with pytest.raises(KeyError, match=r"'robot' is a group of keys.*\('robot', 'joints'\), \('robot', 'speed'\)"):
        env.rollout(3)
    assert not path.exists()


@pytest.mark.parametrize(
    "mistake",
    [
        {"in_keys": ["observation", "log_prob"]},
        {"in_keys": ["obs"]},
        {"names": {"obs": ["a"]}},
        {"logged_envs": 3},
        {"names": {"observation": ["a"]}},
    ],
)
def test_a_mistake_leaves_the_recording_to_be_replaced_unchanged(path, mistake):
    env = cartpole().append_transform(RerunRecorder(path))
    env.rollout(3)
    env.close()
    before = path.read_bytes()
    env = cartpole().append_transform(RerunRecorder(path, overwrite=True, **mistake))
    with pytest.raises((KeyError, IndexError, ValueError)):
        env.rollout(3)
    env.close()
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_actions_may_be_recorded_alone(path, recwarn):
    env = cartpole().append_transform(RerunRecorder(path, in_keys=["action"]))
    rollout = env.rollout(5)
    env.close()
    assert not [w for w in recwarn if "training goes on" in str(w.message)]
    assert torch.equal(torch.stack(read(path)["/env_0/action"].values), rollout["action"])


def test_warnings_point_at_the_users_line(path):
    env = Odd().append_transform(RerunRecorder(path, in_keys=["wave", "x"]))
    with pytest.warns(UserWarning, match="'wave' is not recorded") as warned:
        env.rollout(2)
    env.close()
    assert {w.filename for w in warned if "wave" in str(w.message)} == {__file__}


@pytest.mark.parametrize("transforms", [[], [StepCounter()]])
def test_a_key_of_the_specs_that_the_first_step_lacks_gives_a_warning(path, transforms):
    class Late(Odd):
        def __init__(self):
            super().__init__()
            self.observation_spec["late"] = Unbounded((1,))

        def _observe(self):
            out = super()._observe().select("x")
            return out if self.t < 2 else out.set("late", torch.ones(1))

    env = TransformedEnv(Late(), Compose(*transforms, RerunRecorder(path)))
    with pytest.warns(UserWarning, match="'late' is in the environment's specs, but not in its first step") as warned:
        env.rollout(4, return_contiguous=False)
    env.close()
    assert not [w for w in warned if "append the recorder last" in str(w.message)]
    assert "/env_0/late" not in read(path).entities
    assert len(read(path)["/env_0/x"].values) == 5


def test_a_warning_says_that_the_environment_waits_for_the_writer(path):
    """Pictures come faster than PNGs can be encoded: no frame is lost, and a warning gives advice."""

    class Pictures(Odd):
        def _observe(self):
            return TensorDict(x=torch.full((1,), float(self.t)), pixels=torch.randint(0, 256, (600, 600, 3)).byte())

    recorder = RerunRecorder(path, in_keys=["x", "pixels"], image_format="png", buffer_bytes=4 << 20)
    env = Pictures().append_transform(recorder)

    def record_until_it_waits():
        while env.transform.stats()["seconds_waited"] < 1.1:
            env.rollout(20)

    with pytest.warns(RuntimeWarning, match=r"waits for run\.rrd.*frames/s are recorded.*MB/s.*Nothing is lost"):
        record_until_it_waits()
    env.transform.dump()
    stats = env.transform.stats()
    assert stats["frames_waiting"] == stats["frames_lost"] == stats["bytes_waiting"] == 0
    assert stats["frames_written"] == stats["frames"]
    env.close()
    assert len(read(path)["/env_0/x"].values) == stats["frames"]


def test_logged_envs_out_of_range_are_refused(path):
    env = SerialEnv(3, cartpole).append_transform(RerunRecorder(path, logged_envs=[1, 7]))
    with pytest.raises(IndexError, match="there are 3 environments"):
        env.reset()
    assert not path.exists()


def test_an_existing_file_is_not_touched(path):
    path.write_bytes(b"precious")
    with pytest.raises(FileExistsError, match="overwrite=True"):
        RerunRecorder(path)
    assert path.read_bytes() == b"precious"
    env = cartpole().append_transform(RerunRecorder(path, overwrite=True))
    env.rollout(3)
    env.close()
    assert len(read(path)["/env_0/reward"].values) == 3


def test_a_file_that_appears_before_the_first_frame_is_not_touched(path):
    env = cartpole().append_transform(RerunRecorder(path))
    path.write_bytes(b"precious")
    with pytest.raises(FileExistsError):
        env.reset()
    env.close()
    assert path.read_bytes() == b"precious"


def test_a_folder_without_write_permission_is_an_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="not a folder"):
        RerunRecorder(tmp_path / "file" / "run.rrd")


def test_a_folder_that_cannot_be_made_is_an_error():
    for sink, split in (("/proc/runs/run.rrd", "run"), ("/proc/runs", "episode")):
        env = cartpole().append_transform(RerunRecorder(sink, split=split))
        with pytest.raises(OSError, match="the folder /proc/runs could not be made to record to: No such file"):
            env.reset()


def test_missing_folders_are_made(tmp_path):
    path = tmp_path / "runs" / "ppo" / "run.rrd"
    env = cartpole().append_transform(RerunRecorder(path))
    assert not (tmp_path / "runs").exists()
    env.rollout(2)
    env.close()
    assert path.exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fps": 0}, "fps=0 must be positive"),
        ({"buffer_bytes": -1}, "buffer_bytes=-1"),
        ({"image_format": "gif"}, "image_format='gif'"),
        ({"image_format": "bmp"}, "image_format='bmp'"),
        ({"kinds": {"observation": "plot"}}, r"kinds\['observation'\]='plot'"),
    ],
)
def test_options_out_of_range_are_refused(path, options, message):
    with pytest.raises(ValueError, match=message):
        RerunRecorder(path, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"names": {"observation": ["x", "y"]}}, "2 names, but a row has 4 numbers"),
        ({"kinds": {"observation": "image"}}, "doesn't fit float32 of shape"),
        ({"kinds": {"observation": "text"}}, "'text' is for non-tensor data"),
    ],
)
def test_options_that_do_not_fit_the_data_are_refused(path, options, message):
    env = cartpole().append_transform(RerunRecorder(path, **options))
    with pytest.raises(ValueError, match=message):
        env.reset()
    assert not path.exists()


def test_a_path_that_is_neither_a_folder_nor_an_rrd_file_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"neither a folder nor a file to record to, which ends in '\.rrd'"):
        RerunRecorder(tmp_path / "run.mp4")
    (tmp_path / "notes").write_text("mine")
    with pytest.raises(PermissionError, match="notes is not a folder that can be written"):
        RerunRecorder(tmp_path / "notes")


def test_unsupported_data_is_skipped_by_name(path):
    env = Odd().append_transform(RerunRecorder(path, in_keys=["wave", "thing", "x", "reward"]))
    with pytest.warns(UserWarning, match="is not recorded") as warned:
        walk(env)
    messages = " ".join(str(w.message) for w in warned)
    assert "'wave' is not recorded: complex32" in messages
    assert "'thing' is not recorded at frame 0: object" in messages
    assert read(path)["/env_0/x"].values[-1].item() == 4


# --- the writer fails ---


def test_an_encoder_that_fails_does_not_stop_the_environment(path):
    """No H.264 encoder takes pictures of this width."""
    options = {"image_format": "h264", "kinds": {"wide": "image"}, "buffer_bytes": 100_000}
    env = Scripted(
        lambda t: {"wide": torch.zeros(2, 20_000, 3, dtype=torch.uint8)}, specs={"wide": Unbounded((2, 20_000, 3))}
    )
    env = env.append_transform(RerunRecorder(path, **options))
    with pytest.warns(RuntimeWarning, match="training goes on"):
        rollout = env.rollout(50)
    assert len(rollout) == 50
    with pytest.raises(RecordingError, match=r"\d+ frames were lost") as raised:
        env.transform.dump()
    assert raised.value.__cause__ is not None
    assert isinstance(raised.value, OSError)
    with pytest.raises(RecordingError):
        env.close()


def test_a_full_disk_is_an_error_and_earlier_frames_are_readable(path):
    done = run(
        """
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
        env = SerialEnv(2, cartpole).append_transform(RerunRecorder(path, buffer_bytes=200_000, flush_seconds=0.05))
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            rollout = env.rollout(6000, break_when_any_done=False)
        print("steps", rollout.shape[1])
        print("warnings", sum("training goes on" in str(w.message) for w in warned))
        try:
            env.transform.dump()
        except RecordingError as error:
            print("error", error)
        try:
            env.close()
        except RecordingError:
            print("end")
        """,
        path,
    )
    assert "steps 6000" in done.stdout
    assert "warnings 1" in done.stdout
    error = next(line for line in done.stdout.splitlines() if line.startswith("error"))
    assert re.search(r"run\.rrd failed, [1-9]\d* frames were lost: .*File too large", error)
    assert "end" in done.stdout
    rows = read(path)["/env_0/reward"]  # earlier frames are readable
    assert rows.along("frame") == sorted(rows.along("frame"))


def test_a_program_ends_on_a_full_disk_without_dump_and_close(path):
    """The process ends by itself."""
    run(
        """
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        env = SerialEnv(2, cartpole).append_transform(RerunRecorder(path, buffer_bytes=100_000, flush_seconds=0.05))
        env.rollout(3000, break_when_any_done=False)
        """,
        path,
    )


def test_a_removed_file_is_an_error(path):
    env = cartpole().append_transform(RerunRecorder(path))
    env.rollout(5)
    env.transform.dump()
    path.unlink()
    env.rollout(5)
    with pytest.raises(RecordingError, match=r"12 frames were lost: .* removed or replaced"):
        env.transform.dump()
    with pytest.warns(RuntimeWarning, match="training goes on"):
        env.rollout(5)
    with pytest.raises(RecordingError):
        env.close()


def test_the_return_of_an_episode_that_was_lost_in_part_is_nan_until_the_next_reset(path):
    env = GymEnv("Pendulum-v1").append_transform(RerunRecorder(path))

    def go_on(rollout):
        return env.rollout(5, auto_reset=False, tensordict=step_mdp(rollout[..., -1]))

    rollout = env.rollout(5)
    env.transform.dump()
    path.unlink()
    rollout = go_on(rollout)
    with pytest.raises(RecordingError):
        env.transform.dump()
    rollout = go_on(rollout)
    with pytest.raises(RecordingError):
        env.transform.close()
    go_on(rollout)
    rewards = env.rollout(5)["next", "reward"].double()
    env.close()
    returns = read(path.with_name("run.part_1.rrd"))["/env_0/episode_return"]
    assert returns.along("episode") == [0] * 5 + [1] * 6
    values = torch.stack(returns.values)
    assert values[:5].isnan().all()
    assert torch.equal(values[5:], torch.cat([torch.zeros(1, 1), rewards.cumsum(0)]))


def test_stats_count_the_whole_life_of_a_recorder_and_agree_with_errors(path):
    env = cartpole().append_transform(RerunRecorder(path))
    env.rollout(2)
    env.transform.dump()
    dumped = path.stat().st_size
    env.transform.close()
    env.rollout(2)
    env.transform.dump()
    path.with_name("run.part_1.rrd").unlink()
    env.step(env.rand_action(env.reset()))
    counts = {"frames": 8, "steps": 5, "episodes": 3, "frames_written": 3, "frames_lost": 5}
    with pytest.raises(RecordingError, match=" 5 frames were lost"):
        env.transform.dump()
    for end in (env.transform.dump, env.transform.close):
        stats = env.transform.stats()
        assert {name: stats[name] for name in counts} == counts
        assert stats["frames_waiting"] == stats["bytes_waiting"] == 0
        with pytest.raises(RecordingError, match=" 5 frames were lost"):
            end()
    stats = env.transform.stats()
    assert {name: stats[name] for name in counts} == counts
    assert stats["frames_waiting"] == stats["bytes_waiting"] == 0
    waited, size = stats["seconds_waited"], stats["bytes_written"]
    assert size > dumped

    env.rollout(2)
    stats = env.transform.stats()
    assert stats["frames"] == stats["frames_written"] + stats["frames_waiting"] + 5
    assert stats["frames_lost"] == 5
    env.close()
    stats = env.transform.stats()
    grown = {"frames": 11, "steps": 7, "episodes": 4, "frames_written": 6}
    assert {name: stats[name] for name in counts} == counts | grown
    assert stats["seconds_waited"] >= waited
    assert stats["bytes_written"] > size
    assert stats["frames_waiting"] == stats["bytes_waiting"] == 0


def test_a_layout_that_cannot_be_added_leaves_a_complete_recording(path):
    import rerun.blueprint as rrb

    env = cartpole().append_transform(RerunRecorder(path, blueprint=rrb.Blueprint(rrb.Spatial2DView())))
    env.rollout(5)
    env.transform.dump()
    env.transform._front_end.recording.chunk_writer.embed = functools.partial(_raise, OSError("no room"))
    with pytest.warns(RuntimeWarning, match="has no layout: no room"):
        env.close()
    assert len(read(path)["/env_0/reward"].values) == 5


def _raise(error, *args, **kwargs):
    raise error


# --- the process ends ---


def test_kill_9_loses_no_dumped_frame(path):
    source = PREAMBLE + textwrap.dedent(
        """
        env = SerialEnv(2, cartpole).append_transform(RerunRecorder(path))
        env.rollout(50, break_when_any_done=False)
        env.transform.dump()
        print(os.getpid(), flush=True)
        while True:
            env.rollout(50, break_when_any_done=False)
            print("trained", flush=True)
        """
    )
    process = subprocess.Popen([*python(), "-c", source, str(path)], stdout=subprocess.PIPE, text=True)
    try:
        program = int(process.stdout.readline())
        assert process.stdout.readline() == "trained\n"
        os.kill(program, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    finally:
        process.kill()
        process.stdout.close()
    recorded = read(path)
    for env in range(2):
        steps = recorded[f"/env_{env}/reward"].along("step")
        assert steps[:50] == list(range(1, 51))
        assert recorded[f"/env_{env}/observation"].values[0].shape == (4,)


def test_rerun_mends_a_file_that_was_torn_by_kill_9(path):
    """A kill may come within a write. Rerun does not open such a file, but can mend it."""
    env = cartpole().append_transform(RerunRecorder(path))
    env.rollout(20, break_when_any_done=False)
    env.transform.dump()
    dumped = path.stat().st_size
    env.rollout(20, break_when_any_done=False)
    env.transform.dump()
    whole = path.read_bytes()
    env.close()
    torn, mended = path.with_name("torn.rrd"), path.with_name("mended.rrd")
    for size in (dumped + 5, (dumped + len(whole)) // 2, len(whole) - 1):
        torn.write_bytes(whole[:size])
        subprocess.run([sys.executable, "-m", "rerun_cli", "rrd", "merge", torn, "-o", mended], check=True)
        steps = read(mended)["/env_0/reward"].along("step")
        assert steps[:20] == list(range(1, 21))


@pytest.mark.parametrize("end", ["", "env.close()", "del env", "raise RuntimeError", "sys.exit(0)"])
def test_frames_without_a_dump_are_written_when_the_program_ends(path, end):
    run(
        f"""
        env = SerialEnv(2, cartpole).append_transform(RerunRecorder(path))
        env.rollout(30, break_when_any_done=False)
        {end}
        """,
        path,
        code=1 if "raise" in end else 0,
    )
    assert len(read(path)["/env_1/reward"].values) == 30


def test_a_recorder_that_is_garbage_collected_writes_its_frames(path):
    env = cartpole().append_transform(RerunRecorder(path))
    env.rollout(6)
    env.transform.__dict__["_parent"] = None
    del env
    import gc

    gc.collect()
    assert len(read(path)["/env_0/reward"].values) == 6


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_each_worker_writes_its_own_file(path, method):
    env = ParallelEnv(2, functools.partial(_recorded, path), mp_start_method=method)
    env.rollout(10)
    env.close()
    files = sorted(file.name for file in path.parent.glob("*.rrd"))
    assert files == ["run.worker_0.rrd", "run.worker_1.rrd"]
    assert len(read(path.parent / files[1])["/env_1/reward"].values) == 10


def _recorded(path):
    return cartpole().append_transform(RerunRecorder(path))


def test_a_forked_child_does_not_touch_the_recording_of_its_parent(path):
    env = cartpole().append_transform(RerunRecorder(path))
    env.rollout(5)
    child = os.fork()
    if child == 0:
        try:
            env.rollout(3)
            env.transform.close()
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    env.rollout(5)
    env.close()
    assert read(path)["/env_0/reward"].along("step") == list(range(1, 11))
    others = [file for file in path.parent.glob("*.rrd") if file != path]
    assert [len(read(file)["/env_0/reward"].values) for file in others] == [3]


def test_a_step_with_ctrl_c_is_recorded_completely_or_not_at_all(path):
    recorder = RerunRecorder(path, in_keys=["x", "picture", "reward"], buffer_bytes=1 << 13)
    env = Odd().append_transform(recorder)
    functions = [Recording._add, Recording._logged_values, Block.add, Events.append]
    functions += [Buffer.add, Buffer.seal, Buffer._start_block, Buffers.free_block_for, Buffers._enqueue]
    functions += [BlockLease.seal, BlockLease.mark_enqueued, WriterThread.put_lease]
    td = env.reset()
    td = env.step_mdp(env.step(env.rand_action(td)))  # all keys are described
    count, given = 0, 1
    while True:
        with interrupted(count, *functions) as came:
            td = env.step_mdp(env.step(env.rand_action(td)))
        td = env.step_mdp(env.step(env.rand_action(td)))
        given += 1
        if not came:
            break
        count += 7  # coprime to the number of operations of a loop
    env.close()
    assert count > 100
    recorded = read(path)
    for key in ("x", "picture", "reward"):
        rows = recorded[f"/env_0/{key}"]
        frames = rows.along("frame")
        assert frames == list(range(key == "reward", len(frames) + (key == "reward")))
        assert rows.along("episode_step") == rows.along("step") == frames
        assert given < len(frames) < 2 * given
    x = [value.item() for value in recorded["/env_0/x"].values]
    assert x == sorted(set(x))
    assert set(x) <= {float(t) for t in range(env.t + 1)}
    returns = [value.item() for value in recorded["/env_0/episode_return"].values]
    assert returns == [float(step) for step in recorded["/env_0/episode_return"].along("step")]


@pytest.mark.parametrize("then", ["close", "go on"])
def test_a_close_after_ctrl_c_in_close_writes_the_rest(tmp_path, then):
    count, came = 0, [True]
    while came:
        path = tmp_path / f"{count}.rrd"
        env = cartpole().append_transform(RerunRecorder(path, blueprint=False))
        env.rollout(5)
        with interrupted(count, Recording.close, Recording._flush, WriterThread.finish) as came:
            env.transform.close()
        if then == "go on":
            env.rollout(5)
        env.close()
        files = [path, *tmp_path.glob(f"{count}.part_*")]
        assert all(has_footer(file) for file in files)
        rows = [len(read(file)["/env_0/reward"].values) for file in files]
        assert rows in ([[5]] if then == "close" else [[5, 5], [10]])  # Ctrl-C may come before any file is closed
        count += 5
    assert count > 50


def test_recording_goes_on_after_an_exception_in_the_policy(path):
    env = cartpole().append_transform(RerunRecorder(path))

    calls = []

    def policy(tensordict):
        calls.append(tensordict)
        if len(calls) == 5:
            raise ZeroDivisionError
        return env.rand_action(tensordict)

    with pytest.raises(ZeroDivisionError):
        env.rollout(10, policy, trust_policy=True)
    env.rollout(3)
    env.close()
    rows = read(path)["/env_0/observation"]
    assert rows.along("episode") == [0] * 5 + [1] * 4
