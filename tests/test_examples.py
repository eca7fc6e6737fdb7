"""The example scripts run, and make the files that they name."""

from __future__ import annotations

import importlib.util
import shlex
import subprocess
from pathlib import Path

from rerun.chunk import RrdReader

from programs import python
from readback import frames_so_far, read
from servers import received, started_viewer
from torchrl_rerun import list_episodes, load

EXAMPLES = Path(__file__).parents[1] / "examples"


def main_of(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


def test_parallel_cartpole_runs(tmp_path, capsys):
    out = tmp_path / "run.rrd"
    main_of("parallel_cartpole")(["--steps", "30", "--out", str(out)])
    assert str(out) in capsys.readouterr().out
    recorded = read(out)
    assert recorded.schema["envs"] == [0, 1, 2, 3]
    assert len(recorded["/env_3/pixels"].values) >= 31


def test_record_training_runs(tmp_path, capsys):
    out = tmp_path / "run.rrd"
    main_of("record_training")(["--iterations", "2", "--frames-per-batch", "64", "--every", "1", "--out", str(out)])
    assert str(out) in capsys.readouterr().out
    assert max(read(out)["/env_0/reward"].along("episode")) >= 1


def test_after_a_crash_runs(tmp_path):
    out = tmp_path / "crash.rrd"
    command = [*python(), EXAMPLES / "after_a_crash.py", "--crash-after", "40", "--out", out]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert f"40 steps are in {out}" in said
    assert sum(each.properties.length for each in load(out)) == 40


def test_watch_robots_runs(tmp_path, capsys):
    main_of("watch_robots")(["--steps", "160", "--rollout", "10", "--out", str(tmp_path)])
    said = capsys.readouterr().out
    assert f"view {tmp_path}" in said
    assert said.count("the torso went from") == len(load(tmp_path)) > 0
    assert load(tmp_path)[0].poses().positions.shape[1:] == (14, 3)


def test_keep_the_failures_runs(tmp_path, capsys):
    out = tmp_path / "failures"
    main_of("keep_the_failures")(["--steps", "60", "--distraction", "1", "--out", str(out)])
    kept = list_episodes(out).episodes
    assert f"{len(kept)} of " in capsys.readouterr().out
    assert len(kept) >= 4
    assert all(found.episode.terminated for found in kept)
    assert len(read(kept[0].path)["/pixels"].values) > 2


def test_watch_live_runs(tmp_path, capsys):
    """A viewer gets every frame, and the script's own number, at equal steps."""
    shown = tmp_path / "shown.rrd"
    entities = ["/steps_per_second", *(f"/env_{env}/{key}" for env in range(2) for key in ("pixels", "reward"))]

    def is_complete():
        return all(40 in frames_so_far(shown, entity, "step") for entity in entities)

    with started_viewer() as (_, url), received(url, shown, is_complete):
        main_of("watch_live")(["--connect", url, "--rollouts", "2", "--steps", "20"])
    rows = {}
    for chunk in RrdReader(shown).stream():
        if not chunk.is_static:
            rows.setdefault(chunk.entity_path, []).extend(chunk.to_record_batch().to_pylist())
    pictures = [row for env in range(2) for row in rows[f"/env_{env}/pixels"]]
    assert f"recorded {len({row['frame'] for row in pictures})} frames" in capsys.readouterr().out
    for env in range(2):
        steps = [row["step"] for row in rows[f"/env_{env}/reward"]]
        assert steps == list(range(1, 41))
        assert set(steps) < {row["step"] for row in rows[f"/env_{env}/pixels"]}
    assert [row["step"] for row in rows["/steps_per_second"]] == [20, 40]
    assert all(row["Scalars:scalars"][0] > 0 for row in rows["/steps_per_second"])


def test_clone_from_recordings_runs(tmp_path, capsys):
    small = ["--expert-episodes", "1", "--updates", "60", "--episodes", "4", "--out", str(tmp_path)]
    main_of("clone_from_recordings")(small)
    said = capsys.readouterr().out
    assert "expert: return 500.0 +- 0.0 over 1 episodes" in said
    assert "over 4 episodes" in said
    command = shlex.split(said.splitlines()[-1])
    assert command[1:] == ["compare", str(tmp_path / "expert"), str(tmp_path / "clone")]
    done = subprocess.run([*command, "--no-view"], capture_output=True, text=True)
    assert not done.returncode, done.stderr
    [episodes] = [line.split() for line in done.stdout.splitlines() if line.startswith("episodes ")]
    assert episodes == ["episodes", "1", "4", "3"]


def test_gymnasium_loop_runs(tmp_path, capsys):
    out = tmp_path / "failures"
    main_of("gymnasium_loop")(["--episodes", "3", "--distraction", "1", "--out", str(out)])
    kept = list_episodes(out).episodes
    assert f"{len(kept)} of 3 episodes failed" in capsys.readouterr().out
    assert len(kept) == 3
    assert all(abs(found.episode["cart_position"]) < 2.4 for found in kept)
    assert len(read(kept[0].path)["/pixels"].values) > 2


def test_sb3_training_runs(tmp_path, capsys):
    main_of("sb3_training")(["--steps", "512", "--rollout", "32", "--test-episodes", "1", "--out", str(tmp_path)])
    said = capsys.readouterr().out
    kept = list_episodes(tmp_path / "training").episodes
    assert 3 <= len(kept) <= 6
    assert all(f"kept {found.path}: return {found.episode.episode_return:g}" in said for found in kept)
    assert "test: return" in said
    assert len(read(tmp_path / "test.rrd")["/env_0/pixels"].values) > 8
