"""Times in UTC: the zone in which commands show times, and the default zone of the times that they are given."""

from __future__ import annotations

import re
from datetime import UTC, datetime

_REDUCED = re.compile(r"\d{4}(-\d{2})?")


def format_time(moment: datetime) -> str:
    """Return a time in UTC, in ISO 8601. A time without a zone, which SQL may give, gets no suffix.

    >>> format_time(datetime(2026, 11, 21, 18, 38, 19, 500000, UTC))
    '2026-11-21T18:38:19.500000Z'
    """
    if moment.tzinfo is None:
        return moment.isoformat()
    return f"{moment.astimezone(UTC).replace(tzinfo=None).isoformat()}Z"


def parse_time(text: str) -> datetime:
    """Return the time of a text in ISO 8601. A date, a month or a year stands for its beginning.

    Raises:
        ValueError: The text is not a time.

    >>> parse_time("2026-11-21T18:38:19+09:00") == parse_time("2026-11-21 09:38:19Z") == parse_time("2026-11-21T09:38:19")
    True
    >>> format_time(parse_time("2026"))
    '2026-01-01T00:00:00Z'
    """
    reduced = _REDUCED.fullmatch(text)
    whole = text if reduced is None else f"{text}-01" if reduced[1] else f"{text}-01-01"
    try:
        moment = datetime.fromisoformat(whole)
    except ValueError:
        raise ValueError(
            f"{text!r} is not a time: write it as 2026-01-31T12:00:00Z; the zone is UTC unless the text names another"
        ) from None
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
