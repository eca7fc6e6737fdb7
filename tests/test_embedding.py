"""Layouts that are added to finished files in place: completely or not at all, and recorded data stays."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import threading

import pytest
import rerun.blueprint as rrb
from rerun.chunk import RrdReader
from torchrl.envs import GymEnv

from readback import read, same
from torchrl_rerun import RerunRecorder, repair
from torchrl_rerun.rrd import blueprints as embedding
from torchrl_rerun.rrd.blueprints import add_layout, encode
from torchrl_rerun.rrd.framing import MESSAGE, TRAILER, Footer

NAME = "ViewBlueprint:display_name"
LAYOUT = rrb.Blueprint(rrb.TimeSeriesView(origin="/env_0/reward", name="the reward"))


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> bytes:
    """Return the bytes of a recording without a layout."""
    path = tmp_path_factory.mktemp("finished") / "run.rrd"
    env = GymEnv("CartPole-v1").append_transform(RerunRecorder(path, blueprint=False))
    env.rollout(30, break_when_any_done=False)
    env.close()
    return path.read_bytes()


@pytest.fixture(scope="module")
def layout():
    return encode(LAYOUT, "CartPole-v1")


class Slow(io.FileIO):
    """A file that writes a few bytes at a time, notes its content after each, and may fail."""

    def __init__(self, path, *, step: int, fails_at: int | None = None) -> None:
        super().__init__(path, "rb+")
        self.path, self.step, self.fails_at = path, step, fails_at
        self.states: list[bytes] = []

    def write(self, data) -> int:
        if len(self.states) == self.fails_at:
            self.fails_at = None
            raise OSError("something happened")
        written = super().write(data[: self.step])
        self.states.append(self.path.read_bytes())
        return written


def recorded_in(path):
    return {entity: rows for entity, rows in read(path).entities.items() if rows.values}


def assert_same_rows(path, finished, scratch) -> None:
    scratch.write_bytes(finished)
    before, after = recorded_in(scratch), recorded_in(path)
    assert before
    assert after.keys() == before.keys()
    for entity, rows in before.items():
        assert after[entity].times == rows.times
        assert all(map(same, after[entity].values, rows.values))


def assert_has_layout(path) -> None:
    reader = RrdReader(path)
    (store,) = reader.blueprints()
    chunks = [chunk.to_record_batch() for chunk in reader.stream(store=store)]
    names = [chunk.column(NAME).to_pylist() for chunk in chunks if NAME in chunk.schema.names]
    assert [["the reward"]] in names
    assert len(reader.recordings()) == 1


def assert_rerun_verifies(path) -> None:
    command = [sys.executable, "-m", "rerun_cli", "rrd", "verify", path]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "ERROR" not in done.stderr + done.stdout


def test_a_layout_is_appended_to_the_recorded_data(path, finished, layout):
    path.write_bytes(finished)
    recorded = Footer.read(io.BytesIO(finished)).start
    add_layout(path, layout)
    assert path.read_bytes()[:recorded] == finished[:recorded]
    assert_has_layout(path)
    assert_rerun_verifies(path)
    assert_same_rows(path, finished, path.with_name("before.rrd"))
    assert RrdReader(path).store() is not None
    assert repair(path) is None  # the file is complete


def test_rerun_merges_files_with_an_appended_layout(path, finished, layout):
    """`rerun rrd merge` ignores the footer and reads the messages one by one."""
    path.write_bytes(finished)
    add_layout(path, layout)
    joined = path.with_name("joined.rrd")
    subprocess.run([sys.executable, "-m", "rerun_cli", "rrd", "merge", path, "-o", joined], check=True)
    assert_has_layout(joined)
    assert_same_rows(joined, finished, path.with_name("before.rrd"))


def test_a_layout_may_be_added_to_several_files(path, finished, layout):
    longer = path.with_name("longer.rrd")
    env = GymEnv("CartPole-v1").append_transform(RerunRecorder(longer, blueprint=False))
    env.rollout(300, break_when_any_done=False)
    env.close()
    path.write_bytes(finished)
    for file in (path, longer):
        add_layout(file, layout)
        assert_has_layout(file)
        assert_rerun_verifies(file)


def test_no_other_recording_comes_with_a_layout(path, finished, layout):
    """Rerun announces a recording with each layout. The viewer would show it as an empty recording."""
    path.write_bytes(finished)
    add_layout(path, layout)
    path.write_bytes(path.read_bytes()[: -TRAILER.size])  # without a footer, all messages are looked at
    with pytest.warns(match="no footer"):
        reader = RrdReader(path)
    assert len(reader.recordings()) == 1


@pytest.mark.parametrize("step", [2500, 1 << 20])
def test_a_file_that_is_killed_while_a_layout_is_added_can_be_repaired(path, finished, layout, step):
    path.write_bytes(finished)
    with Slow(path, step=step) as file:
        embedding._add(file, layout)
    assert len(file.states) >= 4
    assert_has_layout(path)
    assert path.read_bytes() == file.states[-1]
    for state in file.states[:-1]:
        path.write_bytes(state)
        assert repair(path) is not None  # the file doesn't count as complete
        assert_rerun_verifies(path)
        assert len(RrdReader(path).blueprints()) == 1
        assert_same_rows(path, finished, path.with_name("before.rrd"))


def test_an_error_leaves_the_file_unchanged(path, finished, layout):
    path.write_bytes(finished)
    with Slow(path, step=2500) as file:
        embedding._add(file, layout)
    for number in range(len(file.states)):
        path.write_bytes(finished)
        failing = Slow(path, step=2500, fails_at=number)
        with failing, pytest.raises(OSError, match="something happened"):
            embedding._add(failing, layout)
        assert path.read_bytes() == finished


@pytest.mark.parametrize("room", [0, 1, 5000])
def test_a_disk_without_room_for_the_layout_leaves_the_file_unchanged(path, finished, layout, room):
    path.write_bytes(finished)
    source = f"""
