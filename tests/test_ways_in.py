"""Ways of recording: each gives the rows of the rollout."""

from __future__ import annotations

import collections
import copy
import functools
import itertools
import pickle
import warnings

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torchrl.collectors import Collector, MultiAsyncCollector, MultiSyncCollector
from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer
from torchrl.envs import (
    Compose,
    GymEnv,
    NoopResetEnv,
    ParallelEnv,
    RewardSum,
    SerialEnv,
    StepCounter,
    TransformedEnv,
    check_env_specs,
    step_mdp,
)
from torchrl.envs.utils import RandomPolicy

from readback import read, same
from rebuilt import steps_in
from reference import Reference, assert_same, of_rollout, per_env
from torchrl_rerun import RerunRecorder

DONE = ["done", "terminated", "truncated"]
OBSERVED = ["observation", *DONE]

cartpole = functools.partial(GymEnv, "CartPole-v1")
pendulum = functools.partial(GymEnv, "Pendulum-v1")


def recorded_cartpole(path, **options):
    return cartpole().append_transform(RerunRecorder(path, **options))


# --- rollouts ---


def test_rollouts_with_break_when_any_done_are_recorded(path):
    env = SerialEnv(3, cartpole).append_transform(RerunRecorder(path))
    rollout = env.rollout(200)
    assert rollout.shape[1] < 200
    env.close()
    of_rollout(rollout, observed=OBSERVED).compare(read(path))


def test_break_when_all_done_leaves_out_waiting_environments(path):
    env = SerialEnv(3, cartpole).append_transform(RerunRecorder(path))
    rollout = env.rollout(200, break_when_all_done=True)
    env.close()
    ends = [int(rollout["next", "done"][i].flatten().nonzero()[0]) for i in range(3)]
    assert len(set(ends)) > 1
    reference = Reference(3)
    reference.reset(per_env(rollout[:, 0], OBSERVED))
    for t in range(rollout.shape[1]):
        going = [i for i in range(3) if t <= ends[i]]
        moment = rollout[:, t]
        reference.steps(per_env(moment, ["action"], going), per_env(moment["next"], [*OBSERVED, "reward"], going))
    reference.compare(read(path))


def test_consecutive_rollouts_are_one_recording(path):
    env = SerialEnv(2, cartpole).append_transform(RerunRecorder(path))
    first = env.rollout(30, break_when_any_done=False)
    env.transform.dump()
    second = env.rollout(30, break_when_any_done=False)
    env.close()
    reference = of_rollout(first, observed=OBSERVED)
    of_rollout(second, observed=OBSERVED, reference=reference).compare(read(path))


def test_auto_reset_false_goes_on_with_the_episode(path):
    env = SerialEnv(2, pendulum).append_transform(RerunRecorder(path))
    first = env.rollout(10)
    second = env.rollout(10, auto_reset=False, tensordict=step_mdp(first[..., -1]))
    env.close()
    reference = of_rollout(first, observed=OBSERVED)
    of_rollout(second, observed=OBSERVED, reference=reference, continues=True).compare(read(path))


def test_a_reset_before_the_recorder_is_the_first_frame(path):
    env = SerialEnv(2, pendulum)
    start = env.reset()
    env = env.append_transform(RerunRecorder(path))
    rollout = env.rollout(5, auto_reset=False, tensordict=start)
    env.close()
    of_rollout(rollout, observed=OBSERVED).compare(read(path))


def test_a_reset_before_the_recorder_has_no_row_of_the_policy(path):
    env = SerialEnv(2, pendulum)
    start = env.reset()
    env = env.append_transform(RerunRecorder(path, in_keys=["observation", "action", "log_prob"]))
    rollout = env.rollout(
        5, lambda td: env.rand_action(td).set("log_prob", torch.rand(2)), auto_reset=False, tensordict=start
    )
    env.close()
    of_rollout(rollout, observed=["observation"], stepped=[], acted=["action", "log_prob"]).compare(read(path))


