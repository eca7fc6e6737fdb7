"""Flags and categories, of which rows are stored where they change: all rows come back, and none that didn't happen."""

from __future__ import annotations

import contextlib
import itertools
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from typing import ClassVar

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rerun.chunk import Chunk
from torchrl.data import Unbounded
from torchrl.envs import GymEnv
from typer.testing import CliRunner

from driving import record
from effort import examples
from environments import Groups, Lamps, Scripted
from episode_folders import write_chunks
from readback import assert_rows, hold_the_same, read, same
from rebuilt import episodes_in, rollout_in
from reference import of_episodes
from rrd_files import rows_of
from torchrl_rerun import Kind, RerunRecorder, load
from torchrl_rerun.cli import app
from torchrl_rerun.kinds import lasting
from torchrl_rerun.kinds.arrow import LOG_TIME_BITS, Column, Entity, chunks_of, number_lists, times_of
from torchrl_rerun.kinds.lasting import LEAST_LEFT_OUT, ROWS, pays, stored_rows
from torchrl_rerun.kinds.schema import Moment, Source, property_chunk
from torchrl_rerun.kinds.state import State
from torchrl_rerun.kinds.streams import Stream
from torchrl_rerun.kinds.timelines import EPISODE, EPISODE_STEP, REGROUPED, STEP
from torchrl_rerun.rrd.framing import HEADER_BYTES, messages
from torchrl_rerun.writing.file import FileTarget


