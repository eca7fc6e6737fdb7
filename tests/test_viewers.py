"""A file and live viewers at once: real viewers on loopback that are killed, stopped and continued."""

from __future__ import annotations

import os
import signal
import subprocess
import time
import warnings
from pathlib import Path

import pytest
import rerun as rr
from rerun.chunk import RrdReader
from torchrl.envs import GymEnv, ParallelEnv

from environments import LargePictures, cartpole
from looking import headless_viewer, opened, rerun_views
from programs import python
from readback import frames, frames_so_far, read
from servers import PATIENCE, free_port, received, started_viewer, wait_until
from torchrl_rerun import RerunRecorder, layout


@pytest.fixture
def impatient(monkeypatch):
    """Give up viewers that block sooner."""
    for module in ("live", "viewers"):
        monkeypatch.setattr(f"torchrl_rerun.writing.{module}.STALL_SECONDS", 2.0)


@pytest.fixture
def viewer():
    """Start a viewer's server without windows. Return its process and URL."""
    with started_viewer() as server:
        yield server


def test_file_and_viewer_get_every_frame(path, viewer, tmp_path):
    _, url = viewer
    shown = tmp_path / "shown.rrd"
    with received(url, shown, lambda: len(frames_so_far(shown)) == 41):
        env = LargePictures().append_transform(RerunRecorder([path, url], in_keys=["x", "pixels"]))
        env.rollout(40)
        env.transform.dump()
        stats = env.transform.stats()
        env.close()
    assert stats["frames_dropped"] == stats["frames_waiting"] == 0
    assert frames(path) == list(range(41))
    assert frames(shown) == list(range(41))


def test_a_viewer_alone_gets_every_frame(viewer, tmp_path):
    _, url = viewer
    shown = tmp_path / "shown.rrd"
    with received(url, shown, lambda: len(frames_so_far(shown)) == 21):
        env = LargePictures().append_transform(RerunRecorder(url, in_keys=["x", "pixels"]))
        env.rollout(20)
        env.transform.dump()
        env.close()
    assert frames(shown) == list(range(21))
    assert [file.name for file in tmp_path.iterdir()] == ["shown.rrd"]


def test_a_viewer_gets_the_layout(path, viewer, tmp_path):
    """The default layout, which names and colours lines."""
    _, url = viewer
    shown = tmp_path / "shown.rrd"
    with received(url, shown, lambda: frames_so_far(shown, "/env_0/observation") == frames(path, "/env_0/observation")):
        env = GymEnv("CartPole-v1").append_transform(RerunRecorder([path, url]))
        env.rollout(20, break_when_any_done=False)
        env.transform.dump()
        assert env.transform.stats()["frames_dropped"] == 0
        env.close()
    assert frames(path, "/env_0/observation") == frames(shown, "/env_0/observation")
    with headless_viewer() as client:
        views = rerun_views(opened(client, shown, 5))
    assert ("TimeSeries", "/", "episode_return, whole run") in views


def test_a_layout_that_cannot_be_sent_loses_no_frame(path, viewer):
    def mine(recorded):
        made = layout.layout(recorded)
        made.of_mine = lambda: None  # can't be pickled
        return made

    env = GymEnv("CartPole-v1").append_transform(RerunRecorder([path, viewer[1]], blueprint=mine))
    with pytest.warns(RuntimeWarning, match="the viewer at .* gets no layout: .*pickle"):
        env.rollout(20, break_when_any_done=False)
    env.close()
    assert read(path)["/env_0/reward"].along("step") == list(range(1, 21))
    assert RrdReader(path).blueprints()


def test_viewers_may_connect_to_a_server(tmp_path):
    port, shown = free_port(), tmp_path / "shown.rrd"
    sink = rr.GrpcServerSink("127.0.0.1", port)
    env = LargePictures().append_transform(RerunRecorder(sink, in_keys=["x", "pixels"]))
    env.rollout(20)
    env.transform.dump()
    with received(sink.uri, shown, lambda: len(frames_so_far(shown)) == 42):
        env.rollout(20)
        env.transform.dump()
    env.close()
    assert frames(shown) == list(range(42))  # a viewer that connects late gets all frames


def test_workers_may_share_a_viewer(viewer, tmp_path):
    _, url = viewer
    shown = tmp_path / "shown.rrd"

    def make():
        return cartpole().append_transform(RerunRecorder(url))

    with received(url, shown, lambda: all(len(frames_so_far(shown, f"/env_{env}/reward")) == 10 for env in range(2))):
        env = ParallelEnv(2, make)
        env.rollout(10, break_when_any_done=False)
        env.close()
    entities = {chunk.entity_path for chunk in RrdReader(shown).stream()}
    assert {"/env_0/reward", "/env_1/reward"} <= entities