# --- loops ---


def test_step_and_maybe_reset_is_recorded(path):
    env = SerialEnv(2, cartpole).append_transform(RerunRecorder(path))
    following = env.reset()
    moments = []
    for _ in range(50):
        moment, following = env.step_and_maybe_reset(env.rand_action(following))
        moments.append(moment)
    env.close()
    recorded = read(path)
    reference = of_rollout(torch.stack(moments, -1), observed=OBSERVED)
    ended = moments[-1]["next", "done"].flatten().nonzero().flatten().tolist()
    if ended:
        reference.reset(per_env(following, OBSERVED, ended))
    reference.compare(recorded)


def test_steps_and_resets_by_hand_are_recorded(path):
    env = recorded_cartpole(path)
    reference = Reference(1)
    for _ in range(3):
        tensordict = env.reset()
        reference.reset(per_env(tensordict.unsqueeze(0), OBSERVED))
        done = False
        while not done:
            tensordict = env.step(env.rand_action(tensordict))
            batch = tensordict.unsqueeze(0)
            reference.steps(per_env(batch, ["action"]), per_env(batch["next"], [*OBSERVED, "reward"]))
            done = tensordict["next", "done"].item()
            tensordict = step_mdp(tensordict)
    env.close()
    reference.compare(read(path))


def test_terminal_and_first_observations_are_two_rows(path):
    env = recorded_cartpole(path)
    rollout = env.rollout(60, break_when_any_done=False)
    env.close()
    rows = read(path)["/env_0/observation"]
    end = int(rollout["next", "done"].flatten().nonzero()[0])
    assert same(rows.values[end + 1], rollout[end]["next", "observation"])
    assert same(rows.values[end + 2], rollout[end + 1]["observation"])
    assert rows.along("frame")[end + 1 : end + 3] == [end + 1, end + 2]
    assert rows.along("episode")[end + 1 : end + 3] == [0, 1]
    assert rows.along("step")[end + 1 : end + 3] == [end + 1, end + 1]


def test_sim_time_counts_frames_and_log_time_grows(path):
    env = recorded_cartpole(path, fps=20)
    env.rollout(10)
    env.close()
    rows = read(path)["/env_0/observation"]
    assert rows.along("sim_time") == [frame * 50_000_000 for frame in rows.along("frame")]
    assert sorted(rows.along("log_time")) == rows.along("log_time")
    assert read(path).schema["fps"] == 20


# --- without appending ---


@pytest.mark.parametrize("mode", ["any", "all"])
def test_the_callback_of_a_stopping_rollout_records_from_the_second_observation(path, mode):
    recorder = RerunRecorder(path)
    env = SerialEnv(2, cartpole)
    rollout = env.rollout(100, callback=recorder.callback, **({"break_when_all_done": True} if mode == "all" else {}))
    recorder.close()
    recorded = read(path)
    rows = recorded["/env_0/observation"]
    # TorchRL does not pass the first observation; all later frames are there, the last step included.
    alive = (
        int(rollout["next", "done"][0].flatten().long().cumsum(0).eq(0).sum()) + 1
        if mode == "all"
        else rollout.shape[1]
    )
    alive = min(alive, rollout.shape[1])
    wanted = [*rollout[0, 1:alive]["observation"].unbind(0), rollout[0, alive - 1]["next", "observation"]]
    assert len(rows.values) == len(wanted)
    assert all(same(a, b) for a, b in zip(rows.values, wanted, strict=True))
    rewards = recorded["/env_0/reward"]
    assert [v.item() for v in rewards.values] == rollout[0, 1:alive]["next", "reward"].flatten().tolist()


def test_the_callback_of_a_long_rollout_records_all_but_the_last_transition(path):
    recorder = RerunRecorder(path)
    rollout = SerialEnv(2, cartpole).rollout(60, break_when_any_done=False, callback=recorder.callback)
    recorder.close()
    of_rollout(rollout[:, :-1], observed=OBSERVED).compare(read(path))  # TorchRL never passes the last transition


