"""Trajectories in named arrays over time, read segment by segment as steps of episodes."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Generator, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from tensordict import TensorDict

from torchrl_rerun.errors import warn
from torchrl_rerun.kinds.endings import DONE, TERMINATED, TRUNCATED
from torchrl_rerun.kinds.keys import REWARD, Key, name_of
from torchrl_rerun.stored.array_names import (
    ACTION,
    BOUNDARIES,
    EPISODE,
    ESSENTIAL,
    FIRST,
    FLAGS,
    LAST,
    MAY_BE_LONGER,
    NEXT,
    OBSERVATION,
    TERMINAL,
    assign_keys,
)
from torchrl_rerun.stored.columns import (
    Column,
    DamagedError,
    concatenate_rows,
    convert_rows,
    count_row_bytes,
    explain_unsupported,
    find_column_damage,
    make_unknown_rows,
)
from torchrl_rerun.stored.segments import Segment, StoredTrajectories, split_time
from torchrl_rerun.transform.continuity import is_plain, where_they_differ

Flags = npt.NDArray[np.bool_]


class Trajectory:
    """Named arrays over time, of one episode or of several, one after another.

    Args:
        place: File, and group or episode in it, for messages.
        columns: Arrays by their names.
        given: Names of arrays that the user chose, by their keys.
        seed: Seed of the first episode. Default: None, not known.

    Raises:
        ValueError: No array is recognised; or an essential array is damaged, or has another length than the others.
    """

    def __init__(
        self, place: str, columns: Mapping[Key, Column], given: Mapping[Key, str] | None = None, seed: int | None = None
    ) -> None:
        self._place, self._columns, self._seed = place, columns, seed
        names = sorted("/".join(name) for name in columns)
        for key, chosen in (given or {}).items():
            if not any(each == chosen or each.startswith(f"{chosen}/") for each in names):
                raise ValueError(f"{place} has no array {chosen!r} for {name_of(key)}, but {', '.join(names)}")
        assigned = assign_keys(columns, given or {})
        self._left_out = {"/".join(name): why for name, why in assigned.left_out.items()}
        self._keys: dict[Key, Key] = {}
        for name, key in assigned.keys.items():
            self._add(name, key)
        if not self._has(OBSERVATION, ACTION, REWARD):
            raise ValueError(
                f"{place} holds arrays called {', '.join(names) or 'nothing'}, none of which is recognised as "
                "observations, actions or rewards: name one, for example with --key observation=NAME"
            )
        self._counting = self._find_counting_array()
        for name, key in list(self._keys.items()):
            self._check_length(name, key)

    # --- selection of arrays ---

    def _add(self, name: Key, key: Key) -> None:
        column, label = self._columns[name], "/".join(name)
        if column.fault is not None:
            self._leave_out(label, column.fault, is_essential=key[0] in (*ESSENTIAL, *BOUNDARIES))
        elif (why := explain_unsupported(column)) is not None:
            self._leave_out(label, why, is_essential=key in {(role,) for role in (*ESSENTIAL, *BOUNDARIES)})
        elif key[0] in (REWARD, *BOUNDARIES) and column.dtype.kind not in "biuf":
            raise ValueError(f"{self._place}: {label!r} holds strings, and can't be {key[0]}")
        else:
            self._keys[name] = key

    def _leave_out(self, label: str, why: str, *, is_essential: bool) -> None:
        if not is_essential:
            self._left_out[label] = why
        else:
            raise ValueError(f"{self._place}: {label!r} can't be read: {why}")

    def _check_length(self, name: Key, key: Key) -> None:
        """Leave out an array that doesn't have one row for each step; raise if the array is essential."""
        column, label = self._columns[name], "/".join(name)
        rows = column.shape[0] if column.shape else None
        may_be_longer = key[0] in MAY_BE_LONGER and not self._has(LAST, TERMINAL)
        if rows == self.rows or (may_be_longer and rows == self.rows + 1):
            return
        is_longer = f" Only observations may have {self.rows + 1:,}." if rows == self.rows + 1 else ""
        if key[0] in (*ESSENTIAL, *BOUNDARIES) and len(key) == 1:
            advice = " If each row says how a trajectory ends, store that in the row of its last step."
            raise ValueError(
                f"{self._place}: {label!r} has {'no rows' if rows is None else f'{rows:,} rows'}, and "
                f"{'/'.join(self._counting)!r} {self._columns[self._counting].shape[0]:,}: there must be one for each "
                f"step.{is_longer}{advice if key[0] in FLAGS and not is_longer else ''}"
            )
        advice = f"; for a row more, --key infos/{label}={label}" if is_longer and key[0] not in MAY_BE_LONGER else ""
        self._left_out[label] = (
            f"{column.dtype} {tuple(column.shape)}, not one row for each of {self.rows:,} steps{advice}"
        )
        del self._keys[name]

    def _has(self, *roles: str) -> bool:
        """Return whether an array has one of some roles."""
        return any(key[0] in roles for key in self._keys.values())

    def _find_arrays(self, role: str) -> list[Key]:
        """Return the names of the arrays with a role."""
        return [name for name, key in self._keys.items() if key[0] == role]

    def _find_counting_array(self) -> Key:
        """Return the name of the array whose length is the number of steps."""
        for role in (ACTION, REWARD, *BOUNDARIES, NEXT, OBSERVATION):
            for name in self._find_arrays(role):
                column = self._columns[name]
                # The length of an array of empty rows is a number in a header, without any data to support it.
                if column.shape and (count_row_bytes(column) or not column.shape[0]):
                    return name
        raise ValueError(f"{self._place} holds no numbers")

    @cached_property
    def rows(self) -> int:
        """Number of rows that hold a step."""
        count = int(self._columns[self._counting].shape[0])
        return max(0, count - 1) if self._keys[self._counting][0] == OBSERVATION else count

    def find_damage(self) -> dict[str, str]:
        """Read all rows of arrays that aren't essential. Return the reasons why some can't be read, by their names."""
        needed = (*ESSENTIAL, *BOUNDARIES)
        rest = {
            name: find_column_damage(self._columns[name]) for name, key in self._keys.items() if key[0] not in needed
        }
        return {"/".join(name): why for name, why in rest.items() if why is not None}

    def leave_out(self, names: Mapping[str, str]) -> None:
        """Leave some arrays out.

        Args:
            names: Reasons, by the arrays' names.
        """
        self._left_out.update(names)
        self._keys = {name: key for name, key in self._keys.items() if "/".join(name) not in names}

    @property
    def left_out(self) -> Mapping[str, str]:
        """Reasons why arrays are left out, by their names."""
        return self._left_out

    @property
    def array_keys(self) -> dict[str, Key]:
        """Keys of the arrays, by their names."""
        renamed = {NEXT: ("next", OBSERVATION), FIRST: (DONE,), LAST: (DONE,), TERMINAL: (TERMINATED,)}
        return {"/".join(name): (*renamed.get(key[0], key[:1]), *key[1:]) for name, key in self._keys.items()}

    @property
    def has_boundaries(self) -> bool:
        """Whether an array marks where episodes begin or end."""
        return self._has(*BOUNDARIES)

    # --- steps ---

    @cached_property
    def _boundaries(self) -> _Boundaries:
        first, last, terminal = (self._read_marks(role) for role in (FIRST, LAST, TERMINAL))
        last = terminal if last is None else last  # RLDS: no step begins at a terminal observation
        if last is not None:
            return _find_rlds_boundaries(first, last, terminal)
        begins = np.zeros(self.rows, bool) if first is None else first.copy()
        begins[:1] = True
        for name in self._find_arrays(EPISODE):
            ids = self._read(name, 0, self.rows).reshape(self.rows, -1)
            begins[1:] |= (ids[1:] != ids[:-1]).any(axis=1)
        stored = {key: self._read_flags(name) for name, key in self._keys.items() if key[0] in FLAGS}
        whole = {
            key[0]: self._reduce_to_rows(name, stored[key])
            for name, key in self._keys.items()
            if key in stored and len(key) == 1
        }
        flags = {**stored, **_derive_flags(whole, first, {key[0] for key in stored})}
        for values in flags.values():
            begins[1:] |= values.reshape(self.rows, -1)[:-1].any(axis=1)
        return _Boundaries(begins, np.zeros(self.rows, bool), flags)

    def _read_flags(self, name: Key) -> Flags:
        return self._read(name, 0, self.rows).astype(bool)

    def _read_marks(self, role: str) -> Flags | None:
        """Return the array with a role, bool ``[rows]``, or None if no array has the role."""
        for name in self._find_arrays(role):
            return self._reduce_to_rows(name, self._read_flags(name))
        return None

    def _reduce_to_rows(self, name: Key, values: Flags) -> Flags:
        """Return flags ``[rows, ...]`` as ``[rows]``.

        Raises:
            ValueError: The flags of a row differ.
        """
        flat = values.reshape(self.rows, -1)
        if flat.shape[1] == 0 or (flat != flat[:, :1]).any():
            raise ValueError(
                f"{self._place}: {'/'.join(name)!r} has {flat.shape[1]} values a row, which must be equal to say whether an "
                "episode ends. If they belong to several environments, store the steps of each one by itself"
            )
        return flat[:, 0]

    def _read(self, name: Key, begin: int, end: int) -> npt.NDArray[Any]:
        try:
            return self._columns[name][begin:end]
        except DamagedError as error:
            raise self._make_error(name, error) from None

    def _read_rows(self, name: Key, begin: int, end: int) -> Any:
        try:
            return convert_rows(self._columns[name][begin:end])
        except DamagedError as error:
            raise self._make_error(name, error) from None

    def _make_error(self, name: Key, error: DamagedError) -> ValueError:
        return ValueError(f"{self._place}: {'/'.join(name)!r} can't be read: {error}")

    @property
    def num_steps(self) -> int:
        """Number of steps."""
        is_rlds = self.rows and self._has(LAST, TERMINAL)
        return self.rows - int(self._boundaries.last.sum()) if is_rlds else self.rows

    def read_segments(self) -> Iterator[Segment]:
        """Yield the steps of one environment in TorchRL's form, one episode after another.

        Raises:
            ValueError: An array can't be read.
        """
        if not self.rows:
            return
        boundaries, discontinuities = self._boundaries, _Discontinuities()
        self._warn_of_rewards(boundaries.last)
        bytes_per_time_step = 2 * sum(count_row_bytes(self._columns[name]) for name in self._keys)
        is_first = True
        for begin, end in itertools.pairwise([*np.flatnonzero(boundaries.begins), self.rows]):
            has_last = bool(boundaries.last[end - 1])
            stop = end - has_last
            for at, until in split_time(begin, stop, bytes_per_time_step):
                steps = self._read_steps(at, until, knows_last=until < stop or has_last, is_whole=until == self.rows)
                for name, key in self._keys.items():
                    if key[0] == NEXT:
                        discontinuities.compare(name, (OBSERVATION, *key[1:]), steps, at, goes_on=at != begin)
                yield Segment(steps, np.array([at == begin]), [self._seed if is_first else None])
                is_first = False
        discontinuities.warn(self._place, self.rows)

    def _warn_of_rewards(self, last: Flags) -> None:
        """Warn of rewards in rows that RLDS gives no step."""
        for name in self._find_arrays(REWARD) if last.any() else ():
            rewards = np.nan_to_num(self._read(name, 0, self.rows)[last])
            count = int(rewards.reshape(len(rewards), -1).any(axis=1).sum())
            if count:
                warn(
                    f"{self._place}: {'/'.join(name)!r} is not 0 in {count:,} of {len(rewards):,} rows with is_last, and is "
                    "left out there: in RLDS, these rows have neither a step nor a reward. If each row has a step of its "
                    "own, pass --key done=is_last. If each reward is stored with the observation after the step (as Dreamer "
                    "does), move the rewards up by one row first"
                )

    def _read_steps(self, at: int, until: int, *, knows_last: bool, is_whole: bool) -> TensorDict:
        """Read consecutive steps of one episode.

        Args:
            at: Row of the first step.
            until: Row after the last step.
            knows_last: Row ``until`` holds the observation after the last step.
            is_whole: The last row of the file is included, so that longer arrays have one more row after it.
        """
        size = [until - at]
        root, following = TensorDict(batch_size=size), TensorDict(batch_size=size)
        has_next = {key[1:] for key in self._keys.values() if key[0] == NEXT}
        is_rlds = self._has(LAST, TERMINAL)
        for name, key in self._keys.items():
            if key[0] in BOUNDARIES:
                continue
            is_longer = self._columns[name].shape[0] > self.rows
            if key[0] == REWARD:
                following.set(key, _add_dimension(self._read_rows(name, at, until)))
            elif key[0] == NEXT:
                following.set((OBSERVATION, *key[1:]), self._read_rows(name, at, until))
            elif key[0] == OBSERVATION or is_longer or (is_rlds and key[0] != ACTION):
                has_more = knows_last or (is_longer and is_whole)
                rows = self._read_rows(name, at, until + has_more)
                root.set(key, rows[: until - at])
                if key[0] != OBSERVATION or key[1:] not in has_next:
                    following.set(
                        key, rows[1:] if has_more else concatenate_rows(rows[1:], make_unknown_rows(rows[-1:]))
                    )
            else:
                root.set(key, self._read_rows(name, at, until))
        for key, values in self._boundaries.flags.items():
            following.set(key, _add_dimension(torch.from_numpy(values[at:until])))
            before = torch.from_numpy(values[at:until]).roll(1, 0)
            before[0] = False
            root.set(key, _add_dimension(before))
        return root.set("next", following)


