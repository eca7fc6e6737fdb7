"""Threads that encode pictures: order, errors, forks and the end of the program."""

from __future__ import annotations

import os
import subprocess
import threading
import warnings

import pytest
import torch
from torchrl.envs import SerialEnv

from environments import Scripted
from pictures import picture, psnr
from programs import python
from readback import read, read_folder
from torchrl_rerun import RecordingError, RerunRecorder
from torchrl_rerun.chunks.encoding_threads import submit


def test_tasks_return_results_and_errors():
    done = [submit(lambda i=i: (i, threading.current_thread().name)) for i in range(200)]
    assert [future.result(10)[0] for future in done] == list(range(200))
    assert {future.result()[1] for future in done} == {"torchrl_rerun-encoder"}
    with pytest.raises(ZeroDivisionError):
        submit(lambda: 1 / 0).result(10)
    assert submit(lambda: "goes on").result(10) == "goes on"


def test_encoding_threads_do_not_delay_the_end_of_the_program():
    code = "import time; from torchrl_rerun.chunks.encoding_threads import submit; submit(lambda: time.sleep(60))"
    subprocess.run([*python(), "-c", code], check=True, timeout=30)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there are no forks here")
def test_a_forked_process_has_its_own_encoding_threads():
    submit(lambda: None).result(10)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # warnings of forks of programs with threads
        child = os.fork()
    if not child:
        os._exit(submit(lambda: 7).result(10))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


@pytest.mark.parametrize("image_format", ["jpeg", "png", "h264"])
@pytest.mark.parametrize("split", ["run", "episode"])
def test_pictures_of_each_environment_are_in_order(tmp_path, image_format, split):
    """Two keys of several environments, in several blocks."""

    def observed(env):
        return lambda t: {"a": picture(5 * t + 50 * env, (24, 40, 3)), "b": picture(9 * t + 70 * env, (24, 40, 1))}

    env = SerialEnv(3, [lambda i=i: Scripted(observed(i)) for i in range(3)])
    path = tmp_path / ("run.rrd" if split == "run" else "run")
    env = env.append_transform(RerunRecorder(path, image_format=image_format, split=split, buffer_bytes=100_000))
    env.rollout(20, break_when_any_done=False)
    env.close()
    found = {None: read(path)} if split == "run" else read_folder(path)
    for index in range(3):
        for key in "ab":
            rows = found[None][f"/env_{index}/{key}"] if split == "run" else found[index, 0][f"/{key}"]
            assert rows.along("episode_step") == list(range(21))
            for t, value in enumerate(rows.values):
                assert psnr(value, observed(index)(t)[key]) > 25, (index, key, t)


def test_an_encoder_that_fails_gives_an_error(path):
    """x264 encodes no video wider than 16384 px."""
    env = Scripted(lambda t: {"x": torch.zeros(2, 20_000, 3, dtype=torch.uint8)})
    env = env.append_transform(RerunRecorder(path, image_format="h264"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        env.rollout(5)
        with pytest.raises(RecordingError, match="6 frames were lost"):
            env.transform.dump()
        with pytest.raises(RecordingError):
            env.close()


@pytest.mark.parametrize("image_format", ["jpeg", "av1"])
def test_a_program_without_close_loses_no_picture(path, image_format):
    """Pictures are encoded at the end of the program."""
    code = f"""
import torch
from torchrl.envs import GymEnv, SerialEnv
from torchrl_rerun import RerunRecorder
torch.manual_seed(0)
env = SerialEnv(2, lambda: GymEnv("CartPole-v1", from_pixels=True))
env.set_seed(0)
env = env.append_transform(RerunRecorder({str(path)!r}, image_format={image_format!r}))
env.rollout(10, break_when_any_done=False)
"""
    subprocess.run([*python(), "-c", code], check=True, timeout=120)
    recorded = read(path)
    assert [len(recorded[f"/env_{env}/pixels"].values) for env in range(2)] == [11, 11]