def test_the_callback_of_an_appended_recorder_records_no_frame_twice(path):
    recorder = RerunRecorder(path)
    env = SerialEnv(2, cartpole).append_transform(recorder)
    rollout = env.rollout(60, break_when_any_done=False, callback=recorder.callback)
    env.close()
    of_rollout(rollout, observed=OBSERVED).compare(read(path))


def test_log_rollout_records_a_rollout(path):
    rollout = SerialEnv(3, cartpole).rollout(60, break_when_any_done=False)
    recorder = RerunRecorder(path)
    recorder.log_rollout(rollout)
    recorder.close()
    of_rollout(rollout, observed=OBSERVED).compare(read(path))


@pytest.mark.parametrize("is_postproc", [False, True])
def test_episodes_go_on_over_the_batches_of_a_collector(path, is_postproc):
    recorder = RerunRecorder(path, in_keys=[*OBSERVED, "action", "reward"])
    warnings.simplefilter("error", RuntimeWarning)  # of several workers: there is one
    collector = Collector(
        SerialEnv(2, cartpole),
        RandomPolicy(cartpole().action_spec),
        frames_per_batch=40,
        total_frames=160,
        postproc=recorder if is_postproc else None,
    )
    reference, last = None, None
    for batch in collector:
        if not is_postproc:
            recorder.log_rollout(batch)
        going_on = last is not None
        if going_on:
            ended = last["next", "done"].flatten().nonzero().flatten().tolist()
            if ended:
                reference.reset(per_env(batch[:, 0], OBSERVED, ended))
        reference = of_rollout(batch, observed=OBSERVED, reference=reference, continues=going_on)
        last = batch[:, -1]
    recorder.close()
    collector.shutdown()
    reference.compare(read(path))


def batches_of_two_workers(make_env, split_trajs):
    """Yield the batches of two collectors in turns, as a ``MultiAsyncCollector`` does."""
    options = {"frames_per_batch": 10, "total_frames": 60, "split_trajs": split_trajs}
    collectors = [Collector(make_env(), RandomPolicy(make_env().action_spec), **options) for _ in range(2)]
    for pair in zip(*collectors, strict=True):
        for worker, batch in enumerate(pair):
            batch["collector", "traj_ids"] += 1000 * worker
            yield batch
    for collector in collectors:
        collector.shutdown()


def test_batches_of_several_workers_are_warned_of(path):
    recorder = RerunRecorder(path)
    with pytest.warns(RuntimeWarning, match=r"the data comes from several workers: .* split_trajs=True"):
        collections.deque(map(recorder.log_rollout, batches_of_two_workers(pendulum, split_trajs=False)), maxlen=0)
    recorder.close()


def test_split_trajectories_of_several_workers_are_recorded_whole(path, recwarn):
    recorder = RerunRecorder(path)
    lengths = collections.Counter()
    for batch in batches_of_two_workers(cartpole, split_trajs=True):
        recorder.log_rollout(batch)
        lengths.update(batch["collector", "traj_ids"][batch["collector", "mask"]].tolist())
    recorder.close()
    assert sorted(len(steps) for steps in steps_in(path).values()) == sorted(lengths.values())
    assert not [each for each in recwarn if "several workers" in str(each.message)]


def test_workers_whose_batches_are_joined_in_time_are_warned_of(path):
    first, second = itertools.islice(batches_of_two_workers(pendulum, split_trajs=False), 2)
    recorder = RerunRecorder(path)
    with pytest.warns(RuntimeWarning, match="the data comes from several workers"):
        recorder.log_rollout(torch.cat([first, second]))
    recorder.close()


def test_log_rollout_of_unrelated_data_begins_episodes(path):
    env = cartpole()
    first, second = env.rollout(5), env.rollout(5)
    recorder = RerunRecorder(path)
    recorder.log_rollout(torch.cat([first, second]))
    recorder.close()
    rows = read(path)["/env_0/observation"]
    assert rows.along("episode") == [0] * 6 + [1] * 6


