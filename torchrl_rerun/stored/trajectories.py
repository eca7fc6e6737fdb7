"""Trajectories: named arrays over time, read piece by piece as steps of episodes."""

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
from torchrl_rerun.kinds.streams import Key, name_of
from torchrl_rerun.stored.columns import (
    Column,
    DamagedError,
    as_values,
    damage_in,
    joined,
    row_bytes,
    unknown_like,
    why_not_data,
)
from torchrl_rerun.stored.layouts import (
    ACTION,
    CENTRAL,
    CUTS,
    DONE,
    EPISODE,
    FIRST,
    FLAGS,
    LAST,
    NEXT,
    OBSERVATION,
    OBSERVED,
    REWARD,
    TERMINAL,
    TERMINATED,
    TRUNCATED,
    layout_of,
)
from torchrl_rerun.stored.pieces import Piece, Stored, spans
from torchrl_rerun.transform.continuity import is_plain, where_they_differ

Flags = npt.NDArray[np.bool_]


class Trajectory:
    """Arrays over time, of one episode or of several one after the other.

    Args:
        what: where they are, for messages.
        columns: the arrays, by what they were called.
        given: names of arrays that the user says, by their keys.
        seed: of the first episode, if it is known.

    Raises:
        ValueError: an array that is needed can't be read, or doesn't fit the others; or none is known.
    """

    def __init__(
        self, what: str, columns: Mapping[Key, Column], given: Mapping[Key, str] | None = None, seed: int | None = None
    ) -> None:
        self._what, self._columns, self._seed = what, columns, seed
        there = sorted("/".join(name) for name in columns)
        for key, said in (given or {}).items():
            if not any(each == said or each.startswith(f"{said}/") for each in there):
                raise ValueError(f"{what} has no array {said!r} to be {name_of(key)}, but {', '.join(there)}")
        layout = layout_of(columns, given or {})
        self._left_out = {"/".join(name): why for name, why in layout.left_out.items()}
        self._keys: dict[Key, Key] = {}
        for name, key in layout.keys.items():
            self._take(name, key)
        if not self._has(OBSERVATION, ACTION, REWARD):
            raise ValueError(
                f"{what} holds arrays called {', '.join(there) or 'nothing'}, none of which is known to be "
                "observations, actions or rewards: say which is, as in --key observation=NAME"
            )
        self._counting = self._counted()
        for name, key in list(self._keys.items()):
            self._check_rows(name, key)

    # --- which arrays are taken ---

    def _take(self, name: Key, key: Key) -> None:
        column, called = self._columns[name], "/".join(name)
        if column.fault is not None:
            self._leave_out(called, column.fault, is_needed=key[0] in (*CENTRAL, *CUTS))
        elif (why := why_not_data(column)) is not None:
            self._leave_out(called, why, is_needed=key in {(role,) for role in (*CENTRAL, *CUTS)})
        elif key[0] in (REWARD, *CUTS) and column.dtype.kind not in "biuf":
            raise ValueError(f"{self._what}: {called!r} holds strings, and can't be {key[0]}")
        else:
            self._keys[name] = key

    def _leave_out(self, called: str, why: str, *, is_needed: bool) -> None:
        if not is_needed:
            self._left_out[called] = why
        elif why.startswith("Python objects"):
            raise ValueError(
                f"{self._what} holds Python objects under {called!r}, and is refused: a stored rollout is data, never code"
            )
        else:
            raise ValueError(f"{self._what}: {called!r} can't be read: {why}")

    def _check_rows(self, name: Key, key: Key) -> None:
        """Leave an array out that has no row for each step, or refuse all if it is needed."""
        column, called = self._columns[name], "/".join(name)
        rows = column.shape[0] if column.shape else None
        may_be_longer = key[0] in OBSERVED and not self._has(LAST, TERMINAL)
        if rows == self.rows or (may_be_longer and rows == self.rows + 1):
            return
        is_longer = f" Only observations may have {self.rows + 1:,}." if rows == self.rows + 1 else ""
        if key[0] in (*CENTRAL, *CUTS) and len(key) == 1:
            is_of_all = " If it says how whole trajectories end, say it in the row of each one's last step."
            raise ValueError(
                f"{self._what}: {called!r} has {'no rows' if rows is None else f'{rows:,} rows'}, and "
                f"{'/'.join(self._counting)!r} {self._columns[self._counting].shape[0]:,}: there must be one for each "
                f"step.{is_longer}{is_of_all if key[0] in FLAGS and not is_longer else ''}"
            )
        self._left_out[called] = f"{column.dtype} {tuple(column.shape)}, not one row for each of {self.rows:,} steps"
        del self._keys[name]

    def _has(self, *roles: str) -> bool:
        """Tell whether an array has one of some roles."""
        return any(key[0] in roles for key in self._keys.values())

    def _named(self, role: str) -> list[Key]:
        """Return the names of the arrays of a role."""
        return [name for name, key in self._keys.items() if key[0] == role]

    def _counted(self) -> Key:
        """Return the name of the array whose rows are counted."""
        for role in (ACTION, REWARD, *CUTS, NEXT, OBSERVATION):
            for name in self._named(role):
                column = self._columns[name]
                # Rows without any byte are no more than a number in a header.
                if column.shape and (row_bytes(column) or not column.shape[0]):
                    return name
        raise ValueError(f"{self._what} holds no numbers")

    @cached_property
    def rows(self) -> int:
        """The rows of the arrays of steps."""
        count = int(self._columns[self._counting].shape[0])
        return max(0, count - 1) if self._keys[self._counting][0] == OBSERVATION else count

    def find_damage(self) -> dict[str, str]:
        """Read arrays that aren't needed to their ends, and return why some can't be read, by their names."""
        needed = (*CENTRAL, *CUTS)
        rest = {name: damage_in(self._columns[name]) for name, key in self._keys.items() if key[0] not in needed}
        return {"/".join(name): why for name, why in rest.items() if why is not None}

    def leave_out(self, names: Mapping[str, str]) -> None:
        """Don't record some arrays.

        Args:
            names: why, by their names.
        """
        self._left_out.update(names)
        self._keys = {name: key for name, key in self._keys.items() if "/".join(name) not in names}

    @property
    def left_out(self) -> Mapping[str, str]:
        """Why arrays are not recorded, by their names."""
        return self._left_out

    @property
    def taken_for(self) -> dict[str, Key]:
        """The keys that arrays become, by their names."""
        told = {NEXT: ("next", OBSERVATION), FIRST: (DONE,), LAST: (DONE,), TERMINAL: (TERMINATED,)}
        return {"/".join(name): (*told.get(key[0], key[:1]), *key[1:]) for name, key in self._keys.items()}

    @property
    def says_ends(self) -> bool:
        """Whether any array says where episodes begin or end."""
        return self._has(*CUTS)

    # --- the steps ---

    @cached_property
    def _cuts(self) -> _Cuts:
        first, last, terminal = (self._marks(role) for role in (FIRST, LAST, TERMINAL))
        last = terminal if last is None else last  # no step is taken from a terminal observation
        if last is not None:
            return _cuts_of_rlds(first, last, terminal)
        begins = np.zeros(self.rows, bool) if first is None else first.copy()
        begins[:1] = True
        for name in self._named(EPISODE):
            ids = self._read(name, 0, self.rows).reshape(self.rows, -1)
            begins[1:] |= (ids[1:] != ids[:-1]).any(axis=1)
        stored = {key: self._flags(name) for name, key in self._keys.items() if key[0] in FLAGS}
        whole = {
            key[0]: self._one_for_each(name, stored[key])
            for name, key in self._keys.items()
            if key in stored and len(key) == 1
        }
        flags = {**stored, **_implied(whole, first, {key[0] for key in stored})}
        for values in flags.values():
            begins[1:] |= values.reshape(self.rows, -1)[:-1].any(axis=1)
        return _Cuts(begins, np.zeros(self.rows, bool), flags)

    def _flags(self, name: Key) -> Flags:
        return self._read(name, 0, self.rows).astype(bool)

    def _marks(self, role: str) -> Flags | None:
        """Return the array of a role that has one truth value for each row."""
        for name in self._named(role):
            return self._one_for_each(name, self._flags(name))
        return None

    def _one_for_each(self, name: Key, values: Flags) -> Flags:
        """Return the truth value of each row.

        Raises:
            ValueError: a row has several, which differ.
        """
        flat = values.reshape(self.rows, -1)
        if flat.shape[1] == 0 or (flat != flat[:, :1]).any():
            raise ValueError(
                f"{self._what}: {'/'.join(name)!r} has {flat.shape[1]} values a row, so that it doesn't say whether an "
                "episode ends. If they are of several environments, store the steps of each one by itself"
            )
        return flat[:, 0]

    def _read(self, name: Key, begin: int, end: int) -> npt.NDArray[Any]:
        try:
            return self._columns[name][begin:end]
        except DamagedError as error:
            raise self._damaged(name, error) from None

    def _values(self, name: Key, begin: int, end: int) -> Any:
        try:
            return as_values(self._columns[name][begin:end])
        except DamagedError as error:
            raise self._damaged(name, error) from None

    def _damaged(self, name: Key, error: DamagedError) -> ValueError:
        return ValueError(f"{self._what}: {'/'.join(name)!r} can't be read: {error}")

    @property
    def steps(self) -> int:
        """The number of steps."""
        is_rlds = self.rows and self._has(LAST, TERMINAL)
        return self.rows - int(self._cuts.last.sum()) if is_rlds else self.rows

    def pieces(self) -> Iterator[Piece]:
        """Yield the steps in TorchRL's form: one environment, one episode after the other.

        Raises:
            ValueError: an array can't be read.
        """
        if not self.rows:
            return
        cuts, leaps = self._cuts, _Leaps()
        self._check_rewards(cuts.last)
        bytes_per_moment = 2 * sum(row_bytes(self._columns[name]) for name in self._keys)
        is_first = True
        for begin, end in itertools.pairwise([*np.flatnonzero(cuts.begins), self.rows]):
            has_last = bool(cuts.last[end - 1])
            stop = end - has_last
            for at, until in spans(begin, stop, bytes_per_moment):
                steps = self._steps(at, until, knows_last=until < stop or has_last, is_whole=until == self.rows)
                for name, key in self._keys.items():
                    if key[0] == NEXT:
                        leaps.see(name, (OBSERVATION, *key[1:]), steps, at, goes_on=at != begin)
                yield Piece(steps, np.array([at == begin]), [self._seed if is_first else None])
                is_first = False
        leaps.warn(self._what, self.rows)

    def _check_rewards(self, last: Flags) -> None:
        """Warn of rewards that RLDS takes to be none."""
        for name in self._named(REWARD) if last.any() else ():
            rewards = np.nan_to_num(self._read(name, 0, self.rows)[last])
            count = int(rewards.reshape(len(rewards), -1).any(axis=1).sum())
            if count:
                warn(
                    f"{self._what}: {'/'.join(name)!r} is not 0 in {count:,} of {len(rewards):,} rows with is_last, and is "
                    "left out there: RLDS has no step in these rows, and neither an action nor a reward. If each row has a "
                    "step of its own, say --key done=is_last. If a reward is stored with the observation that it came with "
                    "(as Dreamer does), move the rewards one row up before"
                )

    def _steps(self, at: int, until: int, *, knows_last: bool, is_whole: bool) -> TensorDict:
        """Read some consecutive steps of one episode.

        Args:
            at: the row of the first step.
            until: the row after that of the last step.
            knows_last: whether that row holds what the last step led to.
            is_whole: whether the last row of all is among them: what follows it has a row in longer arrays alone.
        """
        size = [until - at]
        root, following = TensorDict(batch_size=size), TensorDict(batch_size=size)
        has_next = {key[1:] for key in self._keys.values() if key[0] == NEXT}
        is_rlds = self._has(LAST, TERMINAL)
        for name, key in self._keys.items():
            if key[0] in CUTS:
                continue
            is_longer = self._columns[name].shape[0] > self.rows
            if key[0] == REWARD:
                following.set(key, _column(self._values(name, at, until)))
            elif key[0] == NEXT:
                following.set((OBSERVATION, *key[1:]), self._values(name, at, until))
            elif key[0] == OBSERVATION or is_longer or (is_rlds and key[0] != ACTION):
                has_more = knows_last or (is_longer and is_whole)
                rows = self._values(name, at, until + has_more)
                root.set(key, rows[: until - at])
                if key[0] != OBSERVATION or key[1:] not in has_next:
                    following.set(key, rows[1:] if has_more else joined(rows[1:], unknown_like(rows[-1:])))
            else:
                root.set(key, self._values(name, at, until))
        for key, values in self._cuts.flags.items():
            following.set(key, _column(torch.from_numpy(values[at:until])))
            before = torch.from_numpy(values[at:until]).roll(1, 0)
            before[0] = False
            root.set(key, _column(before))
        return root.set("next", following)


