"""Screenshots: pictures of the viewer at some moments of a recording."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rerun.experimental import Recording, ViewerClient

from torchrl_rerun.viewing.program import ViewerError
from torchrl_rerun.viewing.times import format_time, parse_time
from torchrl_rerun.viewing.viewer import LOOPBACK, Viewer, find_free_port, start_headless

END = "end"
"""The last place on a timeline."""

_PAUSE = 0.2
_MESSAGES_STAY = 5.0
"""rerun-sdk 0.41: seconds after its start for which the viewer's own messages cover its views."""


@dataclass(frozen=True)
class Moment:
    """Place on a timeline.

    Attributes:
        timeline: Name of the timeline; None for the one that the viewer shows.
        value: Whole number, seconds, or date and time, by the type of the timeline; or ``"end"``. Numbers below all that are
            recorded count from the end: frame -1 is the last one, -1.5 seconds are 1.5 seconds before the last one.
    """

    timeline: str | None
    value: str

    @classmethod
    def parse(cls, text: str) -> Moment:
        """Return the moment of a text of the command line.

        Raises:
            ValueError: The text is not a timeline and a place on it.

        >>> Moment.parse("frame=60")
        Moment(timeline='frame', value='60')
        >>> Moment.parse("end")
        Moment(timeline=None, value='end')
        """
        if text == END:
            return cls(None, END)
        timeline, separator, value = text.partition("=")
        if not (separator and timeline and value):
            raise ValueError(f"{text!r} is not a timeline and a place on it, such as frame=60; nor is it end")
        return cls(timeline, value)


@dataclass(frozen=True)
class Screenshot:
    """Picture of the viewer.

    Attributes:
        png: Contents of a PNG file.
        is_settled: The views had stopped changing when the picture was taken.
        errors: Errors of visible views. Views behind tabs report none.
        warnings: Warnings of visible views.
    """

    png: bytes
    is_settled: bool
    errors: tuple[str, ...]
    warnings: tuple[str, ...]


def take_screenshots(
    files: Sequence[Path], moments: Sequence[Moment | None], *, size: tuple[int, int], wait: float
) -> Iterator[Screenshot]:
    """Open recordings in a headless viewer, and yield a picture for each moment.

    A picture is taken when the recordings are loaded and two pictures in a row are equal, since decoding video takes time.

    Args:
        files: Absolute paths of recordings. The viewer shows the last one.
        moments: Moments to show; None for the beginning.
        size: Width and height in pixels.
        wait: Seconds after which a picture is taken although the views still change.

    Raises:
        ViewerError: The viewer doesn't start, or shows nothing.
        ValueError: The timeline doesn't exist, or nothing is recorded at the moment.
    """
    port = find_free_port(LOOPBACK)
    with start_headless(port, size) as viewer:
        client = _connect(viewer, port)
        client.open([str(file) for file in files])
        clear = time.monotonic() + _MESSAGES_STAY
        recording = _wait_until_loaded(client, viewer, wait)
        for moment in moments:
            timeline = (moment.timeline if moment is not None else None) or recording.current_timeline
            if timeline is not None:
                client.set_time(timeline, play_state="paused", **_make_time_argument(moment, recording))
            yield _take_settled(client, wait, clear)


def _connect(viewer: Viewer, port: int) -> ViewerClient:
    viewer.wait_until_listening(LOOPBACK, port)
    deadline = time.monotonic() + 30.0
    while True:
        try:
            client = ViewerClient.connect(f"rerun+http://{LOOPBACK}:{port}/proxy")
            client.get_state()
        except (ConnectionError, RuntimeError) as error:  # the viewer listens before it can draw
            viewer.check()
            if time.monotonic() > deadline:
                raise ViewerError(f"the viewer doesn't answer: {error}") from None
            time.sleep(_PAUSE)
        else:
            return client


