"""What a measurement hands back: rows of the table, with their verdicts, and details."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

FORMATS_OF, DISK_USE_OF = "image formats, ", "disk use, "
"""What the figures of details begin with that are a table of their own in a page."""


@dataclass(frozen=True)
class Row:
    """One figure that has a target.

    Attributes:
        figure: what is measured.
        workload: on what.
        measured: the numbers, in words.
        ratio: what is compared with the target.
        must_reach: the target, in words.
        holds: whether it is reached; None: it wasn't measured, and ``measured`` says why.
        numbers: the measured numbers for machines to read; the unit ends each name.
    """

    figure: str
    workload: str
    measured: str
    ratio: str
    must_reach: str
    holds: bool | None
    numbers: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Detail:
    """A number without a target, that explains one with."""

    figure: str
    what: str
    measured: str
    numbers: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Report:
    """All that one measurement found."""

    rows: tuple[Row, ...] = ()
    details: tuple[Detail, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """As what :mod:`json` can write."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Report:
        """What :meth:`as_json` made, from another process."""
        return cls(tuple(Row(**row) for row in data["rows"]), tuple(Detail(**detail) for detail in data["details"]))


@dataclass(frozen=True)
class Effort:
    """How much to measure; every module says what it does with less of it."""

    quick: bool = False

    def of(self, full: int, quick: int) -> int:
        """One number or the other."""
        return quick if self.quick else full
