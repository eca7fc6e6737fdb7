"""The episodes of recordings as a table, and SQL queries of it. DataFusion, which runs them, is an extra."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterable, Sequence
from typing import Any, cast

import pyarrow as pa

from torchrl_rerun.kinds.episode import EPISODE_PROPERTIES, Value
from torchrl_rerun.paths import escape_path
from torchrl_rerun.reading.load import Place, load
from torchrl_rerun.reading.loaded_episode import LoadedEpisode
from torchrl_rerun.rrd.listing import is_box

TABLE = "episodes"
"""The name of the table in queries."""

_TYPES: dict[str, pa.DataType] = {
    "env": pa.int64(),
    "episode": pa.int64(),
    "episode_return": pa.float64(),
    "length": pa.int64(),
    "terminated": pa.bool_(),
    "truncated": pa.bool_(),
    "interrupted": pa.bool_(),
    "first_step": pa.int64(),
    "start_time": pa.timestamp("us", "UTC"),
    "seed": pa.int64(),
}
assert tuple(_TYPES) == EPISODE_PROPERTIES
_FILES = "files"
_WHOLE = re.compile(r"\s*(select|with)\b", re.IGNORECASE)


def query(source: Place | Iterable[Place] | Iterable[LoadedEpisode], said: str) -> pa.Table:
    """Return the episodes that a condition holds for, or the result of a whole query.

    Args:
        source: the argument of :func:`~torchrl_rerun.load`, or episodes that it returned.
        said: a condition in SQL, such as ``"episode_return < 50 AND NOT success"``, or a whole query of the table
            ``episodes``, such as ``"SELECT env, avg(length) FROM episodes GROUP BY env"``. The columns are those of
            :func:`table_of`. Times are in UTC unless they name another zone: ``"start_time > '2026-01-31T12:00:00'"``.
            NaN is equal to itself: ``"episode_return = 'NaN'"``.

    Returns:
        The rows. If columns have one name, the second is called ``name_2``, and so on.

    Raises:
        FileNotFoundError: nothing is there.
        ImportError: DataFusion is missing.
        ValueError: the query isn't SQL, or names a column that doesn't exist; lists the columns.

    Examples:
        >>> import tempfile
        >>> from torchrl.envs import GymEnv
        >>> from torchrl_rerun import RerunRecorder, query
        >>> path = tempfile.mkdtemp() + "/run.rrd"
        >>> env = GymEnv("CartPole-v1").append_transform(RerunRecorder(path))
        >>> rollout = env.rollout(100, break_when_any_done=False)
        >>> env.close()
        >>> query(path, "episode = 0").column("env").to_pylist()
        [0]
        >>> query(path, "SELECT sum(length) AS steps FROM episodes").to_pylist()
        [{'steps': 100}]
    """
    from datafusion import SessionContext  # noqa: PLC0415 - an extra, of 200 MB

    given = [source] if isinstance(source, str | os.PathLike) else list(source)
    episodes = [each for each in given if isinstance(each, LoadedEpisode)]
    table = table_of(episodes if len(episodes) == len(given) else load(cast("list[Place]", given)))
    context = SessionContext()
    context.from_arrow(table, TABLE)
    statement = said if _WHOLE.match(said) else f"SELECT * FROM {TABLE} WHERE {said}"  # noqa: S608 - it is the user's own
    try:
        found = context.sql(statement).to_arrow_table()
    except Exception as error:  # DataFusion doesn't document its errors
        raise ValueError(_explained(said, str(error), table.schema.names)) from error
    return found.rename_columns(_unlike(found.schema.names))


def _unlike(names: Sequence[str]) -> list[str]:
    """Return names of which none comes twice, as those of a table that is joined to itself do."""
    unlike: list[str] = []
    for name in names:
        free = (f"{name}_{number}" if number > 1 else name for number in itertools.count(1))
        unlike.append(next(each for each in free if each not in unlike))
    return unlike


def _explained(said: str, why: str, names: Sequence[str]) -> str:
    # SQL takes words in double quotes, and words without quotes, for names.
    return (
        f"{said!r} can't be answered: {why.rstrip('.')}. The columns are {', '.join(names)}. (A text is in single quotes; a "
        "name that isn't all of small letters, digits and _ in double ones)"
    )


def table_of(episodes: Iterable[LoadedEpisode]) -> pa.Table:
    """Return a table of episodes, a row each: the properties, then the annotations, then ``files``.

    An annotation with values of several types is text. ``start_time`` is in UTC, and files are absolute paths. There are
    none of an episode that is in a black box alone.

    Args:
        episodes: the episodes, as :func:`~torchrl_rerun.load` returns them.
    """
    found = list(episodes)
    known = [each.properties for each in found]
    columns = {name: pa.array([each[name] for each in known], kind) for name, kind in _TYPES.items()}
    for name in dict.fromkeys(name for each in known for name in each.annotations):
        heading = f"annotated {name}" if name == _FILES else name
        columns[heading] = _annotations([each.annotations.get(name) for each in known])
    files = [[escape_path(file) for file in each.files if not is_box(file)] for each in found]
    return pa.table(columns | {_FILES: pa.array(files, pa.list_(pa.string()))})


def _annotations(values: Sequence[Value | list[Value] | None]) -> pa.Array:
    try:
        return pa.array(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        return pa.array([_text(value) for value in values], pa.string())


def _text(value: Any) -> str | None:
    return None if value is None else str(value)
