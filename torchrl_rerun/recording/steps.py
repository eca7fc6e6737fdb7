"""The path of a step: numbered, chosen, and copied into blocks, on the environment's thread."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from torchrl_rerun.blocks.block import Arrays, Frames, FrameValues, RolloutValues
from torchrl_rerun.blocks.buffer import Buffer
from torchrl_rerun.blocks.devices import fetched
from torchrl_rerun.blocks.events import NO_ENVS, EnvIndices, Event
from torchrl_rerun.blocks.lease import BlockLease
from torchrl_rerun.blocks.memory import Memory
from torchrl_rerun.kinds.endings import Ends
from torchrl_rerun.kinds.schema import Moment
from torchrl_rerun.kinds.timelines import COLUMNS, Positions
from torchrl_rerun.recording.coming import Coming, at_time, ends_at
from torchrl_rerun.recording.last_step import LastStep, Pending, Revise, Revision
from torchrl_rerun.recording.looks import Taken
from torchrl_rerun.recording.parts import Parts
from torchrl_rerun.recording.status import Status


class Steps:
    """Takes resets and steps of all environments, and copies the frames that are recorded into blocks.

    Args:
        parts: the parts of the recording.
        status: warns of lost frames.
        memory: where frames are copied to.

    Attributes:
        status: the state of the recording, and counts of its frames.
    """

    def __init__(self, parts: Parts, status: Status, memory: Memory) -> None:
        self.status = status
        self._memory = memory
        self._state = parts.state
        self._counters, self._selection = parts.state.counters, parts.state.selection
        self._description = parts.description
        self._episode_log = parts.episode_log
        self._buffers = parts.buffers
        self._writer = parts.writer
        self._last: LastStep | None = None
        self._failures_seen = 0  # the writer's failures when the user was last warned
        self._must_check_warnings = False
        # Held while a frame is copied. The clock's thread flushes stale blocks when no frame comes, and never waits for this
        # lock. One that its owner can take again, for Ctrl-C may come before it is released.
        self._copying = threading.RLock()

    def reset(
        self,
        observed: Arrays,
        mask: npt.NDArray[np.bool_] | None = None,
        seeds: Sequence[int | None] = (),
        *,
        begun: npt.NDArray[np.bool_] | None = None,
        looks: Sequence[Taken] = (),
    ) -> None:
        """Record a reset.

        Args:
            observed: the observations of all environments: an array ``[envs, *stream.shape]`` for each stream that was
                described for this moment, running returns excepted; None for a key that is missing.
            mask: mask of the environments that were reset, ``[envs]``. The values of the others are not looked at.
                Default: all were.
            seeds: the seed of each environment. Default: none is known.
            begun: mask of the environments whose episodes begin, ``[envs]``. In the others that were reset, only some groups of
                agents were. Default: all that were reset.
            looks: give the last observations, which are None then; called for the environments alone of which this frame is
                recorded. Default: all observations are given.
        """
        with self._copying:
            self._add(FrameValues(observed), mask, is_step=False, seeds=seeds, begun=begun, looks=looks)

    def step(
        self,
        values: FrameValues,
        mask: npt.NDArray[np.bool_] | None = None,
        ends: Ends | None = None,
        *,
        looks: Sequence[Taken] = (),
        revise: Revise | None = None,
    ) -> None:
        """Record a step.

        Args:
            values: the values of all environments, an array ``[envs, *stream.shape]`` for each stream that was described,
                running returns excepted; None for a key that is missing.
            mask: mask of the environments that were stepped, ``[envs]``. The values of the others are not looked at.
                Default: all were.
            ends: which episodes ended with it. Default: none did, or :attr:`must_know_ends` is false.
            looks: give the last observations, which are None then; called for the environments alone of which this frame is
                recorded. Default: all observations are given.
            revise: returns what has changed of the step since; called before the next frame, a dump, or a flush by age.
                Default: nothing changes any more.
        """
        with self._copying:
            self._add(values, mask, is_step=True, ends=ends, looks=looks, revise=revise)

    @property
    def takes_many(self) -> bool:
        """Whether :meth:`steps` can be called: all streams are arrays in main memory, and no trigger of the user is called.

        A trigger may call the recorder, whose blocks must have all frames by then.
        """
        return self._selection.calls_nobody and all(buffer.takes_many for buffer in self._buffers.targets)

    def steps(
        self,
        values: RolloutValues,
        begun: npt.NDArray[np.bool_],
        stepped: npt.NDArray[np.bool_] | None = None,
        ends: Ends | None = None,
        seeds: Sequence[int | None] = (),
    ) -> None:
        """Record many steps, and the resets before them, at once: the same rows as by :meth:`reset` and :meth:`step`.

        Args:
            values: the values of all environments, an array ``[envs, time, *stream.shape]`` for each stream that was
                described, running returns excepted.
            begun: the environments that are reset before each step, ``[envs, time]``.
            stepped: the environments that are stepped, ``[envs, time]``. Default: all, each time.
            ends: which episodes end with each step, ``[envs, time]``. Default: none does, or :attr:`must_know_ends` is false.
            seeds: the seed of each environment. Default: none is known.
        """
        with self._copying:
            if self._last is not None:
                self._revise(is_past=True)
            if self._buffers.must_catch_up:
                self._buffers.catch_up()
            logged = self._state.logged
            of_logged = values if logged.are_all else values.map(logged.values)
            coming = Coming.of(begun, stepped)
            while coming.left:
                coming = self._add_some(coming, values, of_logged, ends, seeds)
            if self._must_check_warnings or self._failures_seen != self._writer.failures:
                self._warn_user()

    def _add_some(
        self,
        coming: Coming,
        values: RolloutValues,
        of_logged: RolloutValues,
        ends: Ends | None,
        seeds: Sequence[int | None],
    ) -> Coming:
        """Record as many frames as there is room for in all blocks. Return the frames that are left.

        Args:
            coming: the frames.
            values: the values of all environments.
            of_logged: the values of those that are recorded in detail.
            ends: which episodes end with each step.
            seeds: the seed of each environment.
        """
        batch = self._buffers.batch
        first = self._next_event(coming, 0, ends)
        if first is None:
            return coming.after(1)
        room, targets = coming.left, []
        for buffer in self._buffers.targets:
            if self._make_room(buffer, self._of_batch(first, coming.mask(0)) if buffer is batch else first):
                targets.append(buffer)
                room = min(room, buffer.room)
        piece = _Piece(coming, [(buffer, buffer.count) for buffer in targets], [])
        try:
            for number in range(room):
                event = self._next_event(coming, number, ends) if number else first
                if event is not None:
                    piece.taken.append((event, number))
                    self._counters.apply(event)
                    self._log_episodes_at(coming, piece.taken[-1], of_logged, ends, seeds)
            self._copy(piece, values, of_logged)
        except BaseException:  # Ctrl-C, for one: blocks get the frames that were counted, and no others
            if piece.taken and not self._counters.has_seen(piece.taken[-1][0]):
                piece.taken.pop()
            elif piece.taken:
                self._log_episodes_at(coming, piece.taken[-1], of_logged, ends, seeds)
            self._copy(piece, values, of_logged)
            raise
        return coming.after(room)

    def _copy(self, piece: _Piece, values: RolloutValues, of_logged: RolloutValues) -> None:
        """Copy frames that were counted. Called again it does the same."""
        batch, coming = self._buffers.batch, piece.coming
        numbers = [number for _, number in piece.taken]
        frames = Frames([event for event, _ in piece.taken], coming.times[numbers], coming.is_step[numbers])
        for buffer, count in piece.targets:
            buffer.drop_after(count)
            if buffer is batch:
                events = [self._of_batch(event, coming.mask(number)) for event, number in piece.taken]
                buffer.add_many(frames._replace(events=events), values)
            else:
                buffer.add_many(frames, of_logged)
        self._memory.complete()

    def _log_episodes_at(
        self,
        coming: Coming,
        taken: tuple[Event, int],
        of_logged: RolloutValues,
        ends: Ends | None,
        seeds: Sequence[int | None],
    ) -> None:
        """Note a frame that was counted in the episode log, if there is one."""
        if self._episode_log is not None:
            event, at = taken[0], int(coming.times[taken[1]])
            stepped = at_time(of_logged.after.stepped, at)
            self._log_episodes(event, stepped, ends_at(ends, at, self._state.logged), seeds)

    def _next_event(self, coming: Coming, number: int, ends: Ends | None) -> Event | None:
        """Return the event of a coming frame; None if it concerns no recorded environment."""
        logged, mask, is_step = self._state.logged, coming.mask(number), bool(coming.is_step[number])
        ends = ends_at(ends, int(coming.times[number]), logged) if is_step else None
        return self._event(None if mask is None else logged.in_mask(mask), ends, is_step=is_step)

    def _make_room(self, buffer: Buffer, event: Event) -> bool:
        """Return whether there is room for a frame in a buffer, after a wait if need be."""
        positions = _nowhere if buffer is self._buffers.batch else self._counters.positions
        while (lease := buffer.make_room(event, positions)) is not None:
            if not self._free_block_for(buffer, lease):
                return False
        return True

    def revise_last_step(self) -> None:
        """Look once more at the last step: transforms behind the recorder may have changed its flags."""
        with self._copying:
            self._revise()

    def _revise(self, *, is_past: bool = False, at_once: bool = True) -> bool:
        """Amend the last step if it has changed. Return whether it can't change any more.

        Args:
            is_past: whether environments were reset since, and can't be looked at as they were. Default: False.
            at_once: whether the step is amended as it is now, even if it isn't over. Default: True.
        """
        last = self._last
        if last is None:
            return True
        found = last.revise(at_once) if self._counters.has_seen(last.event) else None
        if isinstance(found, Pending):
            return False
        if found is not None:
            amended, values, ends = self._revised(last, found, is_past=is_past)
            try:
                self._amend(last.event, amended, values, ends)
            except BaseException:  # Ctrl-C, for one: half of a frame would be in the blocks
                self._amend(last.event, amended, values, ends)
                raise
        self._last = None
        return True

    def _revised(self, last: LastStep, found: Revision, *, is_past: bool) -> tuple[Event, FrameValues, Ends | None]:
        """Return event, values and ends of the last step, as they are recorded instead."""
        event, recorded, logged = last.event, last.values, self._state.logged
        ends = None if found.ends is None else logged.ends(found.ends)
        if ends is not None and event.envs is not None:
            stepped = np.zeros(len(logged), np.bool_)
            stepped[event.envs] = True
            ends = Ends(ends.terminated & stepped, ends.truncated & stepped)
        observed = list(logged.values(found.observed) or ())
        looks = last.looks
        if looks and recorded.observed is not None:
            observed += recorded.observed[-len(looks) :]
        if ends is not None and not self._selection.takes_all and not (is_past and looks):
            after = self._selection.end(event.envs, event.envs_after, ends.either)
            if after is not event.envs_after:
                event = event._replace(envs_after=after)
                if looks:
                    observed = list(logged.with_looks(observed, after, looks))
        return event, FrameValues(observed, logged.values(found.stepped), recorded.acted), ends

    def _amend(self, event: Event, amended: Event, values: FrameValues, ends: Ends | None) -> None:
        for buffer in self._buffers.in_use:
            buffer.amend(event, amended, values)
        self._memory.amend(self._buffers.devices.send(is_late=True))
        if ends is not None and self._episode_log is not None:
            self._episode_log.correct_ends(event, ends)
        self._counters.amend(event, amended)

    @property
    def all_begun(self) -> bool:
        """Whether all environments that are recorded have been reset."""
        return self._counters.all_begun

    def never_reset(self, mask: npt.NDArray[np.bool_] | None = None) -> npt.NDArray[np.bool_] | None:
        """Return a mask of the environments that were never reset, ``[envs]``; None if all were.

        Args:
            mask: mask of the environments in question, ``[envs]``. Default: all.
        """
        fresh = self._counters.never_begun(None if mask is None else self._state.logged.in_mask(mask))
        if fresh is not None and not len(fresh):
            return None
        return self._state.logged.mask(fresh)

    def _event(
        self, envs: EnvIndices, ends: Ends | None = None, begun: EnvIndices = None, *, is_step: bool
    ) -> Event | None:
        """Return the next event; None if it concerns no recorded environment, in which case its step is counted.

        Args:
            envs: the recorded environments that are stepped or reset.
            ends: which episodes end with it; None: none does.
            begun: of a reset, the environments whose episodes begin; None: all of ``envs``.
            is_step: whether they are stepped.
        """
        picked = None
        if envs is not None and not len(envs):
            if self._buffers.batch is None:
                self._counters.count(steps=is_step)
                return None
        elif not self._selection.takes_all:
            picked = self._picked(envs, ends, begun, is_step=is_step)
        return self._counters.event(envs, time.time_ns(), is_step=is_step, picked=picked, begun=begun)

    def _add(
        self,
        values: FrameValues,
        mask: npt.NDArray[np.bool_] | None,
        *,
        is_step: bool,
        ends: Ends | None = None,
        seeds: Sequence[int | None] = (),
        begun: npt.NDArray[np.bool_] | None = None,
        looks: Sequence[Taken] = (),
        revise: Revise | None = None,
    ) -> None:
        if self._last is not None:
            self._revise(is_past=not is_step)
        logged, buffers = self._state.logged, self._buffers
        if buffers.must_catch_up:
            buffers.catch_up()
        if ends is not None:
            ends = logged.ends(ends)
        envs = None if mask is None else logged.in_mask(mask)
        event = self._event(envs, ends, None if begun is None else logged.in_mask(begun), is_step=is_step)
        if event is None:
            return
        is_kept = True
        try:
            if buffers.batch is not None:
                is_kept = self._add_to_batch(buffers.batch, self._of_batch(event, mask), values)
            if envs is None or len(envs):
                if looks or not logged.are_all:
                    values = self._logged_values(event, values, looks)
                if _lacks_a_key(values):
                    buffers.split_where_keys_are_missing(values)
                positions, may_change = self._counters.positions, revise is not None
                for buffer in buffers.in_use:
                    while (lease := buffer.add(event, values, positions, may_change=may_change)) is not None:
                        if not self._free_block_for(buffer, lease):
                            is_kept = False
                            break
            landings = buffers.devices.send()
            self._last = None if revise is None else LastStep(event, values, revise, looks)
            self._counters.apply(event)
            if self._episode_log is not None:
                self._log_episodes(event, values.stepped, ends, seeds)
            self._memory.complete(landings)
        except BaseException:  # Ctrl-C, for one: the rest of the frame would be arbitrary memory
            if self._counters.has_seen(event):
                self._log_episodes(event, values.stepped, ends, seeds)
            else:
                buffers.drop(event)
            raise
        if not is_kept or self._must_check_warnings or self._failures_seen != self._writer.failures:
            self._warn_user()

    def _logged_values(self, event: Event, values: FrameValues, looks: Sequence[Taken]) -> FrameValues:
        """Return the values of the environments that are recorded in detail, those included that they are asked for."""
        logged = self._state.logged
        if not logged.are_all:
            values = FrameValues(*map(logged.values, values))
        if looks and event.is_recorded:
            assert values.observed is not None, "frames with pictures have observations"
            observed = logged.with_looks(values.observed, event.envs_after, looks)
            values = FrameValues(observed, values.stepped, values.acted)
        return values

    def _add_to_batch(self, batch: Buffer, event: Event, values: FrameValues) -> bool:
        """Copy a frame of all environments, for statistics. Return False if nothing is written any more."""
        while (lease := batch.add(event, values, _nowhere)) is not None:
            if not self._free_block_for(batch, lease):
                return False
        return True

    def _free_block_for(self, buffer: Buffer, blocking_lease: BlockLease) -> bool:
        """Enqueue the lease that blocks a frame, or wait for its release. Return whether the frame can be added then."""
        waited = self._buffers.seconds_waited
        try:
            return self._buffers.free_block_for(buffer, blocking_lease)
        finally:
            if self._buffers.seconds_waited > waited or self._memory.error is not None:
                self._must_check_warnings = True  # the wait may be so long by now that the user is warned

    def _warn_user(self) -> None:
        self._failures_seen, self._must_check_warnings = self._writer.failures, False
        self.status.warn_user()

    def _picked(
        self, envs: EnvIndices, ends: Ends | None, begun: EnvIndices, *, is_step: bool
    ) -> tuple[EnvIndices, EnvIndices]:
        """Return the environments whose frame before, and whose frame after the next event is recorded."""
        if is_step:
            ended = None if ends is None else ends.either
            return self._selection.step(envs, self._counters.steps + 1, ended)
        return NO_ENVS, self._selection.reset(
            envs, self._counters.episode_numbers(envs if begun is None else begun) + 1, begun
        )

    def _log_episodes(
        self, event: Event, stepped: Arrays | None, ends: Ends | None, seeds: Sequence[int | None]
    ) -> None:
        """Note an event in the episode log, if each episode has a recording of its own."""
        log = self._episode_log
        if log is None or (event.envs is not None and not len(event.envs)):
            return
        if event.is_step:
            log.step(event, self._counters.episode_numbers(event.envs), self._rewards(stepped), ends)
        else:
            log.reset(event, self._counters.episode_numbers(event.envs_begun), self._state.logged.seeds(seeds))

    def _rewards(self, stepped: Arrays | None) -> npt.NDArray[Any] | None:
        """Return the first of the rewards as numbers; None if there is none."""
        at = self._description.reward
        if stepped is None or at is None or (values := stepped[at]) is None:
            return None
        stream = self._description.at(Moment.STEPPED)[at]
        return stream.numbers(fetched(values) if stream.device else values)

    def _of_batch(self, event: Event, mask: npt.NDArray[np.bool_] | None) -> Event:
        """Return an event for the statistics over all environments, which have rows at recorded frames."""
        everyone = None if mask is None or mask.all() else np.flatnonzero(mask)
        if everyone is event.envs and event.envs_after is event.envs:
            return event  # nearly always
        recorded = everyone if event.is_recorded else NO_ENVS
        return event._replace(envs=everyone, envs_before=recorded, envs_after=recorded)


class _Piece(NamedTuple):
    """Frames that are recorded at once.

    Attributes:
        coming: the frames, and those after them.
        targets: the buffers that get them, and the number of events that each block had before.
        taken: the events of the frames that were counted, and their numbers among the coming ones.
    """

    coming: Coming
    targets: Sequence[tuple[Buffer, int]]
    taken: list[tuple[Event, int]]


def _lacks_a_key(values: FrameValues) -> bool:
    """Return whether a key is missing at a moment that has values."""
    for arrays in values:
        for array in arrays or ():
            if array is None:  # `in` would compare arrays
                return True
    return False


def _nowhere() -> Positions:
    """Return no positions: statistics over all environments need none."""
    return np.empty((0, COLUMNS), np.int64)
