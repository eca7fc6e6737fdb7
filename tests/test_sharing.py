"""Several recorders on one path; copies of a recorder in several processes; and interruptions."""

from __future__ import annotations

import copy
import multiprocessing
import pickle
import subprocess
import textwrap

import pytest
from rerun.chunk import RrdReader
from torchrl.envs import GymEnv, ParallelEnv, SerialEnv, TransformedEnv

from environments import cartpole
from programs import python
from readback import read
from servers import PATIENCE
from torchrl_rerun import RerunRecorder
from torchrl_rerun.errors import FileInUseError
from trainings import PREAMBLE, run


def recorded_steps(path, env: int = 0) -> int:
    return len(read(path)[f"/env_{env}/reward"].values)


def files_beside(path) -> list[str]:
    return sorted(file.name for file in path.parent.iterdir() if not file.name.endswith("black_box"))


# --- one path ---


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_second_recorder_on_a_path_is_refused(path, overwrite):
    """The second recorder is refused with any options. The recording of the first one is complete."""
    first = cartpole().append_transform(RerunRecorder(path))
    second = cartpole().append_transform(RerunRecorder(path, overwrite=overwrite))  # no recorder has begun
    first.rollout(5)
    with pytest.raises(FileInUseError, match="being written by another recorder"):
        second.rollout(5)
    first.rollout(5)
    first.close()
    second.close()
    assert recorded_steps(path) == 10
    assert files_beside(path) == ["run.rrd"]


def test_a_path_is_free_again_when_its_recorder_is_closed(path):
    for steps in (3, 4):
        env = cartpole().append_transform(RerunRecorder(path, overwrite=True))
        env.rollout(steps)
        env.close()
        assert recorded_steps(path) == steps


def test_a_second_process_on_a_path_is_refused(path):
    env = cartpole().append_transform(RerunRecorder(path))
    env.rollout(5)
    env.transform.dump()
    script = """
        for overwrite in (False, True):
            try:
                cartpole().append_transform(RerunRecorder(path, overwrite=overwrite)).rollout(5)
            except FileExistsError as error:
                print(error)
        """
    said = run(script, path).stdout.splitlines()
    assert "exists" in said[0]
    assert "being written by another recorder" in said[1]
    env.rollout(5)
    env.close()
    assert recorded_steps(path) == 10
    assert files_beside(path) == ["run.rrd"]


# --- copies ---


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda it: pickle.loads(pickle.dumps(it))], ids=["deepcopy", "pickle"]
)
def test_a_copy_of_a_recorder_in_use_writes_a_file_of_its_own(path, copied):
    env = cartpole().append_transform(RerunRecorder(path))
    env.rollout(5)
    other = copied(env.transform)
    assert files_beside(path) == ["run.rrd"]  # the recorder has no frame yet
    beside = TransformedEnv(cartpole(), other)
    beside.rollout(3)
    env.rollout(5)
    beside.close()
    env.close()
    assert files_beside(path) == ["run.rrd", "run.worker_0.rrd"]
    assert recorded_steps(path) == 10
    assert recorded_steps(path.with_name("run.worker_0.rrd")) == 3


def test_a_deep_copy_of_a_recorder_in_use_leaves_its_recording_unchanged(path):
    env = SerialEnv(2, cartpole).append_transform(RerunRecorder(path))
    env.rollout(5)
    state = copy.deepcopy(env.transform)
    del state
    env.rollout(5, break_when_any_done=False)
    env.close()
    assert recorded_steps(path) == recorded_steps(path, 1)
    assert files_beside(path) == ["run.rrd"]


def test_a_clone_beside_a_recorder_in_use_records_nothing(path):
    env = cartpole().append_transform(RerunRecorder(path))
    env.rollout(5)
    clone = env.transform.clone()
    other = TransformedEnv(cartpole(), clone)
    other.rollout(4)
    env.rollout(5)
    other.close()
    env.close()
    assert files_beside(path)[-1] == "run.rrd"
    assert recorded_steps(path) == 10


