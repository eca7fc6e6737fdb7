"""Recording streams of the user: one timeline with the user's logs, and streams that block."""

from __future__ import annotations

import copy
import multiprocessing
import pickle
import signal
import subprocess
import warnings
from pathlib import Path

import numpy as np
import pytest
import rerun as rr
import rerun.blueprint as rrb
import torch
from PIL import Image
from rerun.chunk import RrdReader
from tensordict import TensorDict
from torchrl.envs import GymEnv

from environments import LargePictures, Zoo, cartpole
from looking import opened
from programs import python
from readback import assert_rows, frames, frames_so_far, read, same
from servers import PATIENCE, free_port, received, started_viewer, wait_until
from torchrl_rerun import RecordingError, RerunRecorder, layout
from torchrl_rerun.writing import live as live_sinks

KEYS = ["x", "pixels"]


@pytest.fixture
def stream(tmp_path):
    """Make a stream that is saved to a file."""
    stream = rr.RecordingStream("mine", recording_id="one")
    stream.save(tmp_path / "stream.rrd")
    return stream


@pytest.fixture
def saved(tmp_path):
    return tmp_path / "stream.rrd"


@pytest.fixture
def impatient(monkeypatch):
    """Give up streams sooner."""
    monkeypatch.setattr(live_sinks, "STALL_SECONDS", 3.0)
    monkeypatch.setattr("torchrl_rerun.writing.rerun_streams.STALL_SECONDS", 3.0)


def rows_of(path, entity):
    chunks = RrdReader(path).stream().filter(content=entity, is_static=False)
    return [chunk.to_record_batch() for chunk in chunks]


def test_a_stream_and_a_file_get_equal_rows_bit_for_bit(path, stream, saved):
    env = Zoo((2,)).append_transform(RerunRecorder([path, stream], image_format="png"))
    env.rollout(30, break_when_any_done=False)
    env.close()
    stream.disconnect()
    ours, theirs = read(path), read(saved)
    assert (theirs.recording_id, theirs.application_id) == (ours.recording_id, ours.application_id) == ("one", "mine")
    assert theirs.schema == ours.schema
    assert set(theirs.entities) == set(ours.entities)
    for entity, rows in ours.entities.items():
        assert theirs[entity].times == rows.times
        assert all(same(a, b) for a, b in zip(theirs[entity].values, rows.values, strict=True)), entity


def test_no_frame_is_lost_if_a_stream_alone_is_slower_than_the_environment(stream, saved):
    """64 MB of raw pictures pass a queue of at most 32 MB."""
    env = LargePictures().append_transform(RerunRecorder(stream, in_keys=KEYS, image_format="raw"))
    env.rollout(600, break_when_any_done=False)
    env.transform.dump()
    stats = env.transform.stats()
    assert stats["frames_lost"] == stats["frames_dropped"] == stats["frames_waiting"] == 0
    assert stats["frames_written"] == stats["frames"]
    env.close()
    stream.disconnect()
    assert frames(saved, "/env_0/pixels") == list(range(int(stats["frames"])))


def test_user_logs_and_recorded_rows_share_a_timeline(stream, saved):
    recorder = RerunRecorder(stream, in_keys=KEYS)
    env = LargePictures().append_transform(recorder)
    for update in range(3):
        env.rollout(5)
        stream.set_time("step", sequence=int(recorder.stats()["steps"]))
        stream.log("loss", rr.Scalars(float(update)))
    env.close()
    stream.log("loss", rr.Scalars(3.0))  # the stream still belongs to the user
    stream.disconnect()
    loss, x = rows_of(saved, "/loss"), rows_of(saved, "/env_0/x")
    assert [step for batch in loss for step in batch.column("step").to_pylist()] == [5, 10, 15, 15]
    assert {batch.schema.field("step").type for batch in loss} == {batch.schema.field("step").type for batch in x}
    assert len(RrdReader(saved).recordings()) == 1


