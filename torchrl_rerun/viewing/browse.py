"""Browsing in a notebook: a list of recorded episodes, and a viewer that shows the selected one."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import Any

from torchrl_rerun.export.steps import name_episode
from torchrl_rerun.kinds.episode import END_PROPERTIES, Episode
from torchrl_rerun.layout.blueprint import layout
from torchrl_rerun.layout.recorded import Recorded
from torchrl_rerun.reading.episodes import LoadedEpisodes
from torchrl_rerun.reading.load import load
from torchrl_rerun.reading.loaded_episode import LoadedEpisode
from torchrl_rerun.rrd.openable import openable
from torchrl_rerun.rrd.reader import why_unreadable
from torchrl_rerun.viewing.notebook import NotebookViewer, Size, in_notebook

_MOST_LINES = 8


def browse(
    recordings: str | os.PathLike[str] | LoadedEpisodes, *, width: Size = "auto", height: Size = None
) -> Browser | None:
    """Show a list of episodes and a viewer in a notebook. Elsewhere, print the command that opens the recordings.

    Args:
        recordings: Path of recordings, or episodes of :func:`load`.
        width: Width of the viewer in pixels; ``"auto"`` for the width of the cell. Default: ``"auto"``.
        height: Height of the viewer in pixels; ``"auto"`` for the height of the cell. Default: None, Rerun's own.

    Returns:
        Browser, which a cell displays; ``chosen`` is the selected episode. None outside a notebook.

    Raises:
        ImportError: Rerun's viewer for notebooks isn't installed: ``pip install 'torchrl-rerun[notebook]'``.
        FileNotFoundError: The path doesn't exist.
        ValueError: There is no episode, the episodes are in a catalog, or Rerun can't open a file.

    Examples:
        >>> import tempfile
        >>> from torchrl.envs import GymEnv
        >>> from torchrl_rerun import RerunRecorder, browse
        >>> folder = tempfile.mkdtemp()
        >>> env = GymEnv("CartPole-v1").append_transform(RerunRecorder(f"{folder}/run.rrd"))
        >>> _ = env.rollout(10)
        >>> env.close()
        >>> browse(f"{folder}/run.rrd")  # doctest: +ELLIPSIS
        to watch them: rerun /...run.rrd
    """
    found = recordings if isinstance(recordings, LoadedEpisodes) else load(recordings)
    if not len(found):
        raise ValueError("recordings holds no episode to browse")
    if not in_notebook():
        files = dict.fromkeys(file for each in found for file in _find_files(each))
        if reason := next(filter(None, map(why_unreadable, files)), None):
            raise ValueError(reason)
        print(f"to watch them: rerun {shlex.join(map(str, files))}")  # noqa: T201 - in place of the viewer
        return None
    return Browser(found, NotebookViewer(width=width, height=height))


class Browser:
    """List of episodes beside a viewer, in the output of a notebook's cell. An episode is read when it is selected.

    Args:
        recordings: Episodes.
        viewer: Viewer of the notebook.

    Attributes:
        select: Widget of ``ipywidgets`` with the list; its ``value`` is the index of the selected episode.
    """

    def __init__(self, recordings: LoadedEpisodes, viewer: NotebookViewer) -> None:
        import ipywidgets  # noqa: PLC0415 - an extra

        self._recordings = recordings
        self._viewer = viewer
        self._sent: dict[tuple[Path, ...], list[str]] = {}
        self.select = ipywidgets.Select(
            options=[(_describe(each.properties), i) for i, each in enumerate(recordings)],
            rows=min(len(recordings), _MOST_LINES),
            layout={"width": "auto"},
        )
        self.select.observe(lambda _: self._show(), names="value")
        self._show()

    @property
    def chosen(self) -> LoadedEpisode:
        """Selected episode."""
        index: int = self.select.value
        return self._recordings[index]

    def _show(self) -> None:
        episode = self.chosen
        files, schema = _find_files(episode), episode.schema
        if files not in self._sent:
            sent = self._viewer.send(files, layout(Recorded.of_schema(schema, schema.envs)))
            if not sent:
                raise ValueError(why_unreadable(files[-1]) or f"{files[-1]} is damaged")
            self._sent[files] = sent
        self._viewer.widget.set_active_recording(recording_id=self._sent[files][-1])
        if schema.split != "episode":  # the recording holds several episodes
            self._viewer.widget.set_time_ctrl(timeline="step", sequence=episode.properties.first_step)

    def _ipython_display_(self, **_: Any) -> None:
        from IPython.display import display  # noqa: PLC0415 - an extra

        display(self.select)
        self._viewer.widget.display()


def _find_files(episode: LoadedEpisode) -> tuple[Path, ...]:
    if not episode.files:
        raise ValueError(f"{name_episode(episode)} is in a catalog, and not in a file: open its dataset in the viewer")
    if not any(file.is_dir() for file in episode.files):
        return episode.files
    return tuple(openable(episode.files, episode.history.recording.parts[-1].recording_id))  # a black box holds several


def _describe(episode: Episode) -> str:
    """Return the line of an episode in the list.

    >>> _describe(Episode(0, 7, 12.5, 100, terminated=True))
    'environment 0, episode 7: return 12.5, 100 steps, terminated'
    """
    ends = [name for name in END_PROPERTIES if getattr(episode, name)]
    summary = f"environment {episode.env}, episode {episode.episode}: return {episode.episode_return:.6g}"
    return ", ".join([summary, f"{episode.length:,} steps", *ends])
