"""The reader of ``.rrd`` files: compared with Rerun's own, and with damaged files."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from rerun.chunk import RrdReader
from torchrl.envs import GymEnv

from torchrl_rerun import RerunRecorder, list_episodes, load, repair
from torchrl_rerun.kinds.lasting import ROWS
from torchrl_rerun.rrd import file_part
from torchrl_rerun.rrd.framing import Footer
from torchrl_rerun.rrd.reader import parts_in, why_unreadable


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """Make a finished recording of short episodes, with several chunks of each key."""
    path = tmp_path_factory.mktemp("recorded") / "run.rrd"
    env = GymEnv("CartPole-v1").append_transform(RerunRecorder(path, buffer_bytes=8_000))
    env.set_seed(0)
    env.rollout(300, break_when_any_done=False)
    env.close()
    return path


def without_footer(path, out):
    with path.open("rb") as file:
        end = Footer.read(file).start
    out.write_bytes(path.read_bytes()[:end])
    return out


@pytest.mark.parametrize("is_finished", [True, False])
def test_chunks_equal_those_of_reruns_reader(recorded, tmp_path, is_finished):
    path = recorded if is_finished else without_footer(recorded, tmp_path / "killed.rrd")
    rerun = RrdReader(recorded)
    [store] = rerun.recordings()
    wanted = {chunk.id: chunk for chunk in rerun.stream(store=store)}
    [part] = parts_in(path)
    assert (part.application_id, part.recording_id) == (store.application_id, store.recording_id)
    assert (part.is_finished, part.has_layout) == (is_finished, True)
    found = list(part.all_chunks())
    assert [chunk.id for chunk in found] == list(wanted)
    for chunk in found:
        batch, expected = chunk.to_record_batch(), wanted[chunk.id].to_record_batch()
        assert chunk.entity_path == wanted[chunk.id].entity_path
        assert batch.schema.equals(expected.schema, check_metadata=True)
        assert batch.equals(expected)


def test_the_index_has_the_rows_and_places_of_chunks(recorded):
    [part] = parts_in(recorded)
    rows, frames = Counter(), {}
    for chunk in RrdReader(recorded).stream():
        if not chunk.is_static:
            batch = chunk.to_record_batch()
            counts = batch.column(ROWS).flatten().to_pylist() if ROWS in batch.schema.names else [1] * len(batch)
            rows[chunk.entity_path] += sum(counts)
            frames.setdefault(chunk.entity_path, []).extend(batch.column("frame").to_pylist())
    assert {path: part.count(path) for path in part.index.recorded_paths} == rows
    for path, wanted in frames.items():
        assert part.index.span_of(path, "frame") == (min(wanted), max(wanted))
    assert part.count("/nowhere") == 0
    assert list(part.chunks("/nowhere")) == []


def test_a_file_without_a_footer_has_an_equal_index(recorded, tmp_path):
    [whole], [killed] = parts_in(recorded), parts_in(without_footer(recorded, tmp_path / "killed.rrd"))
    assert killed.chunk_ids() == whole.chunk_ids()
    assert (killed.began, killed.last_frame, killed.steps) == (whole.began, whole.last_frame, whole.steps)
    assert (killed.torn_bytes, killed.is_torn) == (0, False)


def test_a_footer_with_a_wrong_checksum_counts_as_missing(recorded, tmp_path):
    with recorded.open("rb") as file:
        start = Footer.read(file).start
    data = bytearray(recorded.read_bytes())
    data[start + 100] ^= 1
    damaged = tmp_path / "damaged.rrd"
    damaged.write_bytes(data)
    [part] = parts_in(damaged)
    assert not part.is_finished
    assert "repair" in why_unreadable(damaged)
    repair(damaged)
    assert why_unreadable(damaged) is None
    assert (load(damaged).rollout() == load(recorded).rollout()).all()


def test_a_chunk_of_several_episodes_is_decoded_once(recorded, monkeypatch):
    read = []
    original = file_part._read_chunk
    monkeypatch.setattr(file_part, "_read_chunk", lambda part, at: read.append(at) or original(part, at))
    monkeypatch.setattr(file_part, "_CACHE", file_part._Cache())
    episodes = load(recorded)
    dataset = episodes.dataset(2)
    for episode in episodes:
        episode.tensordict()
    for at in range(len(dataset)):
        dataset[at]
    assert len(episodes) > 10
    assert max(Counter(read).values()) == 1


def test_the_cache_is_bounded(recorded, monkeypatch):
    monkeypatch.setattr(file_part, "CACHE_BYTES", 5_000)
    cache = file_part._Cache()
    [part] = parts_in(recorded)
    for at in range(len(part.index)):
        cache.chunk(part, at)
        assert sum(batch.nbytes for batch in cache._held.values()) <= 5_000 or len(cache._held) == 1


def test_the_cache_counts_the_overhead_of_short_chunks(tmp_path, monkeypatch):
    """A chunk with one row of 84 bytes takes 13 KB of memory."""
    path = tmp_path / "run.rrd"
    recorder = RerunRecorder(path)
    env = GymEnv("CartPole-v1").append_transform(recorder)
    for _ in range(30):
        env.reset()
        recorder.dump()
    env.close()
    monkeypatch.setattr(file_part, "CACHE_BYTES", 1 << 20)
    cache = file_part._Cache()
    [part] = parts_in(path)
    assert len(part.index) > 100
    for at in range(len(part.index)):
        cache.chunk(part, at)
    assert len(cache._held) < 70


@pytest.mark.parametrize("seed", range(4))
def test_damaged_files_are_errors_and_never_crash_the_process(recorded, tmp_path, seed):
    draw = random.Random(seed)
    whole, path, out = recorded.read_bytes(), tmp_path / "damaged.rrd", tmp_path / "out.rrd"
    uses = [
        lambda: [list(part.all_chunks()) for part in parts_in(path)],
        lambda: list_episodes(path),
        lambda: load(path).rollout(),
        lambda: repair(path, out),
    ]
    errors = 0
    for _ in range(15):
        data = bytearray(whole)
        for _ in range(draw.choice([1, 3])):
            data[draw.randrange(12, len(data))] = draw.randrange(256)
        path.write_bytes(data[: draw.choice([len(data), draw.randrange(20, len(data))])])
        for use in uses:
            try:
                use()
            except (ValueError, OSError):
                errors += 1
        out.unlink(missing_ok=True)
    assert errors
