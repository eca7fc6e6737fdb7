"""Notebooks: recordings in the output of a cell, shown by Rerun's viewer for notebooks."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import rerun as rr
import rerun.blueprint as rrb

from torchrl_rerun.rrd.reader import FilePart, parts_in

Size = int | Literal["auto"] | None
"""Pixels; ``"auto"``: what there is room for; None: Rerun's default."""


def is_here() -> bool:
    """Whether this program is a notebook's kernel."""
    ipython = sys.modules.get("IPython")
    return ipython is not None and hasattr(ipython.get_ipython(), "kernel")


def show_files(paths: Sequence[Path], layout: rrb.Blueprint | None, *, width: Size, height: Size) -> None:
    """Show what is in files, which may still be written. Outside a notebook, say how to watch them.

    Args:
        paths: the files. Those of one recording id are shown as one.
        layout: what the viewer arranges them by.
        width: of the viewer.
        height: of the viewer.

    Raises:
        ImportError: Rerun's viewer for notebooks isn't installed.
    """
    if not is_here():
        print(f"to watch it: rerun {shlex.join(map(str, paths))}")  # noqa: T201 - where a notebook would show it
        return
    stage = Stage(width=width, height=height)
    stage.send(paths, layout)
    stage.viewer.display()


class Stage:
    """A viewer in a notebook, to which files are sent.

    Args:
        width: of the viewer.
        height: of the viewer.

    Attributes:
        viewer: the viewer.

    Raises:
        ImportError: Rerun's viewer for notebooks isn't installed.
    """

    def __init__(self, *, width: Size, height: Size) -> None:
        self.viewer = _viewer(width=width, height=height, use_global_recording=False)

    def send(self, paths: Sequence[Path], layout: rrb.Blueprint | None) -> list[str]:
        """Send what is in files, which may still be written.

        Args:
            paths: the files. Those of one recording id are shown as one.
            layout: what the viewer arranges them by.

        Returns:
            The ids of the recordings.
        """
        streams: dict[str, rr.RecordingStream] = {}
        for part in (part for path in paths for part in _parts_in(path)):
            stream = streams.get(part.recording_id)
            if stream is None:
                stream = rr.RecordingStream(part.application_id, recording_id=part.recording_id, send_properties=False)
                streams[part.recording_id] = stream
                self.viewer.add_recording(stream, blueprint=layout)
            stream.send_chunks(part.all_chunks())
        for stream in streams.values():
            stream.flush()
        return list(streams)


def _parts_in(path: Path) -> list[FilePart]:
    """Return what a file holds so far; nothing if it is damaged or just begun."""
    try:
        return parts_in(path)
    except ValueError:
        return []


def show_url(url: str, *, width: Size, height: Size) -> None:
    """Show what a viewer's server has. Outside a notebook, say how to watch it.

    Args:
        url: where it is; the browser must be able to reach it.
        width: of the viewer.
        height: of the viewer.

    Raises:
        ImportError: Rerun's viewer for notebooks isn't installed.
    """
    if not is_here():
        print(f"to watch it: rerun {shlex.quote(url)}")  # noqa: T201 - where a notebook would show it
        return
    _viewer(width=width, height=height, url=url).display()


def _viewer(**options: Any) -> rr.notebook.Viewer:
    from rerun import notebook  # noqa: PLC0415 - it looks for what may not be installed

    if not notebook.HAS_NOTEBOOK:
        raise ImportError(
            "this needs Rerun's viewer for notebooks: pip install 'torchrl-rerun[notebook]', and restart the kernel"
        )
    return notebook.Viewer(**options)
