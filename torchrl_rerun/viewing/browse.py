"""Browsing: in a notebook, a list of recorded episodes, and the viewer, which shows the one that is chosen."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import Any

from torchrl_rerun.export.steps import told
from torchrl_rerun.kinds.episode import Episode
from torchrl_rerun.layout.blueprint import Recorded, layout
from torchrl_rerun.reading.episodes import LoadedEpisode, LoadedEpisodes
from torchrl_rerun.reading.load import load
from torchrl_rerun.rrd.reader import why_unreadable
from torchrl_rerun.viewing.notebook import Size, Stage, is_here

_MOST_LINES = 8


def browse(
    recordings: str | os.PathLike[str] | LoadedEpisodes, *, width: Size = "auto", height: Size = None
) -> Browser | None:
    """Pick an episode from a list in a notebook, and watch it; outside of one, print the command that opens them all.

    Args:
        recordings: episodes, as of :func:`load`, or where they are.
        width: of the viewer, in pixels; ``"auto"``: what there is room for.
        height: likewise. Default: Rerun's.

    Returns:
        The list and the viewer, which a cell shows; ``chosen`` is the episode that is chosen.

    Raises:
        ImportError: Rerun's viewer for notebooks isn't installed: ``pip install 'torchrl-rerun[notebook]'``.
        FileNotFoundError: there is nothing.
        ValueError: there is no episode; they are in a catalog, and not in files; or Rerun can't open a file.
    """
    found = recordings if isinstance(recordings, LoadedEpisodes) else load(recordings)
    if not len(found):
        raise ValueError("there is no episode to choose")
    if not is_here():
        files = dict.fromkeys(file for each in found for file in _files_of(each))
        if trouble := next(filter(None, map(why_unreadable, files)), None):
            raise ValueError(trouble)
        print(f"to watch them: rerun {shlex.join(map(str, files))}")  # noqa: T201 - where a notebook would show it
        return None
    return Browser(found, Stage(width=width, height=height))


class Browser:
    """A list of episodes, and the viewer. An episode is read when it is chosen.

    Args:
        recordings: the episodes.
        stage: the viewer.

    Attributes:
        select: the widget to choose with: its ``value`` is the number of the episode in the list.
    """

    def __init__(self, recordings: LoadedEpisodes, stage: Stage) -> None:
        import ipywidgets  # noqa: PLC0415 - it comes with the viewer

        self._recordings = recordings
        self._stage = stage
        self._sent: dict[tuple[Path, ...], list[str]] = {}
        self.select = ipywidgets.Select(
            options=[(_line(each.properties), i) for i, each in enumerate(recordings)],
            rows=min(len(recordings), _MOST_LINES),
            layout={"width": "auto"},
        )
        self.select.observe(lambda _: self._show(), names="value")
        self._show()

    @property
    def chosen(self) -> LoadedEpisode:
        """The episode that is chosen."""
        index: int = self.select.value
        return self._recordings[index]

    def _show(self) -> None:
        episode = self.chosen
        files, schema = _files_of(episode), episode.schema
        if files not in self._sent:
            sent = self._stage.send(files, layout(Recorded.of_schema(schema, schema.envs)))
            if not sent:
                raise ValueError(why_unreadable(files[-1]) or f"{files[-1]} is damaged")
            self._sent[files] = sent
        self._stage.viewer.set_active_recording(recording_id=self._sent[files][-1])
        if schema.split != "episode":  # it is in a recording of several
            self._stage.viewer.set_time_ctrl(timeline="step", sequence=episode.properties.first_step)

    def _ipython_display_(self, **_: Any) -> None:
        from IPython.display import display  # noqa: PLC0415 - this is a notebook

        display(self.select)
        self._stage.viewer.display()


def _files_of(episode: LoadedEpisode) -> tuple[Path, ...]:
    if not episode.files:
        raise ValueError(f"{told(episode)} is in a catalog, and not in a file: open its dataset in the viewer")
    return episode.files


def _line(episode: Episode) -> str:
    """What is said of an episode in the list.

    >>> _line(Episode(0, 7, 12.5, 100, terminated=True))
    'environment 0, episode 7: return 12.5, 100 steps, terminated'
    """
    ends = [name for name in ("terminated", "truncated", "interrupted") if getattr(episode, name)]
    seen = f"environment {episode.env}, episode {episode.episode}: return {episode.episode_return:.6g}"
    return ", ".join([seen, f"{episode.length:,} steps", *ends])
