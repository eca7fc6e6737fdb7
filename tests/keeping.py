"""Random policies of which episodes to keep, and a reference on plain lists."""

from __future__ import annotations

import math

from hypothesis import strategies as st

from torchrl_rerun import KeepBest, KeepIf, KeepLast, KeepWorst


def is_odd(episode):
    return episode.episode % 2 == 1


leaves = st.builds(
    lambda kind, n, per_env, where: kind(n, per_env=per_env, where=where),
    st.sampled_from([KeepLast, KeepBest, KeepWorst]),
    st.integers(1, 4),
    st.booleans(),
    st.sampled_from([None, is_odd]),
) | st.just(KeepIf(lambda episode: episode.episode_return > 0))


policies = st.recursive(
    leaves, lambda inner: st.builds(lambda a, b, both: a & b if both else a | b, inner, inner, st.booleans())
)


def of_lists(policy, episodes):
    """Return the episodes that a policy keeps, by plain lists over all episodes."""
    if isinstance(policy, KeepIf):
        return {e.id for e in episodes if policy.predicate(e)}
    if hasattr(policy, "how"):
        first, second = of_lists(policy.first, episodes), of_lists(policy.second, episodes)
        return first | second if policy.how == "|" else first & second
    if policy.where is not None:
        episodes = [e for e in episodes if policy.where(e)]
    kept = set()
    for env in {e.env for e in episodes} if policy.per_env else {None}:
        some = [e for e in episodes if env in (None, e.env)]
        if isinstance(policy, KeepLast):
            kept |= {e.id for e in some[-policy.n :]}
            continue
        if isinstance(policy, KeepBest):
            some = sorted((e for e in some if not math.isnan(e.episode_return)), key=lambda e: -e.episode_return)
        else:
            some = sorted(some, key=lambda e: -math.inf if math.isnan(e.episode_return) else e.episode_return)
        some.sort(key=lambda e: e.interrupted)  # episodes that ended come first
        kept |= {e.id for e in some[: policy.n]}  # sorted() is stable: of equal episodes the earlier one comes first
    return kept
