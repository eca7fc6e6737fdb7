"""Statistics of the values of a feature in LeRobot's form, by which trainings normalize values."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

QUANTILES = {"q01": 0.01, "q10": 0.10, "q50": 0.50, "q90": 0.90, "q99": 0.99}

_Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Statistics:
    """Statistics of vectors, number by number. Values that aren't finite are left out.

    A number that is never finite has zeros.

    Attributes:
        count: the number of vectors, or of pictures.
        weights: the number of finite values, ``[size]``.
        least: the minimum, ``[size]``.
        most: the maximum, ``[size]``.
        mean: the mean, ``[size]``.
        std: the standard deviation, ``[size]``.
        quantiles: the quantiles, ``[5, size]``.
        is_picture: whether the numbers are colours, whose shape in the format is ``[3, 1, 1]``.
    """

    count: int
    weights: _Floats
    least: _Floats
    most: _Floats
    mean: _Floats
    std: _Floats
    quantiles: _Floats
    is_picture: bool = False

    @classmethod
    def of(cls, values: npt.NDArray[Any], *, count: int | None = None, is_picture: bool = False) -> Statistics:
        """Return the statistics of some values.

        Args:
            values: the values, ``[n, size]``.
            count: the count to note. Default: ``n``.
            is_picture: whether the numbers are colours.
        """
        numbers = values.astype(np.float64)
        is_finite = np.isfinite(numbers)
        weights = is_finite.sum(axis=0).astype(np.float64)
        if is_finite.all():
            found = _summary(numbers)
        else:
            columns = [_summary(column[kept, None]) for column, kept in zip(numbers.T, is_finite.T, strict=True)]
            found = np.concatenate(columns, axis=1)
        least, most, mean, std, *quantiles = found
        count = len(values) if count is None else count
        return cls(count, weights, least, most, mean, std, np.stack(quantiles), is_picture)

    @classmethod
    def of_picture(cls, picture: npt.NDArray[Any]) -> Statistics:
        """Return the statistics of the colours of a picture, uint8 ``[height, width, 3]``, as numbers from 0 to 1."""
        return cls.of(picture.reshape(-1, 3) / 255, count=1, is_picture=True)

    @classmethod
    def together(cls, several: Iterable[Statistics]) -> Statistics:
        """Return the statistics of all values of several. Quantiles are means of theirs, weighted by the number of values."""
        return functools.reduce(cls._with, several)

    def _with(self, other: Statistics) -> Statistics:
        weights = self.weights + other.weights
        share = self.weights / np.maximum(weights, 1)
        others = other.weights / np.maximum(weights, 1)
        # Sums and squares of large values are infinite though mean and deviation aren't.
        apart = np.sqrt(share * others)
        between = apart * self.mean - apart * other.mean
        within = np.hypot(np.sqrt(share) * self.std, np.sqrt(others) * other.std)
        return Statistics(
            self.count + other.count,
            weights,
            _chosen(np.minimum, self, other, self.least, other.least),
            _chosen(np.maximum, self, other, self.most, other.most),
            share * self.mean + others * other.mean,
            np.hypot(within, between),
            share * self.quantiles + others * other.quantiles,
            self.is_picture,
        )

    def as_lists(self) -> dict[str, Any]:
        """Return the statistics by LeRobot's names, in its shapes."""
        found = {"min": self.least, "max": self.most, "mean": self.mean, "std": self.std}
        found |= dict(zip(QUANTILES, self.quantiles, strict=True))
        shape = (-1, 1, 1) if self.is_picture else (-1,)
        return {name: value.reshape(shape).tolist() for name, value in found.items()} | {"count": [self.count]}


def _summary(numbers: _Floats) -> _Floats:
    """Return minimum, maximum, mean, deviation and quantiles of finite numbers, ``[9, size]``."""
    if not len(numbers):
        return np.zeros((4 + len(QUANTILES), *numbers.shape[1:]))
    least, most = numbers.min(axis=0), numbers.max(axis=0)
    scale = np.maximum(np.abs(least), np.abs(most))
    scale[scale == 0] = 1
    scaled = numbers / scale  # whose sums and squares are finite
    found = [scaled.mean(axis=0), scaled.std(axis=0), *np.quantile(scaled, list(QUANTILES.values()), axis=0)]
    return np.stack([least, most, *(each * scale for each in found)])


def _chosen(choose: Any, one: Statistics, other: Statistics, of_one: _Floats, of_other: _Floats) -> _Floats:
    """Return the smaller or larger of two extremes. Without finite values one side has no extreme."""
    both: _Floats = choose(of_one, of_other)
    return np.where(one.weights == 0, of_other, np.where(other.weights == 0, of_one, both))
