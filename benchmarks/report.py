"""Results of a measurement: rows of the table, with verdicts, and details."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

FORMATS_OF, DISK_USE_OF = "image formats, ", "disk use, "
"""Prefixes of the figures of details that have a table of their own in a page."""


@dataclass(frozen=True)
class Row:
    """Figure with a target.

    Attributes:
        figure: Name of the figure.
        workload: Environments and data.
        measured: Measured numbers, as text.
        ratio: Ratio that is compared with the target.
        must_reach: Target, as text.
        holds: Whether the target is reached; None if it wasn't measured, with the reason in ``measured``.
        numbers: Measured numbers for machines; each name ends with its unit.
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
    """Number without a target, which explains a row."""

    figure: str
    what: str
    measured: str
    numbers: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Report:
    """All results of one measurement."""

    rows: tuple[Row, ...] = ()
    details: tuple[Detail, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """Return the report in a form that :mod:`json` can write."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Report:
        """Return the report of :meth:`as_json`, from another process."""
        return cls(tuple(Row(**row) for row in data["rows"]), tuple(Detail(**detail) for detail in data["details"]))


@dataclass(frozen=True)
class Effort:
    """Amount of measuring. The ``measure`` function of each module documents both amounts."""

    quick: bool = False

    def of(self, full: int, quick: int) -> int:
        """Return ``full`` or ``quick``."""
        return quick if self.quick else full
