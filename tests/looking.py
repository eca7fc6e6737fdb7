"""Open recordings in the real viewer, without a display."""

from __future__ import annotations

import contextlib
import functools
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import rerun_cli

from servers import wait_until
from torchrl_rerun import RerunRecorder


@contextlib.contextmanager
def headless_viewer():
    from rerun.experimental import ViewerClient

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    try:
        client = ViewerClient.spawn(
            headless=True,
            port=port,
            hide_welcome_screen=True,
            detach_process=False,
            executable_path=str(Path(rerun_cli.__file__).with_name("rerun")),
        )
    except Exception as error:
        pytest.skip(f"the viewer doesn't start ({error}): install a graphics driver, Debian's mesa-vulkan-drivers")
    with client:
        yield client


@functools.cache
def mujoco_draws():
    """Skip the test if MuJoCo can't draw. MuJoCo reads MUJOCO_GL when it is imported, hence the process."""
    draws = "import os; os.environ['MUJOCO_GL'] = 'egl'; import mujoco; mujoco.GLContext(8, 8).make_current()"
    if subprocess.run([sys.executable, "-c", draws], capture_output=True).returncode:
        pytest.skip("MuJoCo can't draw: install a software driver, Debian's libegl1 and libgl1-mesa-dri")


def opened(viewer, path, frame):
    """Open a recording at a frame. Return all views with their reports, views behind tabs included."""
    viewer.open([str(path)])

    def is_loaded():
        state = viewer.get_state()
        return state.views and not state.loading

    wait_until(is_loaded)
    viewer.set_time("frame", play_state="paused", sequence=frame)
    beside_one_another(viewer)
    before, drawn = None, None
    while drawn is None or drawn != before:  # until all is drawn, decoded and reported
        time.sleep(0.4)
        before, drawn = drawn, (viewer.take_screenshot(), viewer.get_state().views)
    return drawn[1]


def beside_one_another(viewer):
    """Replace tabs by a grid: only views that are drawn report errors."""
    parts = viewer.get_blueprint().blueprint
    for part in parts.values():
        container = part.get("ContainerBlueprint", {})
        if container.get("container_kind") == "Tabs":
            container["container_kind"] = "Grid"
            container.pop("active_tab", None)
    viewer.set_blueprint(parts, "recording")


def rerun_views(views):
    return sorted((view.view_class, str(view.origin), view.name) for view in views)


def trouble(views):
    return [(view.name, view.reports) for view in views if view.reports]


def record(env, path, steps, **options):
    env = env.append_transform(RerunRecorder(path, **options))
    env.rollout(steps, break_when_any_done=False)
    env.close()
