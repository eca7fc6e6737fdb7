"""Rollouts that are recorded by a few large copies: rows equal those of recording step by step."""

from __future__ import annotations

import itertools
import math
import tempfile
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rerun.chunk import RrdReader
from tensordict import LazyStackedTensorDict, TensorDict

from effort import examples
from readback import read, same
from rebuilt import files_of
from torchrl_rerun import KeepLast, RerunRecorder
from torchrl_rerun.blocks.block import Block
from torchrl_rerun.recording.counters import Counters
from torchrl_rerun.recording.episode_log import EpisodeLog
from torchrl_rerun.recording.steps import Steps
from torchrl_rerun.transform.front_end import FrontEnd


def rollout_of(batch_size, time, rate, seed, *, pixels=False, steps=None):
    """Return a rollout whose episodes end at random, ``[*batch, time]``."""
    rng = torch.Generator().manual_seed(seed)
    size = (*batch_size, time)
    seen = torch.randn(*batch_size, time + 1, 3, generator=rng)
    done = torch.rand(*size, 1, generator=rng) < rate
    cut = done & (torch.rand(*size, 1, generator=rng) < 0.5)
    root = seen[..., :-1, :].clone()
    dims = len(batch_size)
    begins = torch.cat([torch.ones_like(done.narrow(dims, 0, 1)), done.narrow(dims, 0, time - 1)], dims)
    root[begins.expand_as(root)] += 1.0  # the first observation of an episode differs from the last one before
    flags = {"done": done, "terminated": done & ~cut, "truncated": cut}
    lit = (torch.rand(*batch_size, time + 1, 2, generator=rng) < 0.1).cumsum(dims) % 2 == 1
    data = {
        "observation": root,
        "lit": lit[..., :-1, :],
        "action": torch.randint(0, 5, size, generator=rng),
        **{name: torch.zeros_like(flag) for name, flag in flags.items()},
        "next": {
            "observation": seen[..., 1:, :],
            "lit": lit[..., 1:, :],
            "reward": torch.randn(*size, 1, generator=rng),
            **flags,
        },
    }
    if pixels:
        pictures = torch.randint(0, 256, (*batch_size, time + 1, 40, 40, 3), dtype=torch.uint8, generator=rng)
        data["pixels"], data["next"]["pixels"] = pictures[..., :-1, :, :, :], pictures[..., 1:, :, :, :]
    if steps is not None:
        data["_step"] = torch.rand(*size, generator=rng) < steps
    return TensorDict(data, size)


def rows_in(folder):
    """Return all rows of all files without ``log_time``, and properties of episodes without their start time."""
    found = {}
    for path in files_of(folder):
        recorded = read(path)
        for entity, rows in recorded.entities.items():
            times = [{name: at for name, at in each.items() if name != "log_time"} for each in rows.times]
            # A row without a change has no state. Where chunks begin depends on how quick the writer is.
            states = list(itertools.accumulate(rows.states, lambda last, state: last if state is None else state))
            found[path.name, entity] = times, rows.values, states
        if "/__properties/episode" in recorded.static:
            found[path.name, "episode"] = {
                name: value for name, value in recorded.episode.items() if name != "start_time"
            }
    return found


def record(folder, pieces, options, *, at_once, monkeypatch):
    added = []
    add_many = Block.add_many
    with monkeypatch.context() as patched:
        patched.setattr(Block, "add_many", lambda block, *args: (added.append(block), add_many(block, *args)))
        if not at_once:
            patched.setattr(FrontEnd, "takes_many", lambda front_end: False)
        recorder = RerunRecorder(folder, image_format="raw", blueprint=False, **options)
        for piece in pieces:
            if options.get("switch"):
                recorder.switch()
            recorder.log_rollout(piece)
            if options.get("split") == "dump":
                recorder.dump()
        recorder.close()
    return len(added)