class _Discontinuities:
    """Steps whose next observation differs from the observation of the next row, although no episode ends there."""

    def __init__(self) -> None:
        self._rows: dict[Key, list[npt.NDArray[np.int64]]] = {}
        self._furthest = 0.0
        self._last: dict[Key, torch.Tensor] = {}

    def compare(self, name: Key, key: Key, steps: TensorDict, at: int, *, goes_on: bool) -> None:
        """Compare the next observations of consecutive steps of one episode with the observations of the next rows.

        Args:
            name: Name of the array of next observations.
            key: Key of the observation.
            steps: Steps, ``[time]``.
            at: Row of the first step.
            goes_on: The steps continue the episode of those compared before.
        """
        led_to, follows = steps.get(("next", *key)), steps.get(key, None)
        if not is_plain(led_to) or not is_plain(follows) or led_to.shape != follows.shape:
            return
        if goes_on:
            before, now, begin = torch.cat([self._last[key], led_to[:-1]]), follows, at - 1
        else:
            before, now, begin = led_to[:-1], follows[1:], at
        self._last[key] = led_to[-1:].clone()
        differs = where_they_differ(before, now, before.shape[:1], before.shape[:1])
        if differs.any():
            self._rows.setdefault(name, []).append(begin + np.flatnonzero(differs))
            apart = (before[differs].double() - now[differs].double()).abs().nan_to_num(0.0)
            self._furthest = max(self._furthest, float(apart.max()))

    def warn(self, place: str, rows: int) -> None:
        """Warn if there are any.

        Args:
            place: File, for the message.
            rows: Number of steps compared.
        """
        if self._rows:
            at = np.unique(np.concatenate([each for found in self._rows.values() for each in found]))
            names = " or ".join(repr("/".join(name)) for name in self._rows)
            warn(
                f"{place}: in {len(at):,} of {rows:,} rows {names} is not the observation of the next row, though no "
                f"episode is marked to end there: a new episode begins after each. The first is row {at[0]:,}; the largest "
                f"difference is {self._furthest:.3g}. If rounding causes it, leave {names} out of the file"
            )


