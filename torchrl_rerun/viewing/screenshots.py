"""Screenshots: what the viewer shows of recordings at some moments, as pictures."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rerun.experimental import Recording, ViewerClient

from torchrl_rerun.viewing.utc import shown_time, time_of
from torchrl_rerun.viewing.viewer import LOOPBACK, Viewer, ViewerError, free_port, headless

_PAUSE = 0.2
_MESSAGES_STAY = 5.0
"""Seconds for which messages of the viewer's own lie over what it shows, after its start (rerun-sdk 0.41)."""


@dataclass(frozen=True)
class Moment:
    """A place on a timeline.

    Attributes:
        timeline: its name.
        value: where: a whole number, seconds, or a date and time, as the timeline has them.
    """

    timeline: str
    value: str

    @classmethod
    def parse(cls, said: str) -> Moment:
        """A moment as it is said on the command line.

        Raises:
            ValueError: it isn't a timeline and a value.

        >>> Moment.parse("frame=60")
        Moment(timeline='frame', value='60')
        """
        timeline, separator, value = said.partition("=")
        if not (separator and timeline and value):
            raise ValueError(f"{said!r} is not a timeline and a place on it, as frame=60")
        return cls(timeline, value)


@dataclass(frozen=True)
class Screenshot:
    """What the viewer shows.

    Attributes:
        png: the picture, a PNG file.
        is_settled: whether nothing changed any more when it was taken.
        errors: what views report that can't show what they are to show; those behind tabs aren't drawn, and report nothing.
        warnings: what views have to say besides.
    """

    png: bytes
    is_settled: bool
    errors: tuple[str, ...]
    warnings: tuple[str, ...]


def screenshots(
    files: Sequence[Path], moments: Sequence[Moment | None], *, size: tuple[int, int], wait: float
) -> Iterator[Screenshot]:
    """Open recordings in the viewer, without a window, and take pictures.

    A picture is taken when all is loaded, and two pictures after one another are the same: decoding video takes its time.

    Args:
        files: absolute paths of the recordings; what is shown is the one that is opened last.
        moments: when; None: at the beginning.
        size: width and height.
        wait: seconds after which a picture is taken anyway.

    Raises:
        ViewerError: the viewer doesn't start, or shows nothing.
        ValueError: there is no such timeline, or nothing is recorded there.
    """
    port = free_port(LOOPBACK)
    with headless(port, size) as viewer:
        client = _connected(viewer, port)
        client.open([str(file) for file in files])
        clear = time.monotonic() + _MESSAGES_STAY
        recording = _loaded(client, viewer, wait)
        for moment in moments:
            timeline = recording.current_timeline if moment is None else moment.timeline
            if timeline is not None:
                client.set_time(timeline, play_state="paused", **_time(moment, recording))
            yield _settled(client, wait, clear)


def _connected(viewer: Viewer, port: int) -> ViewerClient:
    viewer.wait_until_it_listens(LOOPBACK, port)
    deadline = time.monotonic() + 30.0
    while True:
        try:
            client = ViewerClient.connect(f"rerun+http://{LOOPBACK}:{port}/proxy")
            client.get_state()
        except (ConnectionError, RuntimeError) as error:  # it listens before it can draw
            viewer.check()
            if time.monotonic() > deadline:
                raise ViewerError(f"the viewer doesn't answer: {error}") from None
            time.sleep(_PAUSE)
        else:
            return client


def _loaded(client: ViewerClient, viewer: Viewer, wait: float) -> Recording:
    deadline = time.monotonic() + wait
    while True:
        state = client.get_state()
        shown = [each for each in state.recordings if each.store_id == state.active_recording]
        if shown and state.views and not state.loading:
            return shown[0]
        viewer.check()
        if time.monotonic() > deadline:
            said = "; ".join(entry.message for entry in client.get_logs() if entry.level in {"WARN", "ERROR"})
            what = "is still loading" if state.loading else "shows nothing"
            raise ViewerError(f"the viewer {what} after {wait:g} s{f': {said}' if said else ''}")
        time.sleep(_PAUSE)


def _settled(client: ViewerClient, wait: float, clear: float) -> Screenshot:
    deadline = max(time.monotonic() + wait, clear)
    png, before = client.take_screenshot(), b""
    while (png != before or time.monotonic() < clear) and time.monotonic() < deadline:
        time.sleep(_PAUSE)
        png, before = client.take_screenshot(), png
    errors: list[str] = []
    warnings: list[str] = []
    for view in client.get_state().views:
        for report in view.reports:
            said = f"{view.name or view.origin}: {report.summary}"
            (errors if report.severity == "error" else warnings).append(said)
    return Screenshot(png, png == before, tuple(errors), tuple(warnings))


def _time(moment: Moment | None, recording: Recording) -> dict[str, Any]:
    """The argument by which the viewer is told where to go; None: to the beginning of what it shows."""
    timelines = {timeline.name: timeline for timeline in recording.timelines}
    if moment is None:
        shown = timelines.get(recording.current_timeline or "")
        return (
            {}
            if shown is None or shown.start is None
            else {shown.time_type: _KINDS[shown.time_type].argument(shown.start)}
        )
    timeline = timelines.get(moment.timeline)
    if timeline is None:
        raise ValueError(f"there is no timeline {moment.timeline!r}, but {', '.join(timelines)}")
    kind = _KINDS[timeline.time_type]
    try:
        value = kind.value(moment.value)
    except (OverflowError, ValueError):  # infinity is no number of seconds
        raise ValueError(f"{moment.value!r} is no place on {moment.timeline}: give {kind.wanted}") from None
    if timeline.start is None or timeline.end is None or not timeline.start <= value <= timeline.end:
        ends = (
            "" if timeline.start is None else f", but from {kind.shown(timeline.start)} to {kind.shown(timeline.end)}"
        )
        raise ValueError(f"nothing is recorded at {moment.timeline}={moment.value}{ends}")
    return {timeline.time_type: kind.argument(value)}


class _Kind(NamedTuple):
    """A kind of timeline: how its places are said, and what they are to the viewer."""

    wanted: str
    value: Callable[[str], int]
    shown: Callable[[Any], str]
    argument: Callable[[int], Any]


_KINDS = {
    "sequence": _Kind("a whole number", int, str, int),
    "duration": _Kind(
        "seconds",
        lambda said: round(float(said) * 1e9),
        lambda value: f"{value / 1e9:g}",
        lambda value: np.timedelta64(value, "ns"),
    ),
    "timestamp": _Kind(
        "a date and time, as 2026-01-31T12:00:00Z",
        lambda said: round(time_of(said).timestamp() * 1e9),
        lambda value: shown_time(datetime.fromtimestamp(value / 1e9, UTC)),
        lambda value: np.datetime64(value, "ns"),
    ),
}