@st.composite
def cases(draw):
    batch_size = draw(st.sampled_from([(), (1,), (3,), (2, 2), (70,)]))
    split = draw(st.sampled_from(["run", "run", "dump", "episode"]))
    options = {"split": split, "buffer_bytes": draw(st.sampled_from([1 << 10, 1 << 14, 1 << 20]))}
    envs = math.prod(batch_size)
    logged = draw(st.sampled_from([None, None, "all", [0], [envs - 1], slice(0, None, 2)]))
    if logged is not None:
        options["logged_envs"] = logged
    options |= draw(
        st.sampled_from(
            [
                {},
                {"skip": 3},
                {"in_keys": ["observation", "reward"]},
                {"episode_trigger": lambda episode: episode % 2 == 1, "recording_length": 2},
                {"step_trigger": lambda step: step % 7 == 2},
                {"keep": KeepLast(2)} if split == "episode" else {"aggregate": True},
            ]
        )
    )
    times = draw(st.lists(st.integers(1, 30), min_size=1, max_size=3))
    rate = draw(st.sampled_from([0.0, 0.05, 0.5]))
    steps = draw(st.sampled_from([None, None, 0.7])) if batch_size else None
    pixels = draw(st.booleans()) and envs < 10
    whole = rollout_of(batch_size, sum(times), rate, draw(st.integers(0, 1 << 20)), pixels=pixels, steps=steps)
    ends = np.cumsum(times).tolist()
    return options, [whole[..., a:b] for a, b in zip([0, *ends], ends, strict=False)]


@given(cases())
@examples(20)
def test_steps_that_are_recorded_at_once_have_the_rows_of_single_steps(case):
    options, pieces = case
    monkeypatch = pytest.MonkeyPatch()
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        suffix = ".rrd" if options["split"] == "run" else ""
        places = [Path(folder, each, f"run{suffix}") for each in ("one_by_one", "at_once")]
        record(places[0], pieces, options, at_once=False, monkeypatch=monkeypatch)
        record(places[1], pieces, options, at_once=True, monkeypatch=monkeypatch)
        one_by_one, at_once = (rows_in(place.parent) for place in places)
        assert one_by_one.keys() == at_once.keys()
        for name, (times, values, states) in ((n, r) for n, r in one_by_one.items() if n[1] != "episode"):
            assert at_once[name][0] == times, name
            assert at_once[name][2] == states, name
            assert all(same(a, b) for a, b in zip(at_once[name][1], values, strict=True)), name
        for name in (n for n in one_by_one if n[1] == "episode"):
            assert repr(at_once[name]) == repr(one_by_one[name])


def test_a_long_rollout_is_copied_in_a_few_pieces(tmp_path, monkeypatch):
    rollout = rollout_of((4,), 5000, 0.01, 0)
    added = record(tmp_path / "run.rrd", [rollout], {}, at_once=True, monkeypatch=monkeypatch)
    assert 0 < added <= 8
    assert len(read(tmp_path / "run.rrd")["/env_3/reward"].values) == 5000


@pytest.mark.parametrize("split", ["run", "episode"])
@pytest.mark.parametrize("is_late", [False, True])
@pytest.mark.parametrize("nth", [1, 5])
@pytest.mark.parametrize(
    "method",
    [Block.add_many, Block.drop_after, Counters.apply, Counters.event, EpisodeLog.step, EpisodeLog.reset, Steps._copy],
)
def test_an_interrupt_costs_no_frame_that_was_counted(tmp_path, monkeypatch, method, nth, is_late, split):
    rollout = rollout_of((2,), 60, 0.1, 1)
    folder = tmp_path / "run"
    options = {"split": split, "blueprint": False, "buffer_bytes": 1 << 12}
    recorder = RerunRecorder(folder if split == "episode" else tmp_path / "run.rrd", **options)
    recorder.log_rollout(rollout[:, :10])
    calls = []

    def interrupted(*args, **arguments):
        calls.append(args)
        if len(calls) == nth and not is_late:
            raise KeyboardInterrupt
        found = method(*args, **arguments)
        if len(calls) == nth and is_late:
            raise KeyboardInterrupt
        return found

    owner = {"Block": Block, "Counters": Counters, "EpisodeLog": EpisodeLog, "Steps": Steps}[
        method.__qualname__.split(".")[0]
    ]
    monkeypatch.setattr(owner, method.__name__, interrupted)
    was_interrupted = False
    try:
        recorder.log_rollout(rollout[:, 10:])
    except KeyboardInterrupt:
        was_interrupted = True
    monkeypatch.undo()
    recorder.close()
    assert was_interrupted is (len(calls) >= nth)
    counted = recorder.stats()["steps"]
    assert recorder.stats()["frames_lost"] == 0
    rewards = [[] for _ in range(2)]
    for path in files_of(tmp_path):
        recorded = read(path)
        for env in recorded.schema["envs"]:
            rows = recorded.entities.get("/reward" if split == "episode" else f"/env_{env}/reward")
            rewards[env] += rows.values if rows else []
            if split == "episode":
                assert recorded.episode["length"] == len(rows.values)
                assert recorded.episode["episode_return"] == pytest.approx(float(sum(map(float, rows.values))))
    for env, values in enumerate(rewards):
        assert len(values) == counted
        assert all(same(a, b) for a, b in zip(values, rollout["next", "reward"][env], strict=False))