class _Boundaries(NamedTuple):
    """Boundaries of episodes.

    Attributes:
        begins: Mask of the rows at which an episode begins, ``[rows]``.
        last: Mask of the rows that hold an episode's last observation and no step, ``[rows]``.
        flags: Flags of the step of each row, ``[rows, ...]``, by their keys.
    """

    begins: Flags
    last: Flags
    flags: dict[Key, Flags]


def _find_rlds_boundaries(first: Flags | None, last: Flags, terminal: Flags | None) -> _Boundaries:
    """Return the boundaries of episodes in RLDS form.

    In RLDS a row has an observation, the action taken there, and the reward of that action. The row with ``is_last`` has an
    observation alone. With ``is_terminal`` the episode terminated there; otherwise it was truncated.

    Args:
        first: Mask ``is_first``, ``[rows]``.
        last: Mask ``is_last``, ``[rows]``.
        terminal: Mask ``is_terminal``, ``[rows]``.
    """
    begins = np.zeros(len(last), bool) if first is None else first.copy()
    begins[:1] = True
    begins[1:] |= last[:-1]
    leads_to_last = np.append(last[1:] & ~begins[1:], False)
    flags: dict[Key, Flags] = {(DONE,): leads_to_last}
    if terminal is not None:
        leads_to_terminal = np.append(terminal[1:], False)
        flags[(TERMINATED,)] = leads_to_last & leads_to_terminal
        flags[(TRUNCATED,)] = leads_to_last & ~leads_to_terminal
    return _Boundaries(begins, last, flags)