@pytest.mark.parametrize("appended", [True, False])
def test_a_recording_without_rewards_has_no_return(path, appended):
    recorder = RerunRecorder(path, in_keys=["observation"])
    env = SerialEnv(2, cartpole)
    if appended:
        env.append_transform(recorder).rollout(5)
    else:
        recorder.log_rollout(env.rollout(5))
    recorder.close()
    assert read(path).keys() == {("observation",)}


def test_log_rollout_refuses_other_data(path):
    with pytest.raises(KeyError, match="'next' is missing"):
        RerunRecorder(path).log_rollout(TensorDict(observation=torch.zeros(3, 2), batch_size=[3]))


def test_samples_of_a_replay_buffer_are_recorded(path):
    rollout = SerialEnv(2, pendulum).rollout(20)
    recorder = RerunRecorder(path)
    buffer = TensorDictReplayBuffer(storage=LazyTensorStorage(4), batch_size=2, transform=recorder)
    buffer.extend(rollout)
    sample = buffer.sample()
    assert sample.shape == (2, 20)
    recorder.close()
    recorded = read(path)
    assert [v.tolist() for v in recorded["/env_1/reward"].values] == sample[1]["next", "reward"].tolist()
    assert len(recorded["/env_1/observation"].values) == 21


# --- collectors ---


def test_frames_of_a_collector_are_recorded(path):
    env = SerialEnv(2, cartpole).append_transform(RerunRecorder(path))
    collector = Collector(env, RandomPolicy(env.action_spec), frames_per_batch=40, total_frames=200)
    reference, last = None, None
    for batch in collector:
        if last is not None:
            ended = last["next", "done"].flatten().nonzero().flatten().tolist()
            if ended:
                reference.reset(per_env(batch[:, 0], OBSERVED, ended))
        reference = of_rollout(batch, observed=OBSERVED, reference=reference, continues=last is not None)
        last = batch[:, -1]
    env.transform.dump()
    env.close(raise_if_closed=False)
    collector.shutdown()
    recorded = read(path)
    ended = last["next", "done"].flatten().nonzero().flatten().tolist()
    if ended:  # the collector reset these environments, and closed before a step
        for env_index in ended:
            for path_ in recorded.entities:
                if path_.startswith(f"/env_{env_index}/") and recorded[path_].times[-1]["episode_step"] == 0:
                    recorded[path_].times.pop()
                    recorded[path_].values.pop()
    reference.compare(recorded)


def make_recorded(path):
    return cartpole().append_transform(RerunRecorder(path))


@pytest.mark.parametrize("collector_class", [MultiSyncCollector, MultiAsyncCollector])
def test_frames_of_multi_process_collectors_are_recorded(path, collector_class):
    make = functools.partial(make_recorded, path)
    collector = collector_class(
        [make, make], RandomPolicy(cartpole().action_spec), frames_per_batch=40, total_frames=120
    )
    batches = [batch.exclude("collector").clone() for batch in collector]
    collector.shutdown()
    files = sorted(path.parent.glob("*.rrd"))
    assert [file.name for file in files] == ["run.worker_0.rrd", "run.worker_1.rrd"]
    recordings = [read(file) for file in files]
    assert len({recorded.recording_id for recorded in recordings}) == 1
    assert [recorded.schema["envs"] for recorded in recordings] == [[0], [1]]
    episodes = steps_in(path)
    left = [torch.cat([steps for (of_env, _), steps in episodes.items() if of_env == env]) for env in range(2)]
    assert sum(batch.numel() for batch in batches) == 120
    for piece in [piece for batch in batches for piece in batch.split(20, -1)]:
        for delivered in piece.reshape(-1, 20):  # frames of one worker, which may have collected more than it delivered
            first = delivered["observation"][0].tolist()
            [env] = [env for env in range(2) if left[env]["observation"][:1].tolist() == [first]]
            assert_same(left[env][:20], delivered)
            left[env] = left[env][20:]


