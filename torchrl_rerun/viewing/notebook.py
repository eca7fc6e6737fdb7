"""Recordings in the output of a notebook's cell, in Rerun's viewer for notebooks."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import rerun as rr
import rerun.blueprint as rrb

from torchrl_rerun.recording.controls import Controls
from torchrl_rerun.recording.recording import Recording
from torchrl_rerun.recording.session import Session
from torchrl_rerun.rrd.asset_files import shape_chunks
from torchrl_rerun.rrd.file_part import FilePart
from torchrl_rerun.rrd.openable import shapes_of
from torchrl_rerun.rrd.reader import parts_in

Size = int | Literal["auto"] | None
"""Pixels; ``"auto"`` for the size of the cell; None for Rerun's default."""


def in_notebook() -> bool:
    """Return whether this program is the kernel of a notebook."""
    ipython = sys.modules.get("IPython")
    return ipython is not None and hasattr(ipython.get_ipython(), "kernel")


def show_files(paths: Sequence[Path], layout: rrb.Blueprint | None, *, width: Size, height: Size) -> None:
    """Show recordings in a notebook. Elsewhere, print the command that opens them.

    Args:
        paths: Files, which a recorder may still write to. Files of one recording id are shown as one recording.
        layout: Blueprint. Default: None, that of the files.
        width: Width of the viewer.
        height: Height of the viewer.

    Raises:
        ImportError: Rerun's viewer for notebooks isn't installed.
    """
    if not in_notebook():
        print(f"to watch it: rerun {shlex.join(map(str, paths))}")  # noqa: T201 - in place of the viewer
        return
    viewer = NotebookViewer(width=width, height=height)
    viewer.send(paths, layout)
    viewer.widget.display()


def show_recording(session: Session, recording: Recording | None, *, width: Size, height: Size) -> None:
    """Show what a recorder has dumped: its files as they are now, or the server of its first viewer, which stays live.

    Args:
        session: the options of the recorder, and what its sink stands for.
        recording: the recording; None: nothing was recorded.
        width: Width of the viewer.
        height: Height of the viewer.

    Raises:
        ImportError: Rerun's viewer for notebooks isn't installed.
        ValueError: nothing has been recorded, or it is in a recording stream of the user.
    """
    if recording is None:
        raise ValueError("nothing has been recorded yet: reset the environment first")
    if files := recording.chunk_writer.files():
        show_files(files, recording.layout(), width=width, height=height)
    elif session.viewers:
        show_url(session.viewers[0].url, width=width, height=height)
    else:
        raise ValueError(
            f"there is nothing to show but {recording.chunk_writer.label}: rr.notebook_show() shows recording streams"
        )


class Shown(Controls):
    """The methods that every recorder has, and the one that shows its recording in a notebook."""

    def show(self, *, width: Size = None, height: Size = None) -> None:
        """Dump, and show the recording in a notebook. Outside of a notebook, print the command that shows it.

        The bytes of all files go into the page, as they are now. Without a file, the server of the first viewer is shown, and
        stays live.

        Args:
            width: width of the viewer in the cell, in pixels; ``"auto"``: the width of the cell. Default: Rerun's.
            height: height of the viewer in the cell, in pixels; ``"auto"``: as much as fits. Default: Rerun's.

        Raises:
            ImportError: Rerun's viewer for notebooks isn't installed: ``pip install 'torchrl-rerun[notebook]'``.
            RecordingError: data could not be written. The message gives the cause and the number of lost frames.
            ValueError: nothing has been recorded, or it is in a recording stream of the user, which Rerun shows:
                ``rr.notebook_show(recording=...)``.
        """
        self.dump()
        show_recording(self._session, self._recording, width=width, height=height)


class NotebookViewer:
    """Viewer in a notebook, which files are sent to.

    Args:
        width: Width of the viewer.
        height: Height of the viewer.

    Attributes:
        widget: Widget of Rerun.

    Raises:
        ImportError: Rerun's viewer for notebooks isn't installed.
    """

    def __init__(self, *, width: Size, height: Size) -> None:
        self.widget = _make_viewer(width=width, height=height, use_global_recording=False)

    def send(self, paths: Sequence[Path], layout: rrb.Blueprint | None) -> list[str]:
        """Send recordings to the viewer.

        Args:
            paths: Files, which a recorder may still write to. Files of one recording id are shown as one recording.
            layout: Blueprint. None: that of the files.

        Returns:
            Ids of the recordings.
        """
        streams: dict[str, rr.RecordingStream] = {}
        for part in (part for path in paths for part in _parts_in(path)):
            stream = streams.get(part.recording_id)
            if stream is None:
                stream = rr.RecordingStream(part.application_id, recording_id=part.recording_id, send_properties=False)
                streams[part.recording_id] = stream
                self.widget.add_recording(stream, blueprint=layout)
                stream.send_chunks(shape_chunks(part for parts in shapes_of([part.file]).values() for part in parts))
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
    """Show the recordings of a viewer's server in a notebook. Elsewhere, print the command that opens them.

    Args:
        url: Address of the server, which the browser must be able to reach.
        width: Width of the viewer.
        height: Height of the viewer.

    Raises:
        ImportError: Rerun's viewer for notebooks isn't installed.
    """
    if not in_notebook():
        print(f"to watch it: rerun {shlex.quote(url)}")  # noqa: T201 - in place of the viewer
        return
    _make_viewer(width=width, height=height, url=url).display()


def _make_viewer(**options: Any) -> rr.notebook.Viewer:
    from rerun import notebook  # noqa: PLC0415 - an extra, which the import looks for

    if not notebook.HAS_NOTEBOOK:
        raise ImportError(
            "Rerun's viewer for notebooks is not installed: pip install 'torchrl-rerun[notebook]', and restart the kernel"
        )
    return notebook.Viewer(**options)
