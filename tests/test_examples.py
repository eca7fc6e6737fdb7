"""The examples run, and make what they say."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from readback import read

EXAMPLES = Path(__file__).parents[1] / "examples"


def main_of(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


def test_parallel_cartpole(tmp_path, capsys):
    out = tmp_path / "run.rrd"
    main_of("parallel_cartpole")(["--steps", "30", "--out", str(out)])
    assert str(out) in capsys.readouterr().out
    recorded = read(out)
    assert recorded.schema["envs"] == [0, 1, 2, 3]
    assert len(recorded["/env_3/pixels"].values) >= 31


def test_record_training(tmp_path, capsys):
    out = tmp_path / "run.rrd"
    main_of("record_training")(["--iterations", "2", "--frames-per-batch", "64", "--every", "1", "--out", str(out)])
    assert str(out) in capsys.readouterr().out
    assert max(read(out)["/env_0/reward"].along("episode")) >= 1
