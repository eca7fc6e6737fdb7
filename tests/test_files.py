"""Files are valid Rerun recordings, verified by Rerun's own tools."""

from __future__ import annotations

import functools
import json
import subprocess
import sys

from rerun.chunk import RrdReader
from torchrl.envs import GymEnv, SerialEnv

from environments import Zoo
from readback import read
from torchrl_rerun import RerunRecorder
from torchrl_rerun.kinds.describe import KINDS

pixel_cartpole = functools.partial(GymEnv, "CartPole-v1", from_pixels=True, pixels_only=False)


def test_rerun_verifies_the_file(path):
    env = Zoo((2,)).append_transform(RerunRecorder(path, image_format="png"))
    env.rollout(10, break_when_any_done=False)
    env.close()
    done = subprocess.run(
        [sys.executable, "-m", "rerun_cli", "rrd", "verify", path], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "verified without error" in done.stderr + done.stdout


def test_a_closed_file_has_a_footer_and_a_layout(path):
    env = SerialEnv(2, pixel_cartpole).append_transform(RerunRecorder(path))
    env.rollout(5)
    env.close()
    reader = RrdReader(path)
    assert len(reader.recordings()) == len(reader.blueprints()) == 1
    assert reader.store() is not None  # only files with a footer have one
    assert [file.name for file in path.parent.iterdir()] == ["run.rrd"]


def test_the_schema_property_describes_keys_and_versions(path):
    env = SerialEnv(2, pixel_cartpole).append_transform(RerunRecorder(path, names={"observation": list("abcd")}))
    env.rollout(5)
    env.close()
    recorded = read(path)
    schema = recorded.schema
    assert schema["schema_version"] == 3
    assert schema["env_name"] == recorded.application_id == "CartPole-v1"
    assert schema["batch_size"] == [2]
    assert schema["versions"].keys() >= {"torchrl", "rerun-sdk", "torch", "tensordict", "gymnasium", "torchrl-rerun"}
    assert recorded.entry("observation") == {
        "key": ["observation"],
        "dtype": "float32",
        "shape": [4],
        "kind": "scalars",
        "names": list("abcd"),
        "moment": "observed",
    }
    assert recorded.entry("pixels")["channels"] == "HWC"
    assert all(entry["kind"] in {kind.name for kind in KINDS} for entry in schema["keys"])
    json.dumps(schema)


def test_names_reach_the_viewer(path):
    env = pixel_cartpole().append_transform(RerunRecorder(path, names={"observation": list("abcd")}))
    env.rollout(3)
    env.close()
    static = read(path).static
    assert static["/env_0/observation"]["SeriesLines:names"] == list("abcd")
    assert static["/env_0/terminated"]["StateConfiguration:labels"] == ["terminated"]


def test_dumped_frames_can_be_read_while_recording(path):
    env = pixel_cartpole().append_transform(RerunRecorder(path))
    env.rollout(5)
    env.transform.dump()
    assert len(read(path)["/env_0/reward"].values) == 5
    env.rollout(4)
    env.transform.dump()
    assert len(read(path)["/env_0/reward"].values) == 9
    env.close()


def test_dumping_never_ends_an_episode(path):
    env = pixel_cartpole().append_transform(RerunRecorder(path))
    tensordict = env.reset()
    for _ in range(4):
        tensordict = env.step_mdp(env.step(env.rand_action(tensordict)))
        env.transform.dump()
    env.close()
    rows = read(path)["/env_0/observation"]
    assert rows.along("episode") == [0] * 5
    assert rows.along("episode_step") == [0, 1, 2, 3, 4]


def test_a_recording_without_frames_leaves_no_file(path):
    env = pixel_cartpole().append_transform(RerunRecorder(path))
    env.transform.dump()
    env.close()
    assert not path.exists()