def _derive_flags(stored: Mapping[str, Flags], first: Flags | None, names: set[str]) -> dict[Key, Flags]:
    """Return the flags that follow from those stored.

    Args:
        stored: Flags of the environment, ``[rows]``, by their names.
        first: Mask of the rows that begin an episode. The row before one ends an episode.
        names: Names of all stored flags, including those of agents.
    """
    ended = np.logical_or.reduce(list(stored.values())) if stored else None
    can_end_otherwise = DONE in stored
    if first is not None and DONE not in stored and not {TERMINATED, TRUNCATED} <= set(stored):
        before = np.append(first[1:], False)
        ended = before if ended is None else ended | before
        can_end_otherwise = True
    if ended is None:
        return {}
    derived = {DONE: ended}
    if can_end_otherwise and TERMINATED in stored:
        derived[TRUNCATED] = ended & ~stored[TERMINATED]
    elif can_end_otherwise and TRUNCATED in stored:
        derived[TERMINATED] = ended & ~stored[TRUNCATED]
    return {(name,): values for name, values in derived.items() if name not in names}


def _add_dimension(values: Any) -> Any:
    """Return rewards or flags ``[time]`` as ``[time, 1]``, TorchRL's shape. Other shapes stay."""
    return values.unsqueeze(-1) if values.ndim == 1 else values