@contextlib.contextmanager
def leaving_out(least):
    """Leave rows out if they are at least so many."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(lasting, "LEAST_LEFT_OUT", least)
        yield


def stored_in(path, entity):
    """Return how many rows of an entity are stored."""
    return sum(map(len, rows_of(path, entity)))


# --- which rows are stored ---


@st.composite
def walks(draw):
    """Draw positions of consecutive rows of an environment, and a number at each."""
    moves = st.sampled_from(["step"] * 12 + ["episode", "skip", "regroup", "regroup and step"])
    found, at = [], [0, 0, 0]
    for move in draw(st.lists(moves, max_size=40)):
        found.append(at)
        at = {
            "step": [at[0], at[1] + 1, at[2]],
            "episode": [at[0] + 1, 0, 0],
            "skip": [at[0], at[1] + 3, at[2]],
            "regroup": [at[0], at[1], at[2] + 1],
            "regroup and step": [at[0], at[1] + 1, at[2] + 1],  # a row is missing where the group was reset
        }[move]
    found.append(at)
    positions = np.zeros((len(found), 6), np.int64)
    positions[:, [EPISODE, EPISODE_STEP, REGROUPED]] = found
    values = st.lists(st.integers(0, 1), min_size=len(found), max_size=len(found))
    return positions, np.array(draw(values | st.just([0] * len(found))), np.float32)


@examples(40)
@given(walks())
def test_stored_rows_tell_all_rows(walk):
    positions, values = walk
    stored = stored_rows(values, positions)
    counts = np.diff(np.append(np.flatnonzero(stored), len(stored)))
    told = []
    for at, count in zip(np.flatnonzero(stored), counts, strict=True):
        episode, step = positions[at, [EPISODE, EPISODE_STEP]].tolist()
        told += [(episode, step + later, values[at]) for later in range(count)]
    columns = positions[:, EPISODE].tolist(), positions[:, EPISODE_STEP].tolist(), values
    assert told == list(zip(*columns, strict=True))
    assert stored[0]
    assert stored[-1]
    steps = [tuple(each) for each in positions[:, [EPISODE, EPISODE_STEP]].tolist()]
    twice = {step for step in steps if steps.count(step) > 1}
    was_regrouped = {
        before
        for before, (one, two) in zip(steps, itertools.pairwise(positions))
        if one[EPISODE] == two[EPISODE] and one[REGROUPED] != two[REGROUPED]
    }
    assert all(stored[at] for at, step in enumerate(steps) if step in twice | was_regrouped)


def test_few_rows_are_not_left_out():
    positions = np.zeros((40, 6), np.int64)
    positions[:, EPISODE_STEP] = positions[:, STEP] = range(40)
    rows = np.zeros(40, np.bool_)
    assert [pays(stored_rows(rows[:n], positions[:n]), positions[:n]) for n in (13, 14, 40)] == [False, True, True]
    rows[:18:2] = True
    assert pays(stored_rows(rows, positions), positions)
    rows[:22:2] = True
    assert not pays(stored_rows(rows, positions), positions)


def test_a_negative_zero_and_each_nan_are_values_of_their_own():
    positions = np.zeros((4, 6), np.int64)
    positions[:, EPISODE_STEP] = range(4)
    nan = np.array([0x7FC00000, 0x7FC00001], np.uint32).view(np.float32)
    assert stored_rows(np.array([0.0, -0.0, -0.0, -0.0], np.float32), positions).tolist() == [True, True, False, True]
    assert stored_rows(nan[[0, 0, 1, 1]], positions).tolist() == [True, False, True, True]


# --- recordings ---


@st.composite
def runs(draw):
    batch = draw(st.sampled_from([(), (1,), (3,), (2, 2)]))
    steps = draw(st.integers(1, 60))
    rate = draw(st.sampled_from([0.0, 0.02, 0.2]))
    envs = int(np.prod(batch))
    ends = draw(
        st.lists(
            st.lists(st.integers(0, 9).map(lambda n: n == 0), min_size=envs, max_size=envs), min_size=1, max_size=9
        )
    )
    options = {
        "buffer_bytes": draw(st.sampled_from([2_000, 20_000, 1 << 20])),
        "split": draw(st.sampled_from(["run", "dump", "episode"])),
    }
    least = draw(st.sampled_from([1, LEAST_LEFT_OUT]))
    return batch, ends, rate, steps, draw(st.booleans()), draw(st.integers(0, 99)), draw(st.booleans()), least, options


@examples(15)
@given(runs())
def test_flags_and_categories_that_seldom_change_come_back(run):
    batch, ends, rate, steps, agents, seed, is_logged, least, options = run
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(), leaving_out(least):
        warnings.simplefilter("ignore", UserWarning)
        path = Path(folder, "run.rrd" if options["split"] == "run" else "run")
        recorder = RerunRecorder(path, blueprint=False, **options)
        env = Lamps(batch, ends, rate=rate, seed=seed, agents=agents)
        env = env if is_logged else env.append_transform(recorder)
        rollout = env.rollout(steps, break_when_any_done=False)
        if is_logged:
            recorder.log_rollout(rollout)
        recorder.close()
        assert hold_the_same(rollout_in(path), rollout)
        loaded = load(path)
        assert hold_the_same(loaded.rollout(), rollout)
        wanted = of_episodes(rollout if batch else rollout[None])
        assert {each.properties.id for each in loaded} == set(wanted)
        ended = {each.properties.id: each.properties for each in loaded}
        for each in episodes_in(path):
            found = ended[each.env, each.episode]
            assert (found.length, found.terminated, found.truncated) == each[2:]
        for each in loaded:
            whole = each.tensordict()
            assert hold_the_same(whole, wanted[each.properties.id])
            for key in each.keys():
                if key != ("episode_return",):
                    assert hold_the_same(each.tensordict([key]), whole.select(key, ("next", *key), strict=False))
        parts = loaded.dataset(3)
        pieces = [steps[at : at + 3] for _, steps in sorted(wanted.items()) for at in range(len(steps) - 2)]
        assert len(parts) == len(pieces)


@examples(30)
@given(
    st.lists(st.sampled_from([True, False, False, False]), min_size=1, max_size=40),
    st.sets(st.integers(0, 40)) | st.just(set()),
    st.sampled_from([500, 4_000, 1 << 20]),
)
def test_a_flag_that_is_missing_at_some_steps_is_not_invented(changes, missing, buffer_bytes):
    lit = np.logical_xor.accumulate(changes)

    def observe(t):
        seen = {"x": torch.full((1,), float(t))}
        return seen if t in missing and t else seen | {"lit": torch.tensor([bool(lit[t])])}

    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(), leaving_out(1):
        warnings.simplefilter("ignore")
        path = Path(folder, "run.rrd")
        specs = {"x": Unbounded((1,)), "lit": Unbounded((1,), dtype=torch.bool)}
        env = Scripted(observe, specs=specs).append_transform(RerunRecorder(path, buffer_bytes=buffer_bytes))
        env.rollout(len(changes) - 1, return_contiguous=False) if len(changes) > 1 else env.reset()
        env.close()
        wanted = {t: observe(t)["lit"] for t in range(len(changes)) if "lit" in observe(t)}
        assert_rows(read(path)["/env_0/lit"], wanted)
        if len(changes) > 1:
            [episode] = load(path)
            assert same(episode["lit"], torch.stack(list(wanted.values())))
            for keys in (["lit"], ["lit", "x"]):
                steps = episode.tensordict(keys)
                masks = steps.get(("recorded", "lit"), torch.ones(len(steps), dtype=torch.bool))
                assert masks.flatten().tolist() == [t in wanted for t in range(len(changes) - 1)]
                assert all(same(steps["lit"][t], wanted[t]) for t in wanted if t < len(steps))


def test_groups_that_are_reset_apart_keep_the_rows_of_both_frames(path):
    env = Groups({"foxes": 12, "hares": 20}).append_transform(RerunRecorder(path))
    rollout = env.rollout(90, break_when_any_done=False)
    env.close()
    assert stored_in(path, "/env_0/foxes/done/agent_0") < len(read(path)["/env_0/foxes/done/agent_0"].values)
    assert hold_the_same(rollout_in(path), rollout)
    assert hold_the_same(load(path).rollout(), rollout)


def test_flags_take_few_rows(path):
    env = GymEnv("CartPole-v1").append_transform(RerunRecorder(path))
    env.set_seed(0)
    rollout = env.rollout(500, break_when_any_done=False)
    env.close()
    episodes = int(rollout["next", "done"].sum()) + 1
    for flag in ("done", "terminated", "truncated"):
        assert stored_in(path, f"/env_0/{flag}") <= 2 * episodes + 5
        assert len(read(path)[f"/env_0/{flag}"].values) == 500 + episodes
    assert stored_in(path, "/env_0/action") == 500
    said = CliRunner().invoke(app, ["info", str(path)]).stdout.splitlines()
    [line] = [line for line in said if line.split()[:1] == ["truncated"]]
    assert f" {500 + episodes} " in line


def test_each_dump_and_each_part_begins_with_a_row(tmp_path, monkeypatch):
    monkeypatch.setattr("torchrl_rerun.writing.file.CHUNKS_PER_FILE", 30)
    for split in ("run", "dump"):
        folder = tmp_path / split
        recorder = RerunRecorder(folder / "run.rrd" if split == "run" else folder, split=split, blueprint=False)
        env = Lamps((2,), [[False, False]], rate=0.01).append_transform(recorder)
        tensordict = env.reset()
        for _ in range(6):
            for _ in range(20):
                tensordict = env.step_mdp(env.step(env.rand_action(tensordict)))
            recorder.dump()
        env.close()
        files = sorted(folder.glob("*.rrd"))
        assert len(files) > 1
        for file in files:
            recorded = read(file)
            for env_index in range(2):
                frames = recorded[f"/env_{env_index}/x"].along("frame")
                assert recorded[f"/env_{env_index}/lit"].along("frame") == frames
                assert recorded[f"/env_{env_index}/done"].along("frame") == frames


def test_a_file_that_was_cut_anywhere_holds_no_flag_that_did_not_happen(path, tmp_path):
    recorder = RerunRecorder(path, buffer_bytes=4_000, blueprint=False)
    ends = [[t % 5 == 4, t % 7 == 6] for t in range(35)]
    with warnings.catch_warnings(), leaving_out(1):
        warnings.simplefilter("ignore", UserWarning)
        env = Lamps((2,), ends, rate=0.05).append_transform(recorder)
        rollout = env.rollout(60, break_when_any_done=False)
        env.close()
    wanted = of_episodes(rollout)
    whole = path.read_bytes()
    with path.open("rb") as file:
        cuts = [start for start, _, _ in messages(file, len(whole)) if start > HEADER_BYTES]
    compared = 0
    for cut in cuts:
        torn = tmp_path / "torn.rrd"
        torn.write_bytes(whole[:cut])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                episodes = list(load(torn))
            except ValueError:
                continue  # its description isn't there yet
            for episode in episodes:
                with contextlib.suppress(KeyError):  # no key tells the steps yet
                    steps = episode.tensordict()
                    right = wanted[episode.properties.id][: len(steps)]
                    for part, of_part in ((steps, right), (steps["next"], right["next"])):
                        for key in ("lit", "phase", "done", "truncated"):
                            mask = part.get(("recorded", key), torch.ones(len(steps), dtype=torch.bool)).flatten()
                            assert same(part[key][mask], of_part[key][mask])
                            compared += int(mask.sum())
    assert compared > 1000


# --- kinds and damages ---


def test_a_kind_of_ones_own_may_last(path):
    class Level(Kind):
        name = "level of a test"
        lasts: ClassVar[bool] = True

    levels = [0.0] * 10 + [float("nan")] * 5 + [-0.0] * 6
    env = Scripted(lambda t: {"x": torch.tensor([levels[t]])})
    record(env, path, 20, kinds={"x": Level()})
    assert stored_in(path, "/env_0/x") == 5  # the reset has a chunk of its own
    [episode] = load(path)
    assert same(episode["x"], torch.tensor(levels)[:, None])


def test_a_kind_with_an_encoder_does_not_last():
    with pytest.raises(TypeError, match="has an encoder, by which each value is stored: leave out lasts"):

        class Encoded(Kind):
            name = "encoded of a test"
            lasts: ClassVar[bool] = True

            def encoder(self, stream, fps):
                return None


def test_a_category_beyond_its_spec_comes_back(path):
    values = [0, 1, -1, 300, 2**62, -(2**63)] * 2
    env = Scripted(lambda t: {"x": torch.tensor(values[t])}, specs={"x": Unbounded((), dtype=torch.int64)})
    record(env, path, 11, kinds={"x": State(discrete="index", categories=[3])})
    [episode] = load(path)
    assert episode["x"].tolist() == values
    assert [value.item() for value in read(path)["/env_0/x"].values] == values


@pytest.mark.parametrize("counts", [[1, 0], [1, -5], [1 << 40, 1], [1 << 26, 1 << 27]])
def test_a_damaged_number_of_rows_is_an_error(tmp_path, counts):
    stream = Stream(("lit",), State(), "bool", (1,))
    positions = np.zeros((2, 6), np.int64)
    positions[:, EPISODE_STEP] = positions[:, 0] = positions[:, 1] = [0, 9]
    rows = Column(ROWS, None, None, pa.array([[count] for count in counts], pa.list_(pa.int64())))
    columns = [number_lists(np.array([[True], [False]])), rows]
    chunks = [property_chunk(Source(()), [0], [(stream, Moment.OBSERVED)])]
    chunks += chunks_of(times_of(positions, None), [Entity("/env_0/lit", columns)])
    write_chunks(tmp_path / "run.rrd", chunks, "run")
    with pytest.raises(ValueError, match=r"lit.* is damaged: torchrl_rerun:rows says that a value holds for"):
        load(tmp_path / "run.rrd").rollout()
    done = CliRunner().invoke(app, ["info", str(tmp_path / "run.rrd")])
    assert done.exit_code
    assert "is damaged" in " ".join(done.output.split())


def test_log_time_is_rounded_down_but_for_the_first_row_of_a_chunk():
    positions = np.zeros((1000, 6), np.int64)
    positions[:, 4] = exact = 1_700_000_000_123_456_789 + np.arange(1000) * 5_000_001
    [chunk] = chunks_of(times_of(positions, None), [Entity("/x", [number_lists(np.zeros((1000, 1), np.float32))])])
    assert isinstance(chunk, Chunk)
    found = chunk.to_record_batch().column("log_time").cast(pa.int64()).to_numpy()
    assert found[0] == exact[0]
    assert (np.diff(found) >= 0).all()
    assert (found <= exact).all()
    assert (exact - found < 1 << LOG_TIME_BITS).all()
    assert len(np.unique(found)) < 160


def test_a_recording_is_found_whole_by_the_time_of_its_first_row(path):
    """Two recordings that begin within the time to which `log_time` is rounded are told apart."""
    target = FileTarget(path)
    assert target.path == path
    record(Scripted(lambda t: {"x": torch.zeros(1)}), path, 3)
    [episode] = load(path)
    began = episode.properties.start_time.timestamp() * 1e9
    assert round(began) % (1 << LOG_TIME_BITS) > 1000


@pytest.mark.parametrize("command", ["merge", "optimize"])
def test_chunks_that_other_programs_joined_or_split_hold_the_same_flags(path, tmp_path, command):
    recorder = RerunRecorder(path, buffer_bytes=20_000, blueprint=False)
    ends = [[t % 50 == 49, t % 70 == 69] for t in range(350)]
    env = Lamps((2,), ends, rate=0.03).append_transform(recorder)
    rollout = env.rollout(400, break_when_any_done=False)
    env.close()
    other = tmp_path / f"{command}.rrd"
    subprocess.run([sys.executable, "-m", "rerun_cli", "rrd", command, path, "-o", other], check=True)
    assert hold_the_same(load(other).rollout(), rollout)
    [first, *_] = [episode for episode in load(other) if episode.properties.env == 1]
    assert hold_the_same(first.tensordict(), of_episodes(rollout)[1, 0])
    slices = load(other).dataset(5, ["lit", "done"])
    assert hold_the_same(
        slices[31], of_episodes(rollout)[0, 0][31:36].select("lit", "done", ("next", "lit"), ("next", "done"))
    )
