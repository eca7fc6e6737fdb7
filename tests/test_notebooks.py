"""Recordings in the cells of a notebook, executed by a real Jupyter kernel."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
import rerun as rr
from nbclient import NotebookClient
from torchrl.envs import GymEnv

from readback import read
from servers import free_port
from torchrl_rerun import RerunRecorder

RECORD = """
import os
os.environ.setdefault("RL_WARNINGS", "0")
from torchrl.envs import GymEnv
from torchrl_rerun import RerunRecorder
env = GymEnv("CartPole-v1").append_transform(RerunRecorder({sink!r}, {options}))
rollout = env.rollout(20)
"""
THE_VIEWER = """
from ipywidgets.widgets.widget import _instances
viewer = [widget for widget in _instances.values() if type(widget).__module__ == "rerun_notebook"][-1]
"""
SENT = (
    THE_VIEWER
    + """
import tempfile
from rerun.chunk import RrdReader
ids, frames = set(), []
for _, buffers in viewer._event_queue:  # what waits for the browser
    for data in buffers:
        with tempfile.NamedTemporaryFile(suffix=".rrd") as file:
            file.write(data)
            file.flush()
            reader = RrdReader(file.name)
            ids |= {store.recording_id for store in reader.recordings()}
            if reader.recordings():
                for chunk in reader.stream().filter(content="/env_0/observation", is_static=False):
                    frames += chunk.to_record_batch().column("frame").to_pylist()
print(sorted(ids), sorted(frames))
"""
)


@pytest.fixture(autouse=True)
def _kernels(monkeypatch, kernels):
    monkeypatch.setenv("JUPYTER_PATH", str(kernels))


def outputs_of(cells, folder):
    """Return the outputs of a notebook, cell by cell."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(folder)}}).execute()
    return [cell.outputs for cell in notebook.cells]


def printed(outputs):
    """Return the text that a cell printed, from any number of messages, warnings aside."""
    return "".join(output["text"] for output in outputs if output.get("name") == "stdout")


def test_a_cell_shows_the_frames_so_far(path, tmp_path):
    cells = [
        RECORD.format(sink=str(path), options="recording_id='mine'"),
        "env.transform.show(width='auto', height=400)",
        SENT,
        "_ = env.rollout(20)\nenv.close()",
        "env.transform.show()",
        SENT,
    ]
    outputs = outputs_of(cells, tmp_path)
    for shown in (outputs[1], outputs[4]):
        assert any("application/vnd.jupyter.widget-view+json" in output.get("data", {}) for output in shown)
    frames = read(path)["/env_0/observation"].along("frame")
    half, whole = printed(outputs[2]), printed(outputs[5])
    assert whole == f"['mine'] {frames}\n"
    first = half.removesuffix("]\n")
    assert whole.startswith(f"{first}, ")


def test_a_recording_without_a_file_is_shown_by_its_server(tmp_path, capsys):
    port = free_port()
    sink = f"rr.GrpcServerSink('127.0.0.1', {port})"
    url = f"rerun+http://127.0.0.1:{port}/proxy"
    cells = [
        "import rerun as rr" + RECORD.replace("{sink!r}, {options}", sink),
        "env.transform.show()",
        f"{THE_VIEWER}print(viewer._url)\nenv.close()",
    ]
    _, shown, said = outputs_of(cells, tmp_path)
    assert any("application/vnd.jupyter.widget-view+json" in output.get("data", {}) for output in shown)
    assert printed(said) == f"{url}\n"
    env = GymEnv("CartPole-v1").append_transform(RerunRecorder(rr.GrpcServerSink("127.0.0.1", port)))
    env.rollout(5)
    env.transform.show()
    env.close()
    assert capsys.readouterr().out == f"to watch it: rerun {url}\n"


def test_a_missing_extra_is_an_error_that_names_it(path, tmp_path):
    cells = [
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\nfrom absent import hide; hide('rerun_notebook')",
        RECORD.format(sink=str(path), options=""),
        "try:\n    env.transform.show()\nexcept ImportError as error:\n    print(error)",
    ]
    assert "pip install 'torchrl-rerun[notebook]'" in printed(outputs_of(cells, tmp_path)[-1])


def test_show_outside_a_notebook_prints_a_command(path, capsys):
    env = GymEnv("CartPole-v1").append_transform(RerunRecorder(path))
    env.rollout(5)
    env.transform.show()
    env.close()
    env.transform.show()
    assert capsys.readouterr().out.splitlines() == [f"to watch it: rerun {path}"] * 2


def test_episodes_are_shown_together(tmp_path, capsys):
    env = GymEnv("CartPole-v1").append_transform(RerunRecorder(tmp_path / "run", split="episode"))
    env.rollout(60, break_when_any_done=False)
    env.close()
    env.transform.show()
    files = sorted(map(str, (tmp_path / "run").glob("*.rrd")))
    assert len(files) > 1
    assert capsys.readouterr().out == f"to watch it: rerun {' '.join(files)}\n"


def test_show_without_a_file_or_server_is_an_error(path):
    with pytest.raises(ValueError, match="nothing has been recorded yet"):
        RerunRecorder(path).show()
    stream = rr.RecordingStream("mine")
    env = GymEnv("CartPole-v1").append_transform(RerunRecorder(stream))
    env.rollout(5)
    with pytest.raises(ValueError, match="nothing to show but the recording stream 'mine'"):
        env.transform.show()