def test_the_viewer_plots_user_logs_beside_recorded_rows(stream, saved, tmp_path, viewer):
    """The viewer plots a single type of numbers in a recording."""

    def mine(recorded):
        views = [rrb.TimeSeriesView(origin=origin, axis_x=layout.whole()) for origin in ("/loss", "/env_0/reward")]
        return rrb.Blueprint(rrb.Horizontal(*views), *layout.panels(recorded), auto_views=False)

    env = GymEnv("Pendulum-v1").append_transform(RerunRecorder(stream, blueprint=mine))
    env.rollout(20)
    for frame in range(20):
        stream.set_time("frame", sequence=frame)
        stream.log("loss", rr.Scalars(float(frame % 5)))
    env.close()
    stream.disconnect()
    picture = tmp_path / "shown.png"
    opened(viewer, saved, 10)
    viewer.save_screenshot(str(picture))
    shown = np.asarray(Image.open(picture).convert("HSV"))[80:-80]
    lines = (shown[..., 1] > 120) & (shown[..., 2] > 120)  # only plots have colours
    for half in np.array_split(lines, 2, axis=1):
        rows, columns = np.nonzero(half)
        assert np.ptp(rows) > 0.2 * len(half)
        assert np.ptp(columns) > 0.4 * half.shape[1]


def test_bits_of_nan_come_back_from_a_stream(stream, saved):
    """Signaling NaN included, which conversions change."""
    bits = torch.tensor([[0x7F800001, 0x7FC00123], [0x3F800000, 0xFF800001 - (1 << 32)]], dtype=torch.int32)
    half = torch.tensor([[0x7F81, 0x3F80], [0x3F80, 0x7FC3]], dtype=torch.int16).view(torch.bfloat16)
    seen = TensorDict({"x": bits.view(torch.float32), "h": half}, [2])
    rollout = TensorDict({**seen[:1], "next": TensorDict({**seen[1:], "done": torch.zeros(1, 1).bool()}, [1])}, [1])
    with RerunRecorder(stream, in_keys=["x", "h", "done"]) as recorder:
        recorder.log_rollout(rollout)
    stream.disconnect()
    recorded = read(saved)
    assert_rows(recorded["/env_0/x"], dict(enumerate(bits.view(torch.float32))))
    assert_rows(recorded["/env_0/h"], dict(enumerate(half)))


def test_large_integers_come_back_from_a_stream(stream, saved):
    """States included, whose own numbers in the stream are rounded."""
    numbers = torch.tensor([[2**60 + 1, 3], [-(2**60) - 1, 4]])
    seen = TensorDict({"s": numbers[:, :1], "n": numbers}, [2])
    rollout = TensorDict({**seen[:1], "next": TensorDict({**seen[1:], "done": torch.zeros(1, 1).bool()}, [1])}, [1])
    with RerunRecorder(stream, in_keys=["s", "n", "done"], kinds={"s": "state"}) as recorder:
        recorder.log_rollout(rollout)
    stream.disconnect()
    recorded = read(saved)
    for key in ("s", "n"):
        assert_rows(recorded[f"/env_0/{key}"], dict(enumerate(seen[key])))


def test_the_layout_is_sent_unless_the_user_sent_one(stream, saved, tmp_path):
    bare = rr.RecordingStream("mine", recording_id="two")
    bare.save(tmp_path / "bare.rrd")
    for each, wanted in ((stream, True), (bare, False)):
        env = LargePictures().append_transform(RerunRecorder(each, in_keys=KEYS, blueprint=wanted))
        env.rollout(3)
        env.close()
        each.disconnect()
    assert len(RrdReader(saved).blueprints()) == 1
    assert RrdReader(tmp_path / "bare.rrd").blueprints() == []


def test_a_recording_stream_keeps_the_name_that_the_user_sent(stream, saved):
    stream.send_recording_name("best run")
    env = LargePictures().append_transform(RerunRecorder(stream, in_keys=KEYS))
    env.rollout(3)
    env.close()
    stream.disconnect()
    names = [chunk.to_record_batch() for chunk in RrdReader(saved).stream() if chunk.entity_path == "/__properties"]
    said = [
        batch.column("RecordingInfo:name").to_pylist() for batch in names if "RecordingInfo:name" in batch.schema.names
    ]
    assert said == [[["best run"]]]


def test_the_active_recording_is_used_at_the_first_reset(tmp_path):
    env = LargePictures().append_transform(RerunRecorder(in_keys=KEYS))
    with pytest.raises(ConnectionError, match=r"no active recording: call rr.init"):
        env.reset()
    with rr.RecordingStream("mine", recording_id="active") as stream:
        stream.save(tmp_path / "active.rrd")
        env.rollout(5)
        env.close()
    recorded = read(tmp_path / "active.rrd")
    assert recorded.recording_id == "active"
    assert recorded["/env_0/x"].along("frame") == list(range(6))