def test_an_evaluator_dumps(path):
    from torchrl.collectors import Evaluator

    env = cartpole().append_transform(RerunRecorder(path))
    evaluator = Evaluator(env, RandomPolicy(env.action_spec), num_trajectories=2, max_steps=50)
    evaluator.evaluate(step=10)
    while_open = read(path)
    evaluator.shutdown()
    assert len(while_open["/env_0/reward"].values) > 5


# --- many processes ---


@pytest.mark.parametrize("envs", [ParallelEnv, SerialEnv])
def test_recorders_in_each_environment_of_a_batch_have_their_own_files(path, envs):
    make = functools.partial(make_recorded, path)
    with pytest.warns(UserWarning, match="inside the environments of a batch"):
        env = envs(2, make)
    rollout = env.rollout(30, break_when_any_done=False)
    env.close()
    files = sorted(path.parent.glob("*.rrd"))
    assert [file.name for file in files] == ["run.worker_0.rrd", "run.worker_1.rrd"]
    ids = set()
    for i, file in enumerate(files):
        recorded = read(file)
        ids.add(recorded.recording_id)
        assert recorded.schema["envs"] == [i]
        of_rollout(rollout[i : i + 1], observed=OBSERVED).compare(recorded, first_env=i)
    assert len(ids) == 1


def test_a_copy_of_a_recorder_has_its_own_file(path):
    recorder = RerunRecorder(path)
    env = cartpole().append_transform(recorder)
    for copied in (copy.deepcopy(recorder), pickle.loads(pickle.dumps(recorder))):
        other = cartpole().append_transform(copied)
        other.rollout(3)
        other.close()
    assert not path.exists()
    env.rollout(4)
    env.close()
    assert len(read(path)["/env_0/reward"].values) == 4
    assert sorted(p.name for p in path.parent.iterdir()) == ["run.rrd", "run.worker_0.rrd", "run.worker_1.rrd"]


def test_different_environments_in_parallel_are_recorded(path):
    makers = [functools.partial(GymEnv, "Pendulum-v1"), functools.partial(GymEnv, "Pendulum-v1", frame_skip=2)]
    env = ParallelEnv(2, makers).append_transform(RerunRecorder(path))
    rollout = env.rollout(5)
    env.close()
    of_rollout(rollout, observed=OBSERVED).compare(read(path))


# --- in the chain of transforms ---


def test_dump_of_a_compose_reaches_the_recorder(path):
    env = TransformedEnv(cartpole(), Compose(StepCounter(), RewardSum(), RerunRecorder(path)))
    env.rollout(5)
    env.transform.dump(step=3)
    env.transform.dump(suffix="evaluation")
    env.transform[-1].dump()
    assert len(read(path)["/env_0/step_count"].values) == 6
    env.close()
    assert ("episode_reward",) in read(path).keys()


def test_parents_of_later_transforms_open_no_file(path):
    env = cartpole().append_transform(RerunRecorder(path)).append_transform(NoopResetEnv(3, random=False))
    env.append_transform(StepCounter())
    with pytest.warns(UserWarning, match="can't be seen"):
        rollout = env.rollout(5)
    env.close()
    rows = read(path)["/env_0/reward"]
    assert len(rows.values) >= rollout.shape[0]
    assert sorted(p.name for p in path.parent.iterdir()) == ["run.rrd"]


def test_transforms_moved_to_another_environment_go_on_recording(path):
    env = cartpole().append_transform(RerunRecorder(path))
    env = TransformedEnv(env, RewardSum(), auto_unwrap=True)
    with pytest.warns(UserWarning, match="'episode_reward' can't be seen"):
        rollout = env.rollout(6)
    env.close()
    of_rollout(rollout.unsqueeze(0), observed=OBSERVED).compare(read(path))