import resource, signal
from pathlib import Path
import rerun.blueprint as rrb
from torchrl_rerun.rrd.blueprints import add_layout, encode
layout = encode(rrb.Blueprint(rrb.TimeSeriesView()), "CartPole-v1")
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, ({len(finished) + room},) * 2)
try:
    add_layout(Path({str(path)!r}), layout)
except OSError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, timeout=60, check=True)
    assert "the layout could not be added to" in done.stdout
    assert "File too large" in done.stdout
    assert path.read_bytes() == finished


def test_a_file_that_is_not_finished_is_refused_and_unchanged(path, finished, layout):
    start = Footer.read(io.BytesIO(finished)).start
    elsewhere = bytearray(finished)
    elsewhere[-TRAILER.size : -TRAILER.size + 8] = (start + MESSAGE.size - 1).to_bytes(8, "little")
    headless = bytearray(finished)
    headless[start] = 2
    for content, message in (
        (b"", "too short"),
        (finished[:30], "too short"),
        (finished[:-1], "doesn't end with a footer"),
        (finished[:start], "doesn't end with a footer"),
        (finished + b"more", "doesn't end with a footer"),
        (finished[:20] + finished[21:], "the footer is said to be"),
        (elsewhere, "the footer is said to be"),
        (headless, "there is no footer at byte"),
    ):
        path.write_bytes(content)
        with pytest.raises(OSError, match=f"the layout could not be added to .*{message}"):
            add_layout(path, layout)
        assert path.read_bytes() == content
    path.unlink()
    with pytest.raises(OSError, match="could not be added"):
        add_layout(path, layout)
    assert not path.exists()


def test_closing_adds_the_layout_in_place(path):
    """The layout goes into the recorded file itself: links stay, and open file handles see the layout."""
    env = GymEnv("CartPole-v1").append_transform(RerunRecorder(path, blueprint=LAYOUT))
    env.rollout(5)
    env.transform.dump()
    link = path.with_name("link.rrd")
    link.hardlink_to(path)
    env.close()
    assert link.samefile(path)
    assert_has_layout(link)


def test_a_layout_may_have_hundreds_of_views(path, finished):
    """Numbers in the footer need more than two bytes."""
    views = [rrb.TextDocumentView(origin=f"/{number}", name="the reward") for number in range(300)]
    path.write_bytes(finished)
    add_layout(path, encode(rrb.Blueprint(*views), "CartPole-v1"))
    assert_has_layout(path)
    assert_rerun_verifies(path)
    reader = RrdReader(path)
    assert len(list(reader.stream(store=reader.blueprints()[0]))) > 600


def test_the_checksum_equals_that_of_rerun(finished):
    footer = Footer.read(io.BytesIO(finished))
    assert footer.encoded() == finished[footer.start :]


def same_layout(name="a") -> rrb.Blueprint:
    return rrb.Blueprint(rrb.TimeSeriesView(origin="/env_0/reward", name=name))


def test_equal_layouts_are_encoded_once():
    """Each encoding leaks four threads of Rerun and 2 MB, which would add up over days of training."""
    layouts = embedding.EncodedLayouts()
    first = layouts.encode(same_layout(), "run")
    before = len(os.listdir("/proc/self/task"))
    for _ in range(20):
        assert layouts.encode(same_layout(), "run") is first
    assert len(os.listdir("/proc/self/task")) <= before


def test_a_different_layout_or_run_is_encoded_again():
    layouts = embedding.EncodedLayouts(size=3)
    first = layouts.encode(same_layout(), "run")
    assert layouts.encode(same_layout(), "another") is not first
    assert layouts.encode(same_layout("b"), "run").messages != first.messages
    assert layouts.encode(same_layout(), "run") is first
    for name in "cde":
        layouts.encode(same_layout(name), "run")
    assert layouts.encode(same_layout(), "run") is not first  # three are kept


def test_a_layout_that_cannot_be_compared_is_encoded():
    layout = same_layout()
    layout.root_container.lock = threading.Lock()
    layouts = embedding.EncodedLayouts()
    assert len(layouts.encode(layout, "run").chunks) == len(layouts.encode(same_layout(), "run").chunks)


def test_streams_of_the_user_go_on_after_a_layout_is_encoded(tmp_path):
    """Run a program with a stream that it refers to, and a stream that only Rerun refers to."""
    program = f"""
import rerun as rr
from rerun.blueprint import Blueprint, TextDocumentView
from torchrl_rerun.rrd.blueprints import encode
rr.init("known")
rr.save("{tmp_path}/known.rrd")
own = rr.RecordingStream("own")
own.save("{tmp_path}/own.rrd")
encode(Blueprint(TextDocumentView()), "another")
rr.log("after", rr.Scalars(1.0))
own.log("after", rr.Scalars(1.0))
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
    for name in ("known", "own"):
        assert "/after" in {chunk.entity_path for chunk in RrdReader(tmp_path / f"{name}.rrd").stream()}


def test_a_forked_process_encodes_layouts(tmp_path):
    """A fork has none of the threads of its parent's streams."""
    program = f"""
import os
import rerun as rr
from rerun.blueprint import Blueprint, TextDocumentView
from torchrl_rerun.rrd.blueprints import encode
rr.init("parent")
rr.save("{tmp_path}/parent.rrd")
rr.log("before", rr.Scalars(1.0))
if (child := os.fork()) == 0:
    encode(Blueprint(TextDocumentView()), "child")
    os._exit(7)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