def _wait_until_loaded(client: ViewerClient, viewer: Viewer, wait: float) -> Recording:
    deadline = time.monotonic() + wait
    while True:
        state = client.get_state()
        shown = [each for each in state.recordings if each.store_id == state.active_recording]
        if shown and state.views and not state.loading:
            return shown[0]
        viewer.check()
        if time.monotonic() > deadline:
            logged = "; ".join(entry.message for entry in client.get_logs() if entry.level in {"WARN", "ERROR"})
            what = "is still loading" if state.loading else "shows nothing"
            raise ViewerError(f"the viewer {what} after {wait:g} s{f': {logged}' if logged else ''}")
        time.sleep(_PAUSE)


def _take_settled(client: ViewerClient, wait: float, clear: float) -> Screenshot:
    deadline = max(time.monotonic() + wait, clear)
    png, before = client.take_screenshot(), b""
    while (png != before or time.monotonic() < clear) and time.monotonic() < deadline:
        time.sleep(_PAUSE)
        png, before = client.take_screenshot(), png
    errors: list[str] = []
    warnings: list[str] = []
    for view in client.get_state().views:
        for report in view.reports:
            text = f"{view.name or view.origin}: {report.summary}"
            (errors if report.severity == "error" else warnings).append(text)
    return Screenshot(png, png == before, tuple(errors), tuple(warnings))


def _make_time_argument(moment: Moment | None, recording: Recording) -> dict[str, Any]:
    """Return the argument of ``set_time`` for a moment; None stands for the beginning of the recording."""
    timelines = {timeline.name: timeline for timeline in recording.timelines}
    if moment is None:
        shown = timelines.get(recording.current_timeline or "")
        return (
            {}
            if shown is None or shown.start is None
            else {shown.time_type: _TIMELINE_TYPES[shown.time_type].argument(shown.start)}
        )
    name = moment.timeline or recording.current_timeline or ""
    timeline = timelines.get(name)
    if timeline is None:
        raise ValueError(f"the timeline {name!r} doesn't exist; recorded are {', '.join(timelines)}")
    kind = _TIMELINE_TYPES[timeline.time_type]
    if moment.value == END and timeline.end is not None:
        return {timeline.time_type: kind.argument(timeline.end)}
    try:
        value = kind.value(moment.value)
    except (OverflowError, ValueError):  # infinity can't be rounded
        raise ValueError(f"{moment.value!r} is not a place on {name}: pass {kind.form}, or end") from None
    if timeline.start is not None and timeline.end is not None and kind.beyond is not None:
        value += timeline.end + kind.beyond if value < min(0, timeline.start) else 0
    if timeline.start is None or timeline.end is None or not timeline.start <= value <= timeline.end:
        ends = (
            "" if timeline.start is None else f", but from {kind.shown(timeline.start)} to {kind.shown(timeline.end)}"
        )
        raise ValueError(f"nothing is recorded at {name}={moment.value}{ends}")
    return {timeline.time_type: kind.argument(value)}


class _TimelineType(NamedTuple):
    """Type of timeline: form of its values on the command line, and conversion to those of the viewer.

    Attributes:
        form: Form of values, for messages.
        beyond: Distance from the last value to the one that numbers below 0 count from; None if they are no places.
        value: Returns the viewer's value of a text.
        shown: Returns the text of a value.
        argument: Returns the viewer's argument.
    """

    form: str
    beyond: int | None
    value: Callable[[str], int]
    shown: Callable[[Any], str]
    argument: Callable[[int], Any]


_TIMELINE_TYPES = {
    "sequence": _TimelineType("a whole number", 1, int, str, int),
    "duration": _TimelineType(
        "seconds",
        0,
        lambda text: round(float(text) * 1e9),
        lambda value: f"{value / 1e9:g}",
        lambda value: np.timedelta64(value, "ns"),
    ),
    "timestamp": _TimelineType(
        "a date and time, such as 2026-01-31T12:00:00Z",
        None,
        lambda text: round(parse_time(text).timestamp() * 1e9),
        lambda value: format_time(datetime.fromtimestamp(value / 1e9, UTC)),
        lambda value: np.datetime64(value, "ns"),
    ),
}