def test_two_environments_on_one_path_are_refused(path):
    first = cartpole().append_transform(RerunRecorder(path))
    second = cartpole().append_transform(RerunRecorder(path))
    first.rollout(3)
    with pytest.raises(FileExistsError, match="being written by another recorder"):
        second.rollout(3)
    first.close()


def test_check_env_specs_records_no_frame(path):
    env = SerialEnv(2, cartpole).append_transform(RerunRecorder(path))
    check_env_specs(env)
    assert not path.exists()
    rollout = env.rollout(20)
    check_env_specs(env)
    env.close()
    of_rollout(rollout, observed=OBSERVED).compare(read(path))


def test_a_closed_recorder_that_is_used_again_goes_on_in_another_file(path):
    env = SerialEnv(2, cartpole).append_transform(RerunRecorder(path))
    first = env.rollout(5)
    env.transform.close()
    with pytest.warns(UserWarning, match="run.part_1.rrd"):
        second = env.rollout(5)
    env.close()
    later = read(path.with_name("run.part_1.rrd"))
    assert later.recording_id == read(path).recording_id
    reference = of_rollout(first, observed=OBSERVED)
    before = {key: len(rows) for key, rows in reference.rows.items()}
    of_rollout(second, observed=OBSERVED, reference=reference)
    reference.rows = {key: rows[before[key] :] for key, rows in reference.rows.items()}
    reference.compare(later)


def test_an_episode_goes_on_after_close_in_its_middle(path):
    env = SerialEnv(2, pendulum).append_transform(RerunRecorder(path))
    first = env.rollout(5)
    env.transform.close()
    with pytest.warns(UserWarning, match=r"run\.part_1\.rrd"):
        second = env.rollout(5, auto_reset=False, tensordict=step_mdp(first[..., -1]))
    env.close()
    rows = read(path.with_name("run.part_1.rrd"))["/env_1/observation"]
    assert all(same(a, b) for a, b in zip(rows.values, second[1]["next", "observation"], strict=True))
    assert rows.along("step") == rows.along("episode_step") == [6, 7, 8, 9, 10]


# --- no side effects ---


@pytest.mark.parametrize(
    "make", [functools.partial(SerialEnv, 3, cartpole), functools.partial(ParallelEnv, 2, pendulum)]
)
def test_a_seeded_run_is_equal_with_and_without_a_recorder(path, make):
    def run(with_recorder):
        torch.manual_seed(3)
        env = make()
        if with_recorder:
            env = env.append_transform(RerunRecorder(path))
        env.set_seed(3)
        rollout = env.rollout(50, break_when_any_done=False)
        random_state = torch.get_rng_state()
        specs = env.specs.clone()
        env.close()
        return rollout, random_state, specs

    plain, plain_state, plain_specs = run(False)
    recorded, recorded_state, recorded_specs = run(True)
    assert (plain == recorded).all()
    assert set(plain.keys(True, True)) == set(recorded.keys(True, True))
    assert torch.equal(plain_state, recorded_state)
    assert plain_specs == recorded_specs


def test_gradients_pass_unchanged(path):
    from torchrl.envs import PendulumEnv

    env = PendulumEnv().append_transform(RerunRecorder(path))
    weight = torch.nn.Parameter(torch.zeros(1))

    def act(tensordict):
        tensordict["action"] = (tensordict["th"] * weight).unsqueeze(-1)
        return tensordict

    rollout = env.rollout(5, act)
    rollout["next", "reward"].sum().backward()
    assert weight.grad is not None
    env.close()
    assert all(not value.requires_grad for value in read(path)["/env_0/reward"].values)


def test_a_recorder_in_a_model_passes_data_through(path):
    recorder = RerunRecorder(path)
    model = torch.nn.Sequential(recorder, TensorDictModule(torch.nn.Identity(), ["x"], ["y"]))
    out = model(TensorDict(x=torch.ones(3), batch_size=[]))
    assert (out["y"] == 1).all()
    assert not path.exists()  # not a rollout
    recorder.close()