def open_arrays(
    description: str, source: Path, read: Callable[[], Generator[Trajectory]], *, are_episodes: bool
) -> StoredTrajectories:
    """Return the trajectories of a file of named arrays, one after another.

    Arrays that aren't essential are read twice: damage must be known before recording begins, as a key can't be left out
    of an episode later.

    Args:
        description: Path and format, for messages.
        source: File.
        read: Function that opens the file and yields its trajectories.
        are_episodes: Each trajectory begins and ends at the boundaries of an episode.

    Raises:
        ValueError: The trajectories can't be read, or hold no steps.
    """
    lengths: list[int] = []
    damaged: list[dict[str, str]] = []
    array_keys: dict[str, Key] = {}
    warned: set[str] = set()
    has_boundaries = are_episodes
    with contextlib.closing(read()) as trajectories:
        for trajectory in trajectories:
            damaged.append(trajectory.find_damage())
            trajectory.leave_out(damaged[-1])
            lengths.append(trajectory.num_steps)
            array_keys |= trajectory.array_keys
            has_boundaries |= trajectory.has_boundaries
            warn_of_left_out(source, trajectory.left_out, warned)
    if not any(lengths):
        raise ValueError(f"{source} holds no steps")
    if not all(lengths):
        warn(f"{source}: left out {lengths.count(0):,} of {len(lengths):,} episodes, which have no steps")

    def read_segments() -> Iterator[Segment]:
        with contextlib.closing(read()) as trajectories:
            for trajectory, names in zip(trajectories, damaged, strict=True):
                trajectory.leave_out(names)
                yield from trajectory.read_segments()

    files_without_ends = () if has_boundaries else (source,)
    return StoredTrajectories(
        description, sum(lengths), read_segments, array_keys=array_keys, files_without_ends=files_without_ends
    )


def warn_of_left_out(source: object, left_out: Mapping[str, str], warned: set[str]) -> None:
    """Warn of arrays that are left out, once for each name.

    Args:
        source: File or data set.
        left_out: Reasons, by the arrays' names.
        warned: Names that a warning has named; extended by this function.
    """
    new = {name: why for name, why in left_out.items() if name not in warned}
    warned.update(new)
    if new:
        warn(f"{source}: left out {', '.join(f'{name} ({why})' for name, why in new.items())}")