class _Leaps:
    """Steps that lead to another observation than the next row has, though nothing says that they end an episode."""

    def __init__(self) -> None:
        self._rows: dict[Key, list[npt.NDArray[np.int64]]] = {}
        self._furthest = 0.0
        self._last: dict[Key, torch.Tensor] = {}

    def see(self, name: Key, key: Key, steps: TensorDict, at: int, *, goes_on: bool) -> None:
        """Look at consecutive steps of one episode.

        Args:
            name: the array of what the steps led to.
            key: its key.
            steps: the steps, ``[time]``.
            at: the row of the first.
            goes_on: whether the episode goes on from the steps seen before.
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

    def warn(self, what: str, rows: int) -> None:
        """Say how many there are, if any.

        Args:
            what: where the steps are stored.
            rows: how many steps there are.
        """
        if self._rows:
            at = np.unique(np.concatenate([each for found in self._rows.values() for each in found]))
            names = " or ".join(repr("/".join(name)) for name in self._rows)
            warn(
                f"{what}: in {len(at):,} of {rows:,} rows {names} is not the observation of the next row, though nothing "
                f"says that an episode ends there: a new episode begins after each. The first is row {at[0]:,}; they "
                f"differ by {self._furthest:.3g} at most. If that is rounding, leave {names} out of the file"
            )


class _Cuts(NamedTuple):
    """Where episodes begin and end.

    Attributes:
        begins: the rows at which an episode begins, ``[rows]``.
        last: the rows that hold the last observation of an episode and no step, ``[rows]``.
        flags: what the step of each row led to, ``[rows, ...]``, by their keys.
    """

    begins: Flags
    last: Flags
    flags: dict[Key, Flags]


def _cuts_of_rlds(first: Flags | None, last: Flags, terminal: Flags | None) -> _Cuts:
    """Return where episodes begin and end if rows say that they are the last ones.

    RLDS: a row has an observation, the action that is taken then, and the reward that this leads to. In the row with
    ``is_last`` there is an observation alone. With ``is_terminal`` it is terminal, else the episode was truncated.
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
    return _Cuts(begins, last, flags)


