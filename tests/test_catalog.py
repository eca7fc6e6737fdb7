"""A run folder as a dataset of Rerun's own server, queried as a user would."""

from __future__ import annotations

import rerun as rr

from episode_folders import episode, write_episode
from torchrl_rerun import list_episodes

HOW_TO = """
import rerun as rr
from datafusion import col
from torchrl_rerun import list_episodes

files = [found.path for found in list_episodes("runs/ppo").episodes]
with rr.server.Server(host="127.0.0.1", datasets={"ppo": files}) as server:
    dataset = server.client().get_dataset("ppo")
    episodes = dataset.segment_table().select(
        col("rerun_segment_id"),
        col("property:episode:episode_return")[0].alias("episode_return"),
        col("property:episode:success")[0].alias("success"),
    )
    worst = episodes.filter(col("episode_return") < -5.0).sort(col("episode_return").sort()).to_pandas()
    of_worst = dataset.filter_segments(list(worst["rerun_segment_id"]))
    rewards = of_worst.filter_contents("/reward").reader(index="frame").to_pandas()
"""


def test_episodes_are_found_by_what_they_came_to(tmp_path, monkeypatch):
    """Ten episodes of two workers, of returns 0, -1 and so on; the odd ones a success."""
    for number in range(10):
        known = {"terminated": True, "annotations": {"success": bool(number % 2)}}
        write_episode(tmp_path / f"runs/ppo/worker_{number % 2}", episode(number, -float(number), 10, **known))
    monkeypatch.chdir(tmp_path)
    found = {}
    exec(HOW_TO, found)
    worst, rewards = found["worst"], found["rewards"]
    assert worst["episode_return"].tolist() == [-9.0, -8.0, -7.0, -6.0]
    assert worst["success"].tolist() == [True, False, True, False]
    ids = worst["rerun_segment_id"].tolist()
    assert ids[0] == "env_0_episode_000009_run"
    rewards = rewards.sort_values(["rerun_segment_id", "frame"])
    assert rewards["rerun_segment_id"].tolist() == [each for each in sorted(ids) for _ in range(10)]
    assert rewards["frame"].tolist() == 4 * list(range(1, 11))
    assert [row.tolist() for row in rewards["/reward:Scalars:scalars"]] == 4 * [[float(step)] for step in range(10)]


def test_of_an_unfinished_episode_the_last_part_is_there(tmp_path):
    """A segment is one file, for the server (rerun-sdk 0.41)."""
    for number in range(2):
        length = 10 * (number + 1)
        write_episode(tmp_path, episode(0, 1.0, length, interrupted=True), suffix=f".part_{number}")
    files = [found.path for found in list_episodes(tmp_path).episodes]
    with rr.server.Server(host="127.0.0.1", datasets={"ppo": files}) as server:
        dataset = server.client().get_dataset("ppo")  # DataFusion needs it as long as the table
        [segment] = dataset.segment_table().to_pylist()
    assert segment["rerun_segment_id"] == "env_0_episode_000000_run"
    assert segment["property:episode:length"] == [20]