def test_file_and_grpc_sinks_of_rerun_are_refused(path):
    with pytest.raises(TypeError, match=r"pass a path that ends in '\.rrd' \(that of an rr\.FileSink, too\)"):
        RerunRecorder(rr.FileSink(path))
    with pytest.raises(TypeError, match=r"the URL of a viewer \(that of an rr\.GrpcSink, too\)"):
        RerunRecorder(rr.GrpcSink())


def test_a_file_a_stream_a_viewer_and_a_server_get_equal_frames(path, stream, saved, tmp_path):
    serve, shown, served = rr.GrpcServerSink("127.0.0.1", free_port()), tmp_path / "shown.rrd", tmp_path / "served.rrd"
    with started_viewer() as (_, url), received(url, shown, lambda: len(frames_so_far(shown)) == 32):
        recorder = RerunRecorder([path, stream, url, serve], in_keys=KEYS)
        env = LargePictures().append_transform(recorder)
        env.rollout(20)
        env.transform.dump()
        with received(serve.uri, served, lambda: len(frames_so_far(served)) == 32):
            env.rollout(10)
            env.transform.dump()
        env.close()
    stream.disconnect()
    assert recorder.path == path
    assert repr(recorder).endswith(f"run.rrd', '{url}', '{serve.uri}', \"the recording stream 'mine'\")")
    for each in (path, saved, shown, served):
        assert frames(each) == list(range(32))


# --- invalid uses ---


def test_options_that_the_stream_determines_are_refused(stream, tmp_path):
    with pytest.raises(ValueError, match="leave them out"):
        RerunRecorder(stream, recording_id="another")
    with pytest.raises(ValueError, match="one recording stream"):
        RerunRecorder([stream, None])
    for split in ("episode", "dump"):
        with pytest.raises(ValueError, match="recording streams get whole runs"):
            RerunRecorder([tmp_path, stream], split=split)


def test_a_second_recorder_of_a_stream_is_refused(stream, saved):
    first, second = (cartpole().append_transform(RerunRecorder(stream)) for _ in range(2))
    first.rollout(3)
    with pytest.raises(OSError, match=r"'mine' holds env_0 of another recorder: give each"):
        second.rollout(3)
    first.close()
    second.rollout(3)  # now the stream is free
    second.close()


def test_copies_of_a_recorder_use_the_stream_of_their_process(stream, saved):
    recorder = pickle.loads(pickle.dumps(copy.deepcopy(RerunRecorder(stream))))
    env = cartpole().append_transform(recorder)
    env.rollout(3)
    env.close()
    stream.disconnect()
    assert read(saved)["/env_0/reward"].values


def test_a_last_frame_is_sent_without_a_later_one(tmp_path):
    """The frame comes long before the flush of a file."""
    shown = tmp_path / "shown.rrd"
    with started_viewer() as (_, url), received(url, shown, lambda: len(frames_so_far(shown)) == 18):
        env = LargePictures().append_transform(RerunRecorder(url, in_keys=KEYS, flush_seconds=1e6))
        for _ in range(3):
            env.rollout(5)
            wait_until(lambda: not env.transform.stats()["frames_waiting"])
    assert frames(shown) == list(range(18))
    env.close()


def test_a_worker_with_a_stream_records_nothing_and_gives_advice(stream, saved):
    def work(said):
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            env = cartpole().append_transform(RerunRecorder(stream))
            env.rollout(5)
            env.rollout(5)
        said.put([str(each.message) for each in warned if "nothing is recorded" in str(each.message)])

    context = multiprocessing.get_context("fork")
    said = context.Queue()
    worker = context.Process(target=work, args=(said,))
    worker.start()
    (message,) = said.get(timeout=60)
    worker.join(60)
    assert worker.exitcode == 0
    assert "can't be had in a process of its own: append the recorder to the batched environment" in message
    stream.disconnect()
    assert not [c for c in RrdReader(saved).stream() if c.entity_path.startswith("/env_")]


# --- streams that block ---


def train_until_frames_are_dropped(env, warned):
    """Train until the warning, too: the writer notices the loss with the next block, and the next frame warns."""

    def trained():
        env.rollout(10)
        return env.transform.stats()["frames_dropped"] and [w for w in warned if "was given up" in str(w.message)]

    wait_until(trained)
    for _ in range(20):
        env.rollout(10)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("fate", ["killed", "stopped", "absent"])
