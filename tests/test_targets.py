"""Targets open writers. A writer claims its place, and alone writes there."""

from __future__ import annotations

import pickle
import shutil

import pytest
import rerun as rr
from rerun.chunk import Chunk

from torchrl_rerun import KeepLast
from torchrl_rerun.errors import FileInUseError
from torchrl_rerun.kinds.episode import Episode
from torchrl_rerun.writing import file as files
from torchrl_rerun.writing.dumps import DumpTarget
from torchrl_rerun.writing.episode_target import EpisodeTarget
from torchrl_rerun.writing.file import FileTarget
from torchrl_rerun.writing.target import LiveTarget

NAMES = {"application_id": "app", "recording_id": "rec"}


def chunks(count=1):
    return [Chunk.from_columns(f"/x{i}", [], rr.TextDocument.columns(text=["a"])) for i in range(count)]


def moving(count):
    index = [rr.TimeColumn("frame", sequence=[0])]
    return [Chunk.from_columns("/x", index, rr.TextLog.columns(text=[str(i)])) for i in range(count)]


@pytest.fixture(params=["file", "dump", "episode", "live"])
def target(request, tmp_path):
    return {
        "file": lambda: FileTarget(tmp_path / "run.rrd"),
        "dump": lambda: DumpTarget(tmp_path / "dumps"),
        "episode": lambda: EpisodeTarget(tmp_path / "run", new_kept=KeepLast(2).new_kept),
        "live": lambda: LiveTarget("rerun+http://127.0.0.1:9876/proxy"),
    }[request.param]()


def test_a_target_can_be_copied_into_another_process(target):
    assert pickle.loads(pickle.dumps(target)).identity == target.identity


def test_a_continuation_after_close_can_be_written(target):
    for _ in range(3):
        writer = target.open()
        writer.write(chunks(), **NAMES)
        writer.replace_earlier()
        writer.close()
        target = writer.continuation()


def test_a_place_is_claimed_once(target):
    if target.path is None:
        return
    writer = target.open()
    with pytest.raises((FileInUseError, FileExistsError)):
        pickle.loads(pickle.dumps(target)).open()
    writer.close()


def test_siblings_write_to_different_places(target):
    siblings = [target.sibling(f"worker_{number}") for number in range(2)]
    writers = [each.open() for each in (target, *siblings)]
    assert len({writer.location for writer in writers}) == (1 if target.path is None else 3)
    for writer in writers:
        writer.close()


def test_discarding_leaves_no_file_and_restores_a_replaced_one(tmp_path):
    path = tmp_path / "run.rrd"
    FileTarget(path).open().discard()
    assert not path.exists()
    path.write_bytes(b"of before")
    FileTarget(path, overwrite=True).open().discard()
    assert path.read_bytes() == b"of before"
    assert list(tmp_path.iterdir()) == [path]


def test_discarding_the_first_dump_leaves_earlier_dumps(tmp_path):
    folder = tmp_path / "dumps"
    writer = DumpTarget(folder).open()
    writer.write(chunks(), **NAMES)
    writer.close()
    before = (folder / "dump_000000.rrd").read_bytes()
    DumpTarget(folder, overwrite=True).open().discard()
    assert (folder / "dump_000000.rrd").read_bytes() == before


def test_all_parts_of_a_dump_get_its_suffix(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "CHUNKS_PER_FILE", 2)
    writer = DumpTarget(tmp_path).open()

    def coming():
        for chunk in moving(5):
            yield chunk
            writer.mark_whole()

    writer.write(coming(), **NAMES)
    writer.close()
    writer.rename("best")
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["dump_000000_best.part_1.rrd", "dump_000000_best.part_2.rrd", "dump_000000_best.rrd"]


def test_a_removed_file_is_an_error_until_it_is_closed(tmp_path):
    writer = FileTarget(tmp_path / "run.rrd").open()
    assert writer.error() is None
    writer.path.unlink()
    assert isinstance(writer.error(), FileNotFoundError)
    writer.close()
    assert writer.error() is None


def test_a_folder_keeps_its_decisions_over_closes_and_counts_bytes_from_0(tmp_path):
    target = EpisodeTarget(tmp_path / "run", new_kept=KeepLast(1).new_kept)
    for number in range(3):
        writer = target.open()
        assert writer.size() == 0
        episode = Episode(0, number, 1.0, 1)
        gone = writer.episodes.decide(episode)
        assert [each.episode for each in gone] == ([number - 1] if number else [])
        writer.episodes.write_file(f"env_0_episode_{number:06}", chunks(), **NAMES, of=episode)
        for each in gone:
            writer.episodes.remove(each)
        assert writer.size() == (tmp_path / "run" / f"env_0_episode_{number:06}.rrd").stat().st_size
        writer.replace_earlier()
        writer.close()
        target = writer.continuation()
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["env_0_episode_000002.rrd"]


def test_a_removed_place_has_no_files(target, tmp_path):
    """Recorders that share a path in one process ask for these files, also for those of other folders."""
    writer = target.open()
    for each in tmp_path.iterdir():
        shutil.rmtree(each) if each.is_dir() else each.unlink()
    assert not [path for path in writer.files() if path.exists()]
    writer.close()
