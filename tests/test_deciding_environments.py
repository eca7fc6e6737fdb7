"""Environments that are recorded: by `logged_envs`, or by default."""

from __future__ import annotations

import numpy as np
import pytest

from torchrl_rerun.recording.logged_envs import check_envs, resolve_envs


@pytest.mark.parametrize(
    ("logged_envs", "envs", "wanted"),
    [
        (None, 1, [0]),
        (None, 64, list(range(64))),
        (None, 65, list(range(16))),
        ("all", 65, list(range(65))),
        (3, 4, [3]),
        (-1, 4, [3]),
        ([2, 0, 2], 4, [0, 2]),
        ([-1, 3], 4, [3]),
        ((1,), 4, [1]),
        (range(1, 3), 4, [1, 2]),
        (np.array([3, 1]), 4, [1, 3]),
        (slice(1, 3), 4, [1, 2]),
        (slice(None, None, -2), 4, [1, 3]),
        (slice(2, 100), 4, [2, 3]),
    ],
)
def test_environments_are_named_by_indices_slices_or_all(logged_envs, envs, wanted):
    assert resolve_envs(logged_envs, envs) == wanted


@pytest.mark.parametrize("logged_envs", [4, -5, [0, 4], slice(4, 9)])
def test_an_index_out_of_range_is_an_error_with_the_number_of_environments(logged_envs):
    with pytest.raises(IndexError, match="there are 4 environments, 0 to 3"):
        resolve_envs(logged_envs, 4)


def test_an_index_out_of_range_of_a_single_environment_is_an_error():
    with pytest.raises(IndexError, match="there is 1 environment, 0"):
        resolve_envs(1, 1)


@pytest.mark.parametrize(
    ("logged_envs", "error", "message"),
    [
        ("some", ValueError, "pass indices, a slice, 'all' or None"),
        ([], ValueError, "logged_envs is empty"),
        (0.5, TypeError, "pass indices, a slice, 'all' or None"),
    ],
)
def test_invalid_logged_envs_are_refused_before_an_environment_exists(logged_envs, error, message):
    with pytest.raises(error, match=message):
        check_envs(logged_envs)


@pytest.mark.parametrize("logged_envs", [None, "all", 0, -3, [5], slice(9), np.array([1])])
def test_valid_logged_envs_are_accepted(logged_envs):
    check_envs(logged_envs)
