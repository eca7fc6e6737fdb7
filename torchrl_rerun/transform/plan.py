"""The plan: all that is found out of an environment at its first reset and its first step. Each step only follows it."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from tensordict import TensorDictBase

from torchrl_rerun.kinds.endings import Endings, Ends
from torchrl_rerun.kinds.keys import Key
from torchrl_rerun.kinds.streams import Stream
from torchrl_rerun.transform import tensordicts
from torchrl_rerun.transform.readers import Reader, Readers


class Acted(NamedTuple):
    """The policy's values before a step.

    Attributes:
        keys: the keys.
        values: their values; None for those that the policy didn't write.
    """

    keys: Sequence[Key]
    values: Sequence[Any]

    def select(self, keys: Sequence[Key]) -> Sequence[Any]:
        """Return the values of some keys; None for those that are not there."""
        if keys is self.keys:
            return self.values
        there = dict(zip(self.keys, self.values, strict=True))
        return [there.get(key) for key in keys]


@dataclass(frozen=True)
class Plan:
    """Which keys are read at which moment, how, and which flags end episodes.

    Attributes:
        observed: readers of the observations, which are read at resets and steps.
        stepped: readers of what else a step leads to, such as rewards and flags.
        acted: readers of what the policy wrote.
        endings: the rule by which flags end episodes.
        skipped: keys that are not recorded.
        resets_itself: whether a step that ends an episode returns the first observation of the next one.
        resets_by_group: whether groups of agents are reset apart.
        is_complete: whether a step has been seen; before, only observations are known.
    """

    observed: Readers
    stepped: Readers = dataclasses.field(default_factory=Readers)
    acted: Readers = dataclasses.field(default_factory=Readers)
    endings: Endings = dataclasses.field(default_factory=lambda: Endings(()))
    skipped: frozenset[Key] = frozenset()
    resets_itself: bool = False
    resets_by_group: bool = False
    is_complete: bool = False

    @functools.cached_property
    def following(self) -> Readers:
        """Readers of all that is known after a step, the observations first."""
        return Readers((*self.observed, *self.stepped))

    def ends(self, following: TensorDictBase) -> Ends | None:
        """Return whose episodes end with a step; None if nobody's does.

        Args:
            following: the data after the step.
        """
        return self.endings.ended(functools.partial(tensordicts.flags_of, following), following.batch_size.numel())

    def varied(self, stream: Stream) -> Plan:
        """Return the plan by which a key is recorded with values of any shape.

        Args:
            stream: how the key is recorded from now on.
        """
        return self._with(lambda readers: readers.varied(stream))

    def grown(self, envs: int) -> Plan:
        """Return the plan for more environments.

        Args:
            envs: the number of environments, in one batch dimension.
        """
        return self._with(lambda readers: Readers(Reader.of(each.stream, (envs,)) for each in readers))

    def _with(self, change: Any) -> Plan:
        return dataclasses.replace(
            self, observed=change(self.observed), stepped=change(self.stepped), acted=change(self.acted)
        )