@pytest.mark.parametrize("change", ["bfloat16", "conjugate", "negative", "lazy", "memmap"])
def test_values_that_cannot_be_read_at_once_are_read_step_by_step(tmp_path, monkeypatch, change):
    rollout = rollout_of((2,), 30, 0.1, 2)
    if change in ("conjugate", "negative"):
        values = torch.randn(2, 31, 3, dtype=torch.complex64).conj()
        values = values if change == "conjugate" else values.imag
        rollout["z"], rollout["next", "z"] = values[:, :-1], values[:, 1:]
    elif change == "lazy":
        parts = [rollout[:, t].clone() for t in range(30)]
        parts[7]["next", "observation"] = parts[7]["next", "observation"].double()
        rollout = LazyStackedTensorDict(*parts, stack_dim=1)
    elif change == "memmap":
        rollout = rollout.memmap(tmp_path / "mapped")
    later = rollout.clone() if change == "bfloat16" else rollout
    if change == "bfloat16":
        later["next", "observation"] = later["next", "observation"].bfloat16()
    found = []
    for at_once in (False, True):
        folder = tmp_path / str(at_once)
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            record(folder / "run.rrd", [rollout, later], {}, at_once=at_once, monkeypatch=monkeypatch)
        found.append((rows_in(folder), [str(each.message) for each in told]))
    (one_by_one, told), (at_once, told_at_once) = found
    assert told == told_at_once
    assert one_by_one.keys() == at_once.keys()
    for name, (times, values, _) in one_by_one.items():
        assert at_once[name][0] == times, name
        assert all(same(a, b) for a, b in zip(at_once[name][1], values, strict=True)), name


def test_a_trigger_may_call_the_recorder(tmp_path):
    recorders = []

    def trigger(episode):
        if episode == 3:
            recorders[0].dump()
        return True

    recorders.append(RerunRecorder(tmp_path / "run.rrd", episode_trigger=trigger, blueprint=False))
    recorders[0].log_rollout(rollout_of((2,), 40, 0.2, 0))
    recorders[0].close()
    assert len(read(tmp_path / "run.rrd")["/env_0/reward"].values) == 40


@pytest.mark.parametrize("size", [(0, 5), (2, 0, 3), (3, 0)])
def test_an_empty_rollout_changes_nothing(tmp_path, size):
    recorder = RerunRecorder(tmp_path / "run.rrd", blueprint=False)
    rollout = rollout_of((3,), 10, 0.2, 0)
    recorder.log_rollout(rollout[:, :5])
    recorder.log_rollout(TensorDict({"next": {"reward": torch.zeros(*size, 1)}}, size))
    recorder.log_rollout(rollout[:, 5:])
    recorder.close()
    episodes = read(tmp_path / "run.rrd")["/env_0/reward"].along("episode")
    assert len(episodes) == 10
    assert episodes[4] == episodes[5] or bool(rollout["next", "done"][0, 4])


def test_the_first_frame_is_in_one_chunk_with_those_after_it(tmp_path):
    recorder = RerunRecorder(tmp_path / "run.rrd")
    recorder.log_rollout(rollout_of((3,), 50, 0.1, 0))
    recorder.close()
    entities = [chunk.entity_path for chunk in RrdReader(tmp_path / "run.rrd").stream().filter(is_static=False)]
    assert len(entities) == len(set(entities)) > 3
