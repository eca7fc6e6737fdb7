"""Padded batches are lists of trajectories. A mask that the environment observes is data."""

from __future__ import annotations

import pytest
import torch
from gymnasium.envs.toy_text.taxi import TaxiEnv
from tensordict import NonTensorData, TensorDict
from torchrl.collectors import Collector
from torchrl.collectors.utils import split_trajectories
from torchrl.data import (
    Binary,
    Categorical,
    LazyMemmapStorage,
    LazyTensorStorage,
    TensorDictReplayBuffer,
)
from torchrl.envs import ActionMask, GymWrapper, SerialEnv, TicTacToeEnv, TransformedEnv
from torchrl.envs.gym_like import default_info_dict_reader

from environments import Board, Count, Masked
from readback import hold_the_same
from rebuilt import episodes_in, rollout_in, steps_in
from torchrl_rerun import RerunRecorder, replay


def collected(lengths, frames, total=None, **arguments):
    env = SerialEnv(len(lengths), [lambda n=n: Count(n) for n in lengths])
    return list(
        Collector(env, None, frames_per_batch=frames, total_frames=total or frames, split_trajs=True, **arguments)
    )


def rewards_of(path):
    """Return the rewards of each environment's episodes, one episode after the other."""
    found = {}
    for (env, _), steps in sorted(steps_in(path).items()):
        found.setdefault(env, []).append(steps["next", "reward"].flatten().tolist())
    return found


def logged(path, batches, **arguments):
    with RerunRecorder(path, **arguments) as recorder:
        for batch in batches:
            recorder.log_rollout(batch)
    return rewards_of(path)


def test_padding_is_not_recorded(path):
    [batch] = collected([3, 7], 20)
    assert logged(path, [batch]) == {
        0: [[11.0, 12.0, 13.0]] * 3 + [[11.0]],
        1: [[11.0, 12.0, 13.0, 14.0, 15.0, 16.0, 17.0], [11.0, 12.0, 13.0]],
    }


STORAGES = {
    "memory": lambda: LazyTensorStorage(200),
    "disk": lambda: LazyMemmapStorage(200),
    "two dimensions": lambda: LazyTensorStorage(200, ndim=2),
}


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize(("lengths", "frames"), [([3, 7], 20), ([3, 7, 4, 9, 5], 40), ([9, 9], 12)])
def test_a_buffer_of_padded_batches_is_replayed(path, tmp_path, storage, lengths, frames):
    [batch] = collected(lengths, frames)
    buffer = TensorDictReplayBuffer(storage=STORAGES[storage](), batch_size=4)
    buffer.extend(batch)
    buffer.dumps(tmp_path / "buffer")
    replayed = replay(tmp_path / "buffer", path)
    found = rewards_of(path)
    assert replayed.steps == batch["collector", "mask"].sum() == frames
    assert found == logged(tmp_path / "logged.rrd", [batch])


