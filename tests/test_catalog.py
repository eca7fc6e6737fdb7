"""Queries of a run folder as a dataset of Rerun's own server."""

from __future__ import annotations

import rerun as rr
from datafusion import col
from torchrl.envs import GymWrapper

from environments import LENGTHS, Lengths
from episode_folders import episode, write_episode
from pages import DOCS, examples
from torchrl_rerun import RerunRecorder, list_episodes


def test_a_catalog_finds_episodes_by_their_properties(tmp_path, monkeypatch):
    """The example of the docs, with the folders of two workers."""
    monkeypatch.chdir(tmp_path)
    for worker in range(2):
        recorder = RerunRecorder(f"runs/ppo/worker_{worker}", split="episode", recording_id=f"run_{worker}")
        env = GymWrapper(Lengths(worker)).append_transform(recorder)
        for _ in range(5):
            env.rollout(100)
            recorder.annotate(success=bool(worker))
        env.close()
    [how_to] = [example for example in examples(DOCS / "episodes.md") if "rr.server.Server" in example.parsed]
    how_to.evaluate()
    found = how_to.namespace
    worst, rewards = found["worst"], found["rewards"]
    lengths = sorted([*LENGTHS[:5], *LENGTHS[1:6]])[:5]
    assert worst["episode_return"].tolist() == lengths
    assert len(rewards) == sum(lengths)
    assert set(rewards["rerun_segment_id"]) == set(worst["rerun_segment_id"])
    assert {row.tolist()[0] for row in rewards["/reward:Scalars:scalars"]} == {1.0}
    assert found["dataset"].default_blueprint() is not None


def test_episodes_are_filtered_by_their_return(tmp_path):
    for number in range(6):
        write_episode(tmp_path, episode(number, -float(number), 10))
    files = [found.path for found in list_episodes(tmp_path).episodes]
    with rr.server.Server(host="127.0.0.1", datasets={"ppo": files}) as server:
        dataset = server.client().get_dataset("ppo")
        value = col("property:episode:episode_return")[0]
        found = dataset.segment_table().filter(value < -2.5).sort(value.sort()).to_pylist()
    assert [row["property:episode:episode_return"] for row in found] == [[-5.0], [-4.0], [-3.0]]


def test_an_unfinished_episode_is_in_the_catalog_by_its_last_part(tmp_path):
    """rerun-sdk 0.41: a segment is a single file."""
    for number in range(2):
        length = 10 * (number + 1)
        write_episode(tmp_path, episode(0, 1.0, length, interrupted=True), suffix=f".part_{number}")
    files = [found.path for found in list_episodes(tmp_path).episodes]
    with rr.server.Server(host="127.0.0.1", datasets={"ppo": files}) as server:
        dataset = server.client().get_dataset("ppo")  # DataFusion needs the server as long as the table
        [segment] = dataset.segment_table().to_pylist()
    assert segment["rerun_segment_id"] == "env_0_episode_000000_run"
    assert segment["property:episode:length"] == [20]