def test_a_stream_that_blocks_is_given_up(fate):
    with started_viewer() as (viewer, url):
        stream = rr.RecordingStream("mine")
        stream.connect_grpc(f"rerun+http://127.0.0.1:{free_port()}/proxy" if fate == "absent" else url)
        env = LargePictures().append_transform(RerunRecorder(stream, in_keys=KEYS, image_format="raw"))
        if fate != "absent":
            env.rollout(5)
            env.transform.dump()
            viewer.send_signal(signal.SIGKILL if fate == "killed" else signal.SIGSTOP)
        with pytest.warns(RuntimeWarning, match="'mine' was given up") as warned:
            train_until_frames_are_dropped(env, warned)
        with pytest.raises(RecordingError, match=r"'mine' failed, \d+ frames were lost.*was given up"):
            env.transform.dump()
        stats = env.transform.stats()
        assert stats["frames_dropped"] == stats["frames_lost"] > 0
        with pytest.raises(RecordingError, match="was given up"):
            env.close()
        assert len([w for w in warned if "was given up" in str(w.message)]) == 1


def test_a_file_does_not_wait_for_the_stream_beside_it(path, monkeypatch):
    """The stream is not given up within the rollout: if the file waited, the rollout would hang."""
    monkeypatch.setattr("torchrl_rerun.writing.rerun_streams.STALL_SECONDS", 1e6)
    monkeypatch.setattr(live_sinks, "STALL_SECONDS", 1e6)
    with started_viewer() as (viewer, url):
        stream = rr.RecordingStream("mine")
        stream.connect_grpc(url)
        env = LargePictures().append_transform(RerunRecorder([path, stream], in_keys=KEYS, image_format="raw"))
        env.rollout(5)
        env.transform.dump()
        viewer.send_signal(signal.SIGSTOP)
        env.rollout(600, break_when_any_done=False)
        monkeypatch.setattr("torchrl_rerun.writing.rerun_streams.STALL_SECONDS", 3.0)
        monkeypatch.setattr(live_sinks, "STALL_SECONDS", 3.0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            env.transform.dump()
            env.rollout(5)
        stats = env.transform.stats()
        assert stats["frames_lost"] == 0
        assert stats["frames_dropped"] > 0
        env.close()
    assert frames(path) == list(range(int(stats["frames"])))


SCRIPT = f"""
import os, signal, sys, warnings
sys.path.insert(0, {str(Path(__file__).parent)!r})
warnings.simplefilter("ignore")
import rerun as rr
from environments import LargePictures
from torchrl_rerun import RerunRecorder
from torchrl_rerun.writing import live as live_sinks
from torchrl_rerun.writing import rerun_streams
live_sinks.STALL_SECONDS = rerun_streams.STALL_SECONDS = 3.0
url, viewer, path = sys.argv[1:]
rr.init("mine")
rr.connect_grpc(url)
env = LargePictures().append_transform(RerunRecorder([path, None] if path else None, in_keys=["x", "pixels"], image_format="raw"))
env.rollout(5)
if int(viewer):
    env.transform.dump()
    os.kill(int(viewer), signal.SIGSTOP)
env.rollout(100, break_when_any_done=False)
print("end", flush=True)
"""


@pytest.mark.parametrize(("fate", "beside"), [("stopped", False), ("stopped", True), ("absent", False)])
def test_the_process_ends_beside_a_stream_that_blocks(path, fate, beside):
    with started_viewer() as (viewer, url):
        if fate == "absent":
            url = f"rerun+http://127.0.0.1:{free_port()}/proxy"
        arguments = [url, str(viewer.pid if fate == "stopped" else 0), str(path) if beside else ""]
        run = subprocess.Popen([*python(), "-c", SCRIPT, *arguments], stdout=subprocess.PIPE, text=True)
        try:
            assert run.stdout.readline() == "end\n"
            assert run.wait(PATIENCE) == 0
        finally:
            run.kill()
            run.stdout.close()
    if beside:
        assert frames(path) == list(range(107))


def test_a_stream_gets_all_frames_without_close(saved):
    script = f"""
import rerun as rr
rr.init("mine")
rr.save({str(saved)!r})
from environments import LargePictures
from torchrl_rerun import RerunRecorder
env = LargePictures().append_transform(RerunRecorder(in_keys=["x"]))
env.rollout(20)
"""
    subprocess.run([*python(), "-c", script], check=True, timeout=60, cwd=Path(__file__).parent)
    assert frames(saved) == list(range(21))