def test_a_missing_viewer_is_an_error_at_the_first_reset(path):
    url = f"rerun+http://127.0.0.1:{free_port()}/proxy"
    env = cartpole().append_transform(RerunRecorder([path, url]))
    with pytest.raises(ConnectionError, match=r"no viewer at .*start one with"):
        env.reset()
    assert not path.exists()


def test_a_viewer_that_does_not_answer_is_an_error_at_the_first_reset(path, viewer):
    process, url = viewer
    process.send_signal(signal.SIGSTOP)
    env = cartpole().append_transform(RerunRecorder([path, url]))
    with pytest.raises(ConnectionError, match="no answer"):
        env.reset()
    assert not path.exists()


def train_until(env, condition):
    """Train at 60 steps a second, like a real environment, until a condition holds."""

    def trained():
        env.rollout(5)
        time.sleep(5 / 60)
        return condition()

    wait_until(trained)


def test_a_killed_viewer_gives_one_warning_and_the_file_is_complete(path, viewer):
    process, url = viewer
    env = LargePictures().append_transform(RerunRecorder([path, url], in_keys=["x", "pixels"]))
    env.rollout(5)
    env.transform.dump()
    process.kill()
    with pytest.warns(RuntimeWarning, match=r"the viewer at .* is gone") as warned:
        train_until(env, lambda: len(warned) and env.transform.stats()["frames_dropped"] > 100)
    assert len([w for w in warned if "is gone" in str(w.message)]) == 1
    env.transform.dump()
    stats = env.transform.stats()
    assert stats["frames_lost"] == 0
    assert stats["frames_dropped"] > 0
    env.close()
    assert frames(path) == list(range(stats["frames"]))


@pytest.mark.usefixtures("impatient")
def test_a_viewer_that_stops_reading_does_not_stop_the_file(path, viewer):
    process, url = viewer
    env = LargePictures().append_transform(RerunRecorder([path, url], in_keys=["x", "pixels"], image_format="raw"))
    env.rollout(5)
    env.transform.dump()
    process.send_signal(signal.SIGSTOP)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        train_until(env, lambda: env.transform.stats()["frames_dropped"])
    env.transform.dump()
    env.close()
    recorded = frames(path)
    assert recorded == list(range(len(recorded)))


def test_a_viewer_that_goes_on_gets_later_frames(path, viewer, tmp_path):
    process, url = viewer
    shown = tmp_path / "shown.rrd"
    with received(url, shown, lambda: frames_so_far(shown)[-1:] == frames(path)[-1:]):
        env = LargePictures().append_transform(RerunRecorder([path, url], in_keys=["x", "pixels"], image_format="raw"))
        env.rollout(5)
        env.transform.dump()
        process.send_signal(signal.SIGSTOP)
        for _ in range(36):
            env.rollout(5)
        process.send_signal(signal.SIGCONT)
        env.transform.dump()
        for _ in range(12):
            env.rollout(5)
        env.transform.dump()
        dropped = env.transform.stats()["frames_dropped"]
        env.close()
    every, seen = frames(path), frames(shown)
    assert every == list(range(len(every)))
    assert set(seen) <= set(every)
    assert len(every) - len(seen) <= dropped
    assert seen[-1] == every[-1]


@pytest.mark.parametrize("end", ["", "env.close()", "os._exit(0)"])
def test_the_process_ends_beside_a_stopped_viewer(path, viewer, end):
    process, url = viewer
    script = f"""
import os, signal, sys, warnings
sys.path.insert(0, {str(Path(__file__).parent)!r})
warnings.simplefilter("ignore")
from environments import LargePictures
from torchrl_rerun import RerunRecorder
from torchrl_rerun.writing import viewers
viewers.STALL_SECONDS = 2.0
env = LargePictures().append_transform(RerunRecorder([sys.argv[1], sys.argv[2]], in_keys=["x", "pixels"], image_format="raw"))
env.rollout(5)
env.transform.dump()
os.kill(int(sys.argv[3]), signal.SIGSTOP)
env.rollout(200)
print("end", flush=True)
{end}
"""
    run = subprocess.Popen(
        [*python(), "-c", script, str(path), url, str(process.pid)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert run.stdout.readline() == "end\n"
        assert run.wait(PATIENCE) == 0
    finally:
        run.kill()
        run.stdout.close()
    if end != "os._exit(0)":
        assert frames(path) == list(range(207))


def test_invalid_sinks_are_refused(path):
    with pytest.raises(ValueError, match="one file, viewers"):
        RerunRecorder([path, path.with_name("other.rrd")])
    with pytest.raises(ValueError, match="no address of a viewer"):
        RerunRecorder("http://127.0.0.1")
    for sink, named in (
        (4, "4 is of type int"),
        ([path, 4], "4 is of type int"),
        (b"run.rrd", "b'run.rrd' is of type bytes"),
    ):
        with pytest.raises(TypeError, match=f"{named}; pass a path that ends in '.rrd' .*; or None"):
            RerunRecorder(sink)
    assert os.listdir(path.parent) == []
