"""The end of an episode: the outermost flags decide. Without a flag at the root all agents must be done."""

from __future__ import annotations

import numpy as np
import pytest

from torchrl_rerun.kinds.endings import Endings, deciding

UP, DOWN = [True], [False]


def ends(count=1, **flags):
    """Return the ends by environment: ``"terminated"``, ``"truncated"``, both, or nothing. ``__`` separates groups."""
    given = {tuple(name.split("__")): np.array(values) for name, values in flags.items()}
    found = Endings(given).ended(given.get, count)
    if found is None:
        return [""] * count
    names = zip(found.terminated, found.truncated, strict=True)
    return [" ".join(name for name, up in zip(("terminated", "truncated"), each, strict=True) if up) for each in names]


@pytest.mark.parametrize(
    ("keys", "wanted"),
    [
        ([("done",), ("terminated",)], [("done",), ("terminated",)]),
        ([("done",), ("agents", "done")], [("done",)]),
        ([("truncated",), ("agents", "done")], [("truncated",)]),
        ([("red", "done"), ("blue", "done")], [("red", "done"), ("blue", "done")]),
        ([("red", "done"), ("red", "fox", "done")], [("red", "done")]),
        ([("reward",), ("observation", "age")], []),
        ([("done",), ("done",)], [("done",)]),
    ],
)
def test_the_outermost_flags_decide(keys, wanted):
    assert deciding(keys) == tuple(wanted)


@pytest.mark.parametrize(
    ("flags", "how"),
    [
        ({"done": [DOWN], "terminated": [DOWN]}, ""),
        ({"done": [UP]}, "terminated"),
        ({"done": [UP], "terminated": [UP], "truncated": [DOWN]}, "terminated"),
        ({"done": [UP], "terminated": [DOWN], "truncated": [UP]}, "truncated"),
        ({"done": [UP], "terminated": [UP], "truncated": [UP]}, "terminated truncated"),
        ({"done": [DOWN], "truncated": [UP]}, "truncated"),
        ({"done": [[False, True]]}, "terminated"),
        ({"done": [DOWN], "agents__done": [[UP, UP]]}, ""),
    ],
)
def test_a_flag_at_the_root_ends_the_episode(flags, how):
    assert ends(**flags) == [how]


def test_an_episode_ends_when_all_agents_of_a_group_are_done():
    assert ends(2, agents__done=[[UP, UP], [UP, DOWN]]) == ["terminated", ""]


def test_an_episode_ends_when_all_groups_are_done():
    assert ends(2, red__done=[[UP], [UP]], blue__done=[[UP], [DOWN]]) == ["terminated", ""]


def test_a_group_whose_flag_is_missing_is_not_done():
    flags = {("red", "done"): np.array([[UP]])}
    assert Endings([("red", "done"), ("blue", "done")]).ended(flags.get, 1) is None


def test_each_environment_ends_by_its_own_flags():
    assert ends(3, done=[UP, DOWN, UP], truncated=[DOWN, DOWN, UP]) == ["terminated", "", "truncated"]