def _implied(stored: Mapping[str, Flags], first: Flags | None, names: set[str]) -> dict[Key, Flags]:
    """Return the flags that follow from others.

    Args:
        stored: the flags that are stored of the environment, ``[rows]``.
        first: the rows that begin an episode, so that the one before ended one.
        names: of all flags that are stored, those of agents included.
    """
    ended = np.logical_or.reduce(list(stored.values())) if stored else None
    can_end_otherwise = DONE in stored
    if first is not None and DONE not in stored and not {TERMINATED, TRUNCATED} <= set(stored):
        before = np.append(first[1:], False)
        ended = before if ended is None else ended | before
        can_end_otherwise = True
    if ended is None:
        return {}
    implied = {DONE: ended}
    if can_end_otherwise and TERMINATED in stored:
        implied[TRUNCATED] = ended & ~stored[TERMINATED]
    elif can_end_otherwise and TRUNCATED in stored:
        implied[TERMINATED] = ended & ~stored[TRUNCATED]
    return {(name,): values for name, values in implied.items() if name not in names}


def _column(values: Any) -> Any:
    """Return rewards and flags as ``[time, 1]``, as TorchRL has them."""
    return values.unsqueeze(-1) if values.ndim == 1 else values


def stored_arrays(
    what: str, source: Path, opened: Callable[[], Generator[Trajectory]], *, are_episodes: bool
) -> Stored:
    """Return trajectories of one file, one after the other.

    Arrays that aren't needed are read twice: nothing can be left out of an episode that is being recorded already.

    Args:
        what: what they are stored as.
        source: the file.
        opened: opens the file and yields them.
        are_episodes: whether each is one episode, or more.

    Raises:
        ValueError: they can't be read, or hold no steps.
    """
    lengths: list[int] = []
    damaged: list[dict[str, str]] = []
    taken_for: dict[str, Key] = {}
    already: set[str] = set()
    says_ends = are_episodes
    with contextlib.closing(opened()) as trajectories:
        for trajectory in trajectories:
            damaged.append(trajectory.find_damage())
            trajectory.leave_out(damaged[-1])
            lengths.append(trajectory.steps)
            taken_for |= trajectory.taken_for
            says_ends |= trajectory.says_ends
            warn_of_left_out(source, trajectory.left_out, already)
    if not any(lengths):
        raise ValueError(f"{source} holds no steps")
    if not all(lengths):
        warn(f"{source}: left out {lengths.count(0):,} of {len(lengths):,} episodes, which have no steps")

    def pieces() -> Iterator[Piece]:
        with contextlib.closing(opened()) as trajectories:
            for trajectory, names in zip(trajectories, damaged, strict=True):
                trajectory.leave_out(names)
                yield from trajectory.pieces()

    without_ends = () if says_ends else (source,)
    return Stored(what, sum(lengths), pieces, arrays=taken_for, without_ends=without_ends)


def warn_of_left_out(source: object, left_out: Mapping[str, str], already: set[str]) -> None:
    """Warn of arrays that are not recorded, unless they have been named already.

    Args:
        source: where they are.
        left_out: why they are not recorded, by their names.
        already: the names of those that a warning has named.
    """
    new = {name: why for name, why in left_out.items() if name not in already}
    already.update(new)
    if new:
        warn(f"{source}: left out {', '.join(f'{name} ({why})' for name, why in new.items())}")