@pytest.mark.parametrize("capacity", [6, 4])
def test_a_buffer_of_slices_is_replayed(path, tmp_path, capacity):
    """Rows are trajectories of one length, the oldest first, also after the buffer has wrapped around."""
    env = SerialEnv(2, [lambda n=n: Count(n) for n in (9, 9)])
    buffer = TensorDictReplayBuffer(storage=LazyTensorStorage(capacity), batch_size=4)
    for batch in Collector(env, None, frames_per_batch=6, total_frames=18):  # of 2 x 3 steps
        buffer.extend(batch)
    buffer.dumps(tmp_path / "buffer")
    replay(tmp_path / "buffer", path)
    rewards = [11.0, 12.0, 13.0, 14.0, 15.0, 16.0, 17.0, 18.0, 19.0][9 - 3 * capacity // 2 :]
    assert rewards_of(path) == {0: [rewards], 1: [rewards]}


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_texts_of_trajectories_stay_with_their_steps(path, steps):
    rollout = SerialEnv(2, [lambda n=n: Count(n) for n in (3, 5)]).rollout(steps, break_when_any_done=False)
    columns = [torch.stack([NonTensorData(f"{env}: {t}") for env in range(2)]) for t in range(steps)]
    rollout["note"] = torch.stack(columns, 1)  # like the texts of rollouts
    batch = split_trajectories(rollout)
    with RerunRecorder(path) as recorder:
        recorder.log_rollout(batch)
    found = {}
    for each in steps_in(path).values():
        found |= dict(zip(each.get("note").tolist(), each["next", "reward"].flatten().tolist(), strict=True))
    wanted = {f"{env}: {t}": rollout["next", "reward"][env, t].item() for env in range(2) for t in range(steps)}
    assert found == wanted


def test_trajectories_go_on_in_the_next_batch(path):
    """Trajectories keep the environment index of their id, with any number of trajectories."""
    batches = collected([3, 7, 5], 12, 120)
    assert len({len(batch) for batch in batches}) > 1, "the batches are of several sizes"
    found = [each for episodes in logged(path, batches).values() for each in episodes]
    assert sorted(map(len, found)) == sorted([3] * 13 + [1] + [7] * 5 + [5] + [5] * 8)
    assert all(each == [11.0 + t for t in range(len(each))] for each in found)
    assert len(rewards_of(path)) == 3


def padded(*trajectories):
    """Return a padded batch ``[trajectories, time]`` of ``(id, steps, whether it ends)``, which observe their id."""
    time = max(steps for _, steps, _ in trajectories)
    ids = torch.tensor([number for number, _, _ in trajectories])[:, None].expand(-1, time)
    steps = torch.tensor([[steps] for _, steps, _ in trajectories])
    ends = torch.tensor([[ends] for _, _, ends in trajectories])
    observation, at = ids[..., None].float(), torch.arange(time)
    batch = TensorDict(
        observation=observation,
        action=torch.zeros_like(observation),
        next=TensorDict(
            observation=observation,
            reward=torch.ones_like(observation),
            done=(ends & (at == steps - 1))[..., None],
        ),
        collector=TensorDict(mask=at < steps, traj_ids=ids.contiguous()),
    )
    return batch.auto_batch_size_(2)


@pytest.mark.parametrize("more", [(), ((2, 1, False),)])
def test_trajectories_go_on_after_a_close(path, more):
    """The later batch may have more trajectories."""
    recorder = RerunRecorder(path)
    recorder.log_rollout(padded((0, 2, True), (1, 2, False)))
    recorder.close()
    recorder.log_rollout(padded((1, 1, False), *more))
    recorder.close()
    found = sorted((each.env, each.episode, each.length) for each in episodes_in(path))
    assert found == [(0, 0, 2), (0, 1, 3), (1, 0, 1)][: 2 + len(more)]


def indices_of(path):
    """Return the ids and lengths of trajectories, in order, by environment index."""
    found = {}
    for (env, _), steps in sorted(steps_in(path).items()):
        ids = steps["observation"].flatten().tolist()
        assert len(set(ids)) == 1
        found.setdefault(env, []).append((int(ids[0]), len(ids)))
    return found


@pytest.mark.parametrize("split", ["run", "dump", "episode"])
@pytest.mark.parametrize(
    ("batches", "wanted"),
    [
        pytest.param(
            [[(7, 2, False), (8, 3, False)], [(8, 1, True), (7, 2, True)]],
            {0: [(7, 4)], 1: [(8, 4)]},
            id="a trajectory keeps its index, in whatever order it comes",
        ),
        pytest.param(
            [
                [(0, 2, False), (1, 3, False), (2, 1, False)],
                [(1, 1, True), (3, 2, False), (2, 2, False), (0, 1, False)],
            ],
            {0: [(0, 3)], 1: [(1, 4), (3, 2)], 2: [(2, 3)]},
            id="a new one takes the index of one that has ended",
        ),
        pytest.param(
            [
                [(0, 1, False), (1, 1, False), (2, 1, False)],
                [(2, 1, True), (1, 1, False), (0, 2, True)],
                [(3, 2, False), (4, 1, False), (5, 3, False)],
            ],
            {0: [(0, 3), (3, 2)], 1: [(1, 2)], 2: [(2, 2), (4, 1)], 3: [(5, 3)]},
            id="the lowest first, and one more index if none has ended",
        ),
        pytest.param(
            [[(0, 2, True), (1, 3, True), (2, 1, False), (3, 1, True)]],
            {0: [(0, 2), (1, 3), (2, 1)], 1: [(3, 1)]},
            id="also in one batch",
        ),
        pytest.param(
            [[(0, 2, False), (1, 1, False)], [(1, 1, True), (2, 4, False)], [(0, 1, True), (2, 1, True), (3, 2, True)]],
            {0: [(0, 3), (3, 2)], 1: [(1, 2), (2, 5)]},
            id="one that is not in a batch keeps its index",
        ),
    ],
)
def test_a_trajectory_keeps_its_index_and_a_new_one_gets_the_lowest(tmp_path, split, batches, wanted):
    """A trajectory keeps the index of its id. A new one takes the lowest index whose trajectory has ended."""
    with RerunRecorder(tmp_path / "run", split=split) as recorder:
        for batch in batches:
            recorder.log_rollout(padded(*batch))
    assert indices_of(tmp_path / "run") == wanted


def test_indices_of_collected_trajectories_equal_a_reference(path):
    """Seven environments of different lengths, and batches that cut trajectories anywhere."""
    batches = collected([3, 7, 5, 2, 9, 4, 6], 35, 420)
    by_id, lengths, wanted = {}, {}, {}
    for batch in batches:
        for row in batch:
            row = row[row["collector", "mask"]]
            number = int(row["collector", "traj_ids"][0])
            if number not in by_id:
                by_id[number] = min({*range(len(by_id) + 1)} - {*by_id.values()})
                wanted.setdefault(by_id[number], []).append(number)
            lengths[number] = lengths.get(number, 0) + len(row)
            if row["next", "done"][-1]:
                del by_id[number]
    assert len(batches) == 12
    found = {env: list(map(len, episodes)) for env, episodes in logged(path, batches).items()}
    assert found == {env: [lengths[number] for number in numbers] for env, numbers in wanted.items()}


@pytest.mark.parametrize("split", ["run", "dump", "episode"])
def test_a_batch_may_have_more_trajectories_than_the_one_before(tmp_path, split):
    batches = [collected([5], 3)[0], *collected([4, 6, 9, 5], 40)]
    batches[1]["collector", "traj_ids"] += 10
    found = logged(tmp_path / "run", batches, split=split)
    assert found[0][0] == [11.0, 12.0, 13.0]
    assert sorted(found) == [0, 1, 2, 3, 4]
    assert sum(len(each) for episodes in found.values() for each in episodes) == 43


@pytest.mark.parametrize("split", ["run", "episode"])
def test_recorded_trajectories_have_their_ends(tmp_path, split):
    [batch] = collected([3, 7], 20)
    logged(tmp_path / "run", [batch], split=split)
    ends = {(each.env, each.length, each.terminated) for each in episodes_in(tmp_path / "run")}
    assert ends == {(0, 3, True), (0, 1, False), (1, 7, True), (1, 3, False)}


def test_a_trajectory_without_an_id_ends_with_its_batch(path):
    rollout = SerialEnv(2, [lambda n=n: Count(n) for n in (3, 7)]).rollout(10, break_when_any_done=False)
    batch = split_trajectories(rollout)
    assert batch["mask"].dtype is torch.bool
    assert logged(path, [batch, batch])[0] == 2 * (
        [[11.0, 12.0, 13.0]] * 3 + [[11.0]] + [[11.0 + t for t in range(7)], [11.0, 12.0, 13.0]]
    )


def test_an_index_is_free_again_if_its_trajectory_never_goes_on(path):
    """A collector that resets at each batch leaves trajectories without an end."""
    batches = collected([9, 9], 6, 240, reset_at_each_iter=True)
    assert len(batches) == 40
    assert len(logged(path, batches)) <= 2 * 17 + 2


def test_a_replay_buffer_of_padded_batches_is_recorded(path):
    [batch] = collected([3, 7], 20)
    recorder = RerunRecorder(path)
    assert (recorder(batch) == batch).all()
    recorder.close()
    assert sorted(len(each) for episodes in rewards_of(path).values() for each in episodes) == [1, 3, 3, 3, 3, 7]


def test_a_saved_batch_is_replayed(tmp_path, path):
    [batch] = collected([3, 7], 20)
    torch.save(batch, tmp_path / "batch.pt")
    replayed = replay(tmp_path / "batch.pt", path)
    assert (replayed.steps, replayed.episodes, replayed.envs) == (20, 6, 2)
    assert sorted(len(each) for episodes in rewards_of(path).values() for each in episodes) == [1, 3, 3, 3, 3, 7]


# --- masks that the environment observes ---


@pytest.mark.parametrize("actions", [1, 9])
@pytest.mark.parametrize("envs", [1, 3])
def test_a_mask_of_the_environment_is_data(path, actions, envs):
    env = Masked(actions) if envs == 1 else SerialEnv(envs, lambda: Masked(actions))
    rollout = env.rollout(14, break_when_any_done=False)
    logged(path, [rollout])
    assert hold_the_same(rollout_in(path), rollout)


def rollout_recorded(path, make, how, steps=14):
    """Record a rollout whose actions are drawn by a mask, live or logged."""
    env, recorder = make(), RerunRecorder(path)
    if how == "live":
        env = env.append_transform(recorder)
    rollout = env.rollout(steps, env.rand_action, break_when_any_done=False)
    if how == "logged":
        recorder.log_rollout(rollout)
    elif how == "passed":
        recorder(rollout)
    elif how == "replayed":
        torch.save(rollout, path.with_suffix(".pt"))
        replay(path.with_suffix(".pt"), path)
    env.close()
    recorder.close()
    return rollout


HOW = ["live", "logged", "passed", "replayed"]


class OneFlag(Masked):
    """Observes under ``"mask"`` whether t is even: a bool with the shape of the batch."""

    def __init__(self):
        super().__init__(1)
        self.observation_spec["mask"] = Categorical(2, (), dtype=torch.bool)

    def _seen(self, data):
        return data.set("mask", torch.tensor(self.t % 2 == 0))


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("envs", [1, 3])
def test_a_mask_of_the_shape_of_the_batch_is_data_if_the_next_steps_have_one(path, envs, how):
    rollout = rollout_recorded(path, OneFlag if envs == 1 else lambda: SerialEnv(envs, OneFlag), how)
    assert rollout["mask"].shape == rollout["next", "mask"].shape == rollout.shape
    assert not rollout["mask"].all()
    assert hold_the_same(rollout_in(path), rollout)


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("single_player", [False, True])
@pytest.mark.parametrize("envs", [1, 3])
def test_the_mask_of_a_board_game_is_data(path, envs, single_player, how):
    """The mask is of the free squares among nine, in games of several lengths."""
    torch.manual_seed(3)

    def make():
        return TicTacToeEnv(single_player=single_player)

    rollout = rollout_recorded(path, make if envs == 1 else lambda: SerialEnv(envs, make), how, 25)
    assert rollout["next", "done"].sum() > 1
    assert torch.equal(rollout["mask"], (rollout["board"] == -1).flatten(-2))
    assert hold_the_same(rollout_in(path), rollout)


@pytest.mark.parametrize("how", HOW)
def test_the_mask_of_a_taxi_is_data(path, how):
    """The mask is in Gymnasium's info, and is of the effective actions among six."""

    def make():
        env = GymWrapper(TaxiEnv())
        env.set_seed(0)
        reader = default_info_dict_reader(["action_mask"], [Binary(6, (6,), dtype=torch.bool)])
        return TransformedEnv(env.set_info_dict_reader(reader), ActionMask())

    rollout = rollout_recorded(path, make, how, 20)
    assert rollout["action_mask"].any()
    assert not rollout["action_mask"].all()
    assert hold_the_same(rollout_in(path), rollout)


@pytest.mark.parametrize("how", ["appended", "callback", "buffer"])
def test_a_mask_of_the_environment_is_data_for_each_way_of_recording(path, how):
    recorder, env = RerunRecorder(path), Masked(5)
    if how == "appended":
        env.append_transform(recorder).rollout(6)
    elif how == "callback":
        env.rollout(7, break_when_any_done=False, callback=recorder.callback)
    else:
        buffer = TensorDictReplayBuffer(storage=LazyTensorStorage(6), batch_size=6, transform=recorder)
        buffer.extend(env.rollout(6))
        buffer.sample()
    recorder.close()
    masks = torch.cat([steps["mask"] for steps in steps_in(path).values()])
    assert len(masks) == 6
    assert masks.shape[1:] == (5,)


def test_a_mask_for_actions_is_data(path):
    env = SerialEnv(2, lambda: TransformedEnv(Board(), ActionMask()))
    rollout = env.rollout(5, break_when_any_done=False)
    logged(path, [rollout])
    assert hold_the_same(rollout_in(path), rollout)


def test_a_mask_of_another_dtype_is_data(path):
    rollout = Count(5).rollout(5).set("mask", torch.ones(5))
    with RerunRecorder(path) as recorder:
        recorder.log_rollout(rollout)
    assert rewards_of(path) == {0: [[11.0, 12.0, 13.0, 14.0, 15.0]]}


def test_empty_trajectories_are_left_out(path):
    [batch] = collected([3, 7], 20)
    nothing = TensorDict.stack([batch[0].clone(), batch[1]])
    nothing["collector", "mask"][0] = False
    assert logged(path, [nothing]) == {0: [[11.0, 12.0, 13.0]]}


@pytest.mark.parametrize("logged_envs", [None, "all"])
def test_a_batch_may_have_many_more_trajectories_than_the_one_before(path, logged_envs):
    lengths = [1 + n % 4 for n in range(70)]
    batches = [collected([5], 3)[0], collected(lengths, 70 * 4)[0]]
    batches[1]["collector", "traj_ids"] += 10
    with RerunRecorder(path, logged_envs=logged_envs) as recorder:
        for batch in batches:
            recorder.log_rollout(batch)
    found = rewards_of(path)
    assert sum(len(each) for episodes in found.values() for each in episodes) == 3 + 70 * 4
