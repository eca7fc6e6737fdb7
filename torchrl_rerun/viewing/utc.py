"""UTC: the one zone in which times are shown, and in which those are meant that name none."""

from __future__ import annotations

import re
from datetime import UTC, datetime

_REDUCED = re.compile(r"\d{4}(-\d{2})?")


def shown_time(moment: datetime) -> str:
    """Return a time as all commands show it, to the microsecond; one without a zone, as SQL may give it, as it is.

    >>> shown_time(datetime(2026, 11, 21, 18, 38, 19, 500000, UTC))
    '2026-11-21T18:38:19.500000Z'
    """
    if moment.tzinfo is None:
        return moment.isoformat()
    return f"{moment.astimezone(UTC).replace(tzinfo=None).isoformat()}Z"


def time_of(text: str) -> datetime:
    """Return the time that a text says. A date, a month or a year is its beginning.

    Raises:
        ValueError: it is no time.

    >>> time_of("2026-11-21T18:38:19+09:00") == time_of("2026-11-21 09:38:19Z") == time_of("2026-11-21T09:38:19")
    True
    >>> shown_time(time_of("2026"))
    '2026-01-01T00:00:00Z'
    """
    reduced = _REDUCED.fullmatch(text)
    whole = text if reduced is None else f"{text}-01" if reduced[1] else f"{text}-01-01"
    try:
        moment = datetime.fromisoformat(whole)
    except ValueError:
        raise ValueError(
            f"{text!r} is no time: write it as 2026-01-31T12:00:00Z, in UTC unless it says another zone"
        ) from None
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
