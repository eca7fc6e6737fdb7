"""`torchrl-rerun repair`: files of killed processes become complete recordings."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from collections import Counter

import pytest
import rerun as rr
import torch
from rerun.chunk import Chunk, LazyChunkStream, RrdReader
from torchrl.envs import GymEnv, SerialEnv
from typer.testing import CliRunner

from readback import Recorded, read, same
from torchrl_rerun import RerunRecorder, load, repair
from torchrl_rerun.cli import app
from torchrl_rerun.errors import FileInUseError

pixel_cartpole = functools.partial(GymEnv, "CartPole-v1", from_pixels=True, pixels_only=False)
COMMAND = [sys.executable, "-m", "torchrl_rerun.cli", "repair"]


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """Return the bytes of a recording after its first dump, its second dump, and close."""
    path = tmp_path_factory.mktemp("recorded") / "run.rrd"
    env = SerialEnv(2, pixel_cartpole).append_transform(RerunRecorder(path, image_format="png"))
    states = []
    for _ in range(2):
        env.rollout(20, break_when_any_done=False)
        env.transform.dump()
        states.append(path.read_bytes())
    env.close()
    return [*states, path.read_bytes()]


def rows_of(recorded: Recorded) -> dict[str, int]:
    return {path: len(rows.values) for path, rows in recorded.entities.items()}


def assert_begins_like(mended: Recorded, whole: Recorded) -> None:
    """Assert that ``mended`` has the first rows of ``whole``, without a gap."""
    for entity, rows in mended.entities.items():
        length = len(rows.values)
        assert rows.times == whole[entity].times[:length]
        assert all(map(same, rows.values, whole[entity].values[:length]))


def assert_is_whole(path) -> None:
    """Assert that a file has a footer and a layout, and that Rerun verifies it."""
    reader = RrdReader(path)
    assert reader.store() is not None
    assert len(reader.blueprints()) == 1
    command = [sys.executable, "-m", "rerun_cli", "rrd", "verify", path]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_file_without_a_footer_is_repaired(path, recorded):
    path.write_bytes(recorded[1])
    before = read(path)
    repaired = repair(path)
    assert_is_whole(path)
    mended = read(path)
    assert_begins_like(before, mended)
    assert rows_of(mended) == rows_of(before)
    assert (mended.schema, mended.recording_id) == (before.schema, before.recording_id)
    assert (repaired.path, repaired.envs, repaired.cut_bytes) == (path, 2, 0)
    observed = [mended[f"/env_{env}/observation"] for env in range(2)]
    assert not repaired.lacking
    assert repaired.frames == max(max(rows.along("frame")) for rows in observed) + 1
    assert repaired.episodes == sum(max(rows.along("episode")) + 1 for rows in observed)
    assert [file.name for file in path.parent.iterdir()] == ["run.rrd"]


@pytest.mark.parametrize("fraction", [0.0, 0.3, 0.6, 1.0])
def test_a_file_torn_within_a_message_is_repaired(path, recorded, fraction):
    dumped, later, closed = recorded
    size = len(dumped) + 5 + int(fraction * (len(later) - len(dumped) - 10))
    path.write_bytes(later[:size])
    repaired = repair(path)
    assert 0 < repaired.cut_bytes < size - len(dumped) + 1
    assert_is_whole(path)
    mended = read(path)
    path.write_bytes(closed)
    assert_begins_like(mended, read(path))
    path.write_bytes(dumped)
    assert all(length <= rows_of(mended)[entity] for entity, length in rows_of(read(path)).items())


def test_a_repair_counts_lost_pictures(path, recorded):
    whole, out = path.with_name("whole.rrd"), path.with_name("out.rrd")
    whole.write_bytes(recorded[2])
    path.write_bytes(recorded[1][:-1000])
    done = CliRunner().invoke(app, ["repair", str(path), "-o", str(out)])
    rows = rows_of(read(out))
    pictures, seen = (sum(rows[f"/env_{env}/{key}"] for env in range(2)) for key in ("pixels", "observation"))
    said = f"{pictures} of {seen} rows of 'pixels'"
    assert done.stdout.endswith(f"cut off; {said} were written\n")
    with pytest.warns(UserWarning, match=f"isn't finished: it holds {said}"):
        torn = load(path)
    for episode, known in zip(torn, load(whole), strict=True):
        assert same(episode["pixels"], known["pixels"][: len(episode["pixels"])])
        steps, right = episode.tensordict(), known.tensordict()[: episode.properties.length]
        assert len(steps) == episode.properties.length
        for found, wanted in ((steps, right), (steps["next"], right["next"])):
            there = found.get(("recorded", "pixels"), torch.ones(len(steps), dtype=torch.bool)).reshape(len(steps), -1)[
                :, 0
            ]
            assert (found["pixels"][there] == wanted["pixels"][there]).all()
            assert (found["observation"] == wanted["observation"]).all()
    assert any(("recorded", "pixels") in each.tensordict().keys(include_nested=True) for each in torn)


@pytest.mark.parametrize("missing", [1, 33, 1000, 60_000])
def test_a_finished_file_without_its_end_is_repaired(path, recorded, missing):
    """For example after an interrupted copy: all data is there, the footer or the layout is not."""
    path.write_bytes(recorded[2])
    whole = read(path)
    path.write_bytes(recorded[2][:-missing])
    assert repair(path).cut_bytes > 0
    assert_is_whole(path)
    mended = read(path)
    assert_begins_like(mended, whole)
    assert rows_of(mended) == rows_of(whole)


def test_zeros_at_the_end_are_cut_off(path, recorded):
    """Some file systems leave zeros in a growing file after a power cut."""
    path.write_bytes(recorded[1] + bytes(5000))
    assert repair(path).cut_bytes == 5000
    assert_is_whole(path)


def test_a_repair_adds_the_layout_of_close(path, recorded):
    def views(file) -> Counter[str]:
        reader = RrdReader(file)
        (layout,) = reader.blueprints()
        return Counter(chunk.entity_path.split("/")[1] for chunk in reader.stream(store=layout))

    path.write_bytes(recorded[2])
    closed = views(path)
    path.write_bytes(recorded[1])
    repair(path)
    assert views(path) == closed


def test_a_footer_without_a_layout_is_completed(path):
    """A process was killed within close."""
    env = pixel_cartpole().append_transform(RerunRecorder(path, blueprint=False))
    env.rollout(5)
    env.close()
    assert not RrdReader(path).blueprints()
    assert repair(path).frames == 6
    assert_is_whole(path)


def test_the_layout_of_a_workers_file_shows_all_workers(path, recorded):
    from torchrl_rerun.kinds.schema import shown_envs
    from torchrl_rerun.rrd.runs import family

    files = [path.with_name(f"run.worker_{number}.rrd") for number in (0, 1, 3)]
    for file in files:
        file.write_bytes(recorded[1])
    assert shown_envs([2, 3], 2, family(files[1])) == [0, 1, 2, 3, 6, 7]
    assert shown_envs([0, 2], 3, family(path)) == [0, 2]
    repair(files[1])
    assert_is_whole(files[1])


def test_the_layout_of_a_part_of_a_workers_file_shows_all_workers_too(path, recorded):
    from torchrl_rerun.kinds.schema import shown_envs
    from torchrl_rerun.rrd.runs import family

    names = [
        "worker_0",
        "worker_0.part_1",
        "worker_0.part_2",
        "worker_2.part_7",
    ]  # the second worker has moved its first file
    files = [path.with_name(f"run.{name}.rrd") for name in names]
    for file in (*files, path.with_name("run.part_1.rrd"), path.with_name("other.worker_5.part_1.rrd")):
        file.write_bytes(recorded[1])
    for file in files:
        assert shown_envs([0, 1], 2, family(file)) == [0, 1, 4, 5]
    assert family(path.with_name("run.part_1.rrd")) == []
    repair(files[1])
    (layout,) = RrdReader(files[1]).blueprints()
    shown = str([chunk.to_record_batch() for chunk in RrdReader(files[1]).stream(store=layout)])
    assert "env_4" in shown


def test_a_repair_to_another_path_leaves_the_file_unchanged(path, recorded):
    out = path.with_name("out.rrd")
    path.write_bytes(recorded[1][:-7])
    assert repair(path, out).path == out
    assert path.read_bytes() == recorded[1][:-7]
    assert_is_whole(out)
    precious = out.read_bytes()
    with pytest.raises(FileExistsError, match=r"out\.rrd exists"):
        repair(path, out)
    assert out.read_bytes() == precious


def test_a_complete_file_is_unchanged(path, recorded):
    path.write_bytes(recorded[2])
    before = path.stat()
    assert repair(path) is None
    assert path.read_bytes() == recorded[2]
    assert path.stat() == before
    out = path.with_name("out.rrd")
    assert repair(path, out) is None
    assert out.read_bytes() == recorded[2]


def test_a_link_stays_a_link(path, recorded):
    path.write_bytes(recorded[1])
    path.chmod(0o640)
    link = path.with_name("link.rrd")
    link.symlink_to(path)
    repair(link)
    assert link.is_symlink()
    assert path.stat().st_mode & 0o777 == 0o640
    assert_is_whole(path)


def test_files_that_are_no_recordings_are_refused(path, recorded):
    with pytest.raises(FileNotFoundError):
        repair(path)
    with pytest.raises(IsADirectoryError):
        repair(path.parent, path)
    for content, message in (
        (b"", "is empty"),
        (b"precious text", "doesn't begin as an .rrd file does"),
        (recorded[0][:12], "nothing to repair"),
        (recorded[0][:200], "nothing to repair"),
    ):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=message):
            repair(path)
        assert path.read_bytes() == content
    assert [file.name for file in path.parent.iterdir()] == ["run.rrd"]


def test_recordings_of_other_programs_are_refused(path):
    chunk = Chunk.from_columns("/a", [rr.TimeColumn("frame", sequence=[0, 1])], rr.Scalars.columns(scalars=[1, 2]))
    LazyChunkStream.from_iter([chunk]).write_rrd(path, application_id="other", recording_id="other")
    content = path.read_bytes()
    with pytest.raises(ValueError, match="no recording of torchrl_rerun"):
        repair(path)
    assert path.read_bytes() == content


def test_damage_in_the_middle_of_a_file_is_an_error(path, recorded):
    """Cutting there would lose the data behind."""
    content = bytearray(recorded[1])
    content[12:28] = os.urandom(15) + b"\x01"  # the header of the first message
    path.write_bytes(content)
    with pytest.raises(ValueError, match="damaged at byte 12 of"):
        repair(path)
    assert path.read_bytes() == content
    assert [file.name for file in path.parent.iterdir()] == ["run.rrd"]


def test_a_file_that_is_being_recorded_is_refused(path):
    env = pixel_cartpole().append_transform(RerunRecorder(path))
    env.rollout(3)
    env.transform.dump()
    with pytest.raises(FileInUseError, match="being written by another recorder"):
        repair(path)
    done = CliRunner().invoke(app, ["repair", str(path)])
    assert done.exit_code == 1
    assert "being written by another recorder" in done.stderr
    env.rollout(3)
    env.close()
    assert len(read(path)["/env_0/reward"].values) == 6


def test_a_full_disk_leaves_the_file_unchanged(path, recorded):
    path.write_bytes(recorded[1][:-7])
    source = f"""
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, ({len(recorded[1]) // 2},) * 2)
sys.argv = ["torchrl-rerun", "repair", {str(path)!r}]
from torchrl_rerun.cli import app
app()
"""
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "not repaired" in done.stderr
    assert "File too large" in done.stderr
    assert path.read_bytes() == recorded[1][:-7]
    assert [file.name for file in path.parent.iterdir()] == ["run.rrd"]


# --- the command line ---


def test_the_command_prints_its_result(path, recorded):
    torn, whole, text = path, path.with_name("[whole].rrd"), path.with_name("text.rrd")
    torn.write_bytes(recorded[1][:-7])
    whole.write_bytes(recorded[2])
    text.write_text("text")
    done = CliRunner().invoke(app, ["repair", str(torn), str(whole), str(text), str(path.with_name("no.rrd"))])
    assert done.exit_code == 1
    lines = dict(line.rsplit(": ", 1) for line in done.stdout.splitlines())
    assert lines[str(whole)] == "whole already, nothing to do"
    said = lines[str(torn)]
    assert said.startswith("whole again, ")
    frames, episodes, envs = (
        int(part.split()[0]) for part in said.removeprefix("whole again, ").split(";")[0].split(", ")
    )
    assert 22 <= frames <= 82
    assert episodes >= 2
    assert envs == 2
    assert "bytes of an unfinished write cut off" in said
    assert f"not repaired: {text} is not a recording" in done.stderr
    assert "no.rrd doesn't exist" in done.stderr
    assert_is_whole(torn)


def test_out_is_refused_with_several_files(path, recorded):
    done = CliRunner().invoke(app, ["repair", "a.rrd", "b.rrd", "-o", str(path)])
    assert done.exit_code == 2
    assert not path.exists()


def test_help_describes_the_command():
    done = CliRunner().invoke(app, ["repair", "--help"], env={"COLUMNS": "200"})
    assert done.exit_code == 0
    for said in ("killed process", "--out", "FILE"):
        assert said in done.stdout
    assert "repair" in CliRunner().invoke(app, []).output


def test_the_repair_command_runs_as_a_program(path, recorded):
    path.write_bytes(recorded[1][:-7])
    out = path.with_name("out.rrd")
    done = subprocess.run([*COMMAND, path, "-o", out], capture_output=True, text=True, check=True)
    assert done.stdout.startswith(f"{out}: whole again, ")
    assert done.stderr == ""
    assert_is_whole(out)
    json.dumps(read(out).schema)


def test_the_command_line_does_not_import_torch():
    code = "import sys, torchrl_rerun.cli; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