# --- interruptions ---


def test_a_dump_after_ctrl_c_in_dump_writes_the_rest(path):
    """No frame is lost, and the process ends by itself."""
    done = run(
        """
        import threading
        env = SerialEnv(2, functools.partial(GymEnv, "CartPole-v1", from_pixels=True, pixels_only=False))
        env = env.append_transform(RerunRecorder(path, image_format="png"))
        env.rollout(30, break_when_any_done=False)
        interrupted = 0
        for delay in (0.0, 0.02, 0.05):
            try:
                threading.Timer(delay, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
                env.transform.dump()
                time.sleep(1e6)  # if the interrupt comes after the dump
            except KeyboardInterrupt:
                interrupted += 1
            env.rollout(10, break_when_any_done=False)
        print("interrupted", interrupted)
        env.transform.dump()
        env.close()
        """,
        path,
    )
    assert "interrupted 3" in done.stdout
    for env in range(2):
        assert read(path)[f"/env_{env}/reward"].along("step") == list(range(1, 61))


def test_ctrl_c_ends_a_training_and_its_recording(path):
    source = PREAMBLE + textwrap.dedent(
        """
        import itertools
        env = SerialEnv(2, cartpole).append_transform(RerunRecorder(path))
        env.rollout(20, break_when_any_done=False)
        gc.collect()  # an interrupt that falls into an EnvBase.__del__ is swallowed by Python
        calls = itertools.count()
        def say(*_):
            if next(calls) == 10:
                print("training", flush=True)
        env.rollout(10_000_000, break_when_any_done=False, callback=say)
        """
    )
    process = subprocess.Popen(
        [*python(), "-c", source, str(path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout.readline() == "training\n"
        process.send_signal(2)
        _, errors = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
        process.communicate()
    assert "KeyboardInterrupt" in errors
    steps = read(path)["/env_1/reward"].along("step")
    assert steps == list(range(1, len(steps) + 1))
    assert len(steps) > 20


# --- workers ---


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_worker_process_writes_its_frames_at_its_end(path, method):
    """The process neither dumps nor closes."""
    worker = multiprocessing.get_context(method).Process(target=work, args=(path,))
    worker.start()
    worker.join(60)
    assert worker.exitcode == 0
    assert recorded_steps(path) == 7
    assert RrdReader(path).blueprints()


def work(path):
    env = GymEnv("CartPole-v1").append_transform(RerunRecorder(path))
    env.rollout(7)


def test_forked_workers_with_the_recorder_of_their_parent_have_their_own_files(path):
    """The parent keeps the path of the recorder."""
    script = """
        import multiprocessing
        env = cartpole().append_transform(RerunRecorder(path))
        env.rollout(5)
        def work(steps):
            env.rollout(steps)
        workers = [multiprocessing.get_context("fork").Process(target=work, args=(n,)) for n in (3, 4)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(60)
            assert worker.exitcode == 0
        env.rollout(5)
        """
    run(script, path)
    assert recorded_steps(path) == 10
    counts = [recorded_steps(path.with_name(f"run.worker_{number}.rrd"), number) for number in range(2)]
    assert sorted(counts) == [3, 4]
    assert files_beside(path) == ["run.rrd", "run.worker_0.rrd", "run.worker_1.rrd"]


def test_a_trial_environment_of_workers_takes_no_file(path):
    """TorchRL wraps a lambda in an ``EnvCreator``, which makes and steps a trial environment in the parent."""
    env = ParallelEnv(2, lambda: GymEnv("CartPole-v1").append_transform(RerunRecorder(path)))
    env.rollout(3)
    env.close()
    assert sorted(file.name for file in path.parent.iterdir()) == ["run.worker_0.rrd", "run.worker_1.rrd"]
    assert read(path.with_name("run.worker_1.rrd"))["/env_1/observation"].along("step") == [0, 1, 2, 3]
