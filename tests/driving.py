"""Drive environments through resets and steps, with or without a recorder."""

from __future__ import annotations

import warnings

import torch
from gymnasium.utils.save_video import capped_cubic_video_schedule
from hypothesis import strategies as st

from reference import per_env
from torchrl_rerun import RerunRecorder

STEPS = 30


TRIGGERS = {
    "all episodes": {"episode_trigger": lambda _: True},
    "cubic": {"episode_trigger": capped_cubic_video_schedule},
    "every third": {"episode_trigger": lambda episode: episode % 3 == 1},
    "steps": {"step_trigger": lambda step: step in (0, 7, 8, 20)},
    "both": {"episode_trigger": lambda episode: episode == 2, "step_trigger": lambda step: step % 11 == 0},
    "never": {"episode_trigger": lambda _: False},
}


def drive(env, events, reference, *, dumped, was_reset, was_stepped):
    """Reset and step an environment by a list of events. Pass each result to a reference and to three functions."""
    envs = env.batch_size[0]
    tensordict = env.reset()
    reference.reset(per_env(tensordict, KEYS))
    was_reset(range(envs))
    for what, mask in events:
        chosen = [i for i in range(envs) if mask is None or mask[i]]
        if what == "dump" or not chosen:
            dumped()
        elif what == "reset":
            if mask is not None:
                tensordict["_reset"] = torch.tensor(mask)[:, None]
            tensordict = env.reset(tensordict)
            reference.reset(per_env(tensordict, KEYS, chosen))
            was_reset(chosen)
        else:
            tensordict = env.rand_action(tensordict)
            if mask is not None:
                tensordict["_step"] = torch.tensor(mask)
            tensordict = env.step(tensordict)
            following = tensordict["next"]
            reference.steps(per_env(tensordict, ["action"], chosen), per_env(following, [*KEYS, "reward"], chosen))
            for i in chosen:
                was_stepped(i, following["reward"][i].double().item(), ends=bool(following["done"][i]))
            tensordict = env.step_mdp(tensordict)
            tensordict.pop("_step", None)


KEYS = ["count", "image", "done", "terminated"]


@st.composite
def sequences(draw):
    envs = draw(st.integers(1, 4))
    mask = st.lists(st.booleans(), min_size=envs, max_size=envs)
    event = st.one_of(
        st.tuples(st.just("step"), st.none() | mask),
        st.tuples(st.just("step"), st.none()),
        st.tuples(st.just("reset"), st.none() | mask),
        st.tuples(st.just("dump"), st.none()),
    )
    return (
        envs,
        draw(st.lists(event, max_size=40)),
        draw(st.lists(mask, max_size=20)),
        draw(st.sampled_from([300, 3000, 1 << 20])),
    )


def record(env, path, steps=5, **options):
    """Record a rollout to its end. Return the rollout and the messages of all warnings."""
    env = env.append_transform(RerunRecorder(path, **options))
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        rollout = env.rollout(steps, break_when_any_done=False)
        env.close()
    assert rollout.shape[-1] == steps
    return rollout, [str(warning.message) for warning in warned if "Rerun" not in warning.category.__name__]


def walk(env, steps=4):
    """Reset and step without stacking a rollout: some values can't be stacked."""
    tensordict = env.reset()
    for _ in range(steps):
        tensordict = env.step_mdp(env.step(env.rand_action(tensordict)))
    env.close()
