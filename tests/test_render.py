"""render=True: pictures of recorded frames, and no others."""

from __future__ import annotations

import functools
import itertools
import warnings

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from torchrl.envs import GymEnv, GymWrapper, ParallelEnv, SerialEnv, check_env_specs
from torchrl.envs.libs.vmas import VmasEnv
from torchrl.record import PixelRenderTransform

from driving import STEPS, TRIGGERS
from environments import AutoResettingCartPole, Counter, Lengths, NativelyAutoResetting
from readback import read, read_folder
from torchrl_rerun import Image, RerunRecorder

cartpole = functools.partial(GymEnv, "CartPole-v1", render_mode="rgb_array")
Recorder = functools.partial(RerunRecorder, render=True, image_format="raw", blueprint=False)
Exact = functools.partial(RerunRecorder, render=True, image_format="png", blueprint=False)  # is read much faster


class Noting(Lengths):
    """Note the moments that are rendered."""

    def __init__(self, shift=0):
        super().__init__(shift)
        self.rendered = []

    def render(self):
        self.rendered.append((self.episode, self.t))
        return super().render()


def batch(*envs):
    return SerialEnv(len(envs), [functools.partial(GymWrapper, env) for env in envs])


def pictured(recorded, env=0):
    """Return the moments that the pictures of an environment show."""
    rows = recorded.entities.get(f"/env_{env}/pixels")
    return [] if rows is None else [(int(picture[0, 0, 0]), int(picture[0, 0, 1])) for picture in rows.values]


def observed(recorded, env=0):
    rows = recorded.entities.get(f"/env_{env}/observation")
    return [] if rows is None else [tuple(map(int, value)) for value in rows.values]


def check(recorded, *envs, indices=None):
    """Assert that each observation has its picture and times, and that only the first moment was rendered besides."""
    for i, env in zip(indices or range(len(envs)), envs, strict=True):
        assert pictured(recorded, i) == observed(recorded, i)
        if recorded.entities.get(f"/env_{i}/pixels"):
            assert recorded[f"/env_{i}/pixels"].times == recorded[f"/env_{i}/observation"].times
        looked_at = [] if (0, 0) in observed(recorded, i) or env is not envs[0] else [(0, 0)]
        assert env.rendered == looked_at + observed(recorded, i)


@pytest.mark.parametrize("options", [{}, {"skip": 4}, {"recording_length": 2}])
@pytest.mark.parametrize("triggers", TRIGGERS)
def test_a_single_environment_is_rendered_at_recorded_frames(path, triggers, options):
    env = Noting()
    recording = GymWrapper(env).append_transform(Recorder(path, **TRIGGERS[triggers], **options))
    recording.rollout(STEPS, break_when_any_done=False)
    recording.close()
    check(read(path), env)


def test_each_frame_is_rendered_by_default(path):
    env = Noting()
    recording = GymWrapper(env).append_transform(Recorder(path))
    recording.rollout(STEPS, break_when_any_done=False)
    recording.close()
    recorded = read(path)
    assert len(pictured(recorded)) == len(env.rendered) > STEPS
    check(recorded, env)
    assert recorded.entry("pixels")["moment"] == "observed"
    assert recorded.kind("pixels") == "image"


@pytest.mark.parametrize("triggers", TRIGGERS)
def test_each_environment_in_series_is_rendered_at_its_recorded_frames(path, triggers):
    envs = [Noting(shift) for shift in range(3)]
    recording = batch(*envs).append_transform(Recorder(path, skip=2, **TRIGGERS[triggers]))
    recording.rollout(STEPS, break_when_any_done=False)
    recording.close()
    check(read(path), *envs)


def test_only_logged_environments_are_rendered(path):
    envs = [Noting(shift) for shift in range(4)]
    recording = batch(*envs).append_transform(Recorder(path, logged_envs=[1, 3]))
    recording.rollout(STEPS, break_when_any_done=False)
    recording.close()
    recorded = read(path)
    check(recorded, envs[1], envs[3], indices=[1, 3])
    assert not envs[0].rendered
    assert not envs[2].rendered
    assert [int(picture[0, 0, 2]) for picture in recorded["/env_3/pixels"].values] == [3] * len(observed(recorded, 3))


def test_partial_resets_and_steps_are_rendered(path):
    envs = [Noting(shift) for shift in range(3)]
    env = batch(*envs).append_transform(Recorder(path))
    tensordict = env.reset()
    for mask in ([1, 1, 1], [0, 1, 1], [1, 0, 0], [1, 1, 0]):
        tensordict = env.rand_action(tensordict)
        tensordict["_step"] = torch.tensor(mask, dtype=torch.bool)
        tensordict = env.step_mdp(env.step(tensordict))
        tensordict.pop("_step", None)
        tensordict["_reset"] = tensordict["done"].clone()
        if tensordict["done"].any():
            tensordict = env.reset(tensordict)
        tensordict.pop("_reset", None)
    env.close()
    recorded = read(path)
    check(recorded, *envs)
    assert len({len(observed(recorded, i)) for i in range(3)}) > 1


def test_a_recorder_that_is_off_renders_nothing(path):
    env = Noting()
    recording = GymWrapper(env).append_transform(Recorder(path))
    recorder = recording.transform
    recorder.switch("off")
    recording.rollout(3)
    assert env.rendered == [(0, 0)]
    recorder.switch("on")
    recording.rollout(1)
    recorder.switch("off")
    recording.rollout(6)
    recording.close()
    recorded = read(path)
    assert pictured(recorded) == observed(recorded) == env.rendered[1:]


def test_only_triggered_episodes_are_rendered(tmp_path):
    envs = [Noting(shift) for shift in range(2)]
    recording = batch(*envs).append_transform(
        Recorder(tmp_path / "run", split="episode", episode_trigger=lambda episode: episode % 2 == 1)
    )
    recording.rollout(STEPS, break_when_any_done=False)
    recording.close()
    episodes = read_folder(tmp_path / "run")
    assert {env for env, _ in episodes} == {0, 1}
    assert {episode for _, episode in episodes} >= {1, 3, 5}
    for (_, number), recorded in episodes.items():
        moments = [(int(picture[0, 0, 0]), int(picture[0, 0, 1])) for picture in recorded["/pixels"].values]
        assert moments == [tuple(map(int, value)) for value in recorded["/observation"].values]
        assert {episode for episode, _ in moments} == {number}
    for i, env in enumerate(envs):
        assert {episode for episode, _ in env.rendered[i == 0 :]} >= {at for of, at in episodes if of == i}
        assert all(episode % 2 for episode, _ in env.rendered[i == 0 :])


@pytest.mark.parametrize(
    "make",
    [
        cartpole,
        lambda: SerialEnv(2, cartpole),
        lambda: ParallelEnv(2, cartpole),
        lambda: GymWrapper(
            SyncVectorEnv(
                [lambda: gymnasium.make("CartPole-v1", render_mode="rgb_array")] * 2,
                autoreset_mode=AutoresetMode.DISABLED,
            )
        ),
    ],
    ids=["single", "serial", "parallel", "vector"],
)
def test_pictures_equal_those_of_pixel_render_transform(path, make):
    env = make()
    env.reset()  # PixelRenderTransform needs it first
    env = env.append_transform(PixelRenderTransform(out_keys=["drawn"], preproc=np.asarray))
    env = env.append_transform(Exact(path, step_trigger=lambda step: step == 4, recording_length=22))
    env.rollout(60, break_when_any_done=False)
    env.close()
    recorded = read(path)
    pictures = {entity for entity in recorded.entities if entity.endswith("/pixels")}
    assert len(pictures) == env.batch_size.numel()
    for entity in pictures:
        ours, theirs = recorded[entity], recorded[entity.replace("pixels", "drawn")]
        assert ours.times == theirs.times
        assert len(ours.values) == 23
        assert len({picture.numpy().tobytes() for picture in ours.values}) > 5
        assert all(torch.equal(a, b) for a, b in zip(ours.values, theirs.values, strict=True))


class Counted(Lengths):
    """Draws the number of renderings into the picture: the only output of an environment in a worker."""

    def render(self):
        picture = super().render()
        picture[:, :, 2] = self.renderings
        return picture


def test_workers_that_are_not_recorded_do_not_render(path):
    make = [functools.partial(GymWrapper, Counted(shift)) for shift in range(3)]
    env = ParallelEnv(3, make).append_transform(Recorder(path, episode_trigger=lambda episode: episode == 1))
    env.rollout(STEPS, break_when_any_done=False)
    env.close()
    recorded = read(path)
    for i in range(3):
        assert pictured(recorded, i) == observed(recorded, i)
        assert [int(p[0, 0, 2]) for p in recorded[f"/env_{i}/pixels"].values] == [
            number + (i == 0) for number in range(1, len(observed(recorded, i)) + 1)
        ]


def test_environments_render_in_workers(path):
    def make(shift):
        return GymWrapper(Counted(shift)).append_transform(Recorder(path))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        env = ParallelEnv(2, [functools.partial(make, shift) for shift in range(2)])
        env.rollout(8, break_when_any_done=False)
        env.close()
    recorded = [read(file) for file in sorted(path.parent.glob("*.rrd"))]
    assert len(recorded) == 2
    for i, one in enumerate(recorded):
        assert pictured(one, i) == observed(one, i)
        assert len(observed(one, i)) > 8


def test_vectorized_gymnasium_is_rendered(path):
    env = GymEnv("CartPole-v1", num_envs=2, render_mode="rgb_array").append_transform(
        Exact(path, logged_envs=1, skip=3)
    )
    env.rollout(30, break_when_any_done=False)
    env.close()
    recorded = read(path)
    assert recorded["/env_1/pixels"].along("frame") == recorded["/env_1/observation"].along("frame")
    assert recorded["/env_1/pixels"].values[0].shape == (400, 600, 3)
    assert "/env_0/pixels" not in recorded.entities


@pytest.mark.parametrize("mode", [AutoresetMode.DISABLED, AutoresetMode.SAME_STEP])
def test_vector_environments_that_reset_themselves_are_rendered(path, mode):
    """The last picture of an episode is lost if the next episode has begun."""
    env = GymWrapper(SyncVectorEnv([Lengths, lambda: Lengths(2)], autoreset_mode=mode)).append_transform(Recorder(path))
    env.rollout(STEPS, break_when_any_done=False)
    env.close()
    recorded = read(path)
    for i in range(2):
        seen = observed(recorded, i)
        ends = [bool(done) for done in recorded[f"/env_{i}/done"].values]
        assert any(ends)
        lost = mode is AutoresetMode.SAME_STEP
        assert pictured(recorded, i) == [(0, 0) if end and lost else at for at, end in zip(seen, ends, strict=True)]


def test_an_auto_reset_environment_is_rendered(path):
    env = AutoResettingCartPole("CartPole-v1", auto_reset=True, auto_reset_replace=True, render_mode="rgb_array")
    env = env.append_transform(Exact(path))
    env.rollout(60, break_when_any_done=False)
    env.close()
    recorded = read(path)
    ends = [bool(done) for done in recorded["/env_0/done"].values]
    assert any(ends)
    assert [not picture.any() for picture in recorded["/env_0/pixels"].values] == ends


class Painted(NativelyAutoResetting):
    """Renders a picture for each environment, like a simulator on tensors."""

    def render(self):
        return (self.age[:, :, None, None] * 10 + 1).expand(2, 5, 6, 3).to(torch.uint8)


def test_a_natively_auto_resetting_environment_is_rendered(path):
    env = Painted().append_transform(Recorder(path))
    following = env.reset()
    for _ in range(12):
        _, following = env.step_and_maybe_reset(env.rand_action(following))
    env.close()
    recorded = read(path)
    for i in range(2):
        expected = [0 if value.isnan() else int(value) * 10 + 1 for value in recorded[f"/env_{i}/observation"].values]
        assert [int(picture[0, 0, 0]) for picture in recorded[f"/env_{i}/pixels"].values] == expected
        assert 0 in expected


class Faulty(Noting):
    """Renders bad pictures at some steps."""

    def __init__(self, fault):
        super().__init__()
        self.fault = fault

    def render(self):
        picture = super().render()
        return self.fault(picture) if self.t == 1 else picture


def fails(_):
    raise RuntimeError("no display")


@pytest.mark.parametrize(
    ("fault", "what"),
    [
        (fails, "RuntimeError: no display"),
        (lambda picture: picture[:3], r"it is uint8 \(3, 6, 3\), and the recording began with uint8 \(4, 6, 3\)"),
        (lambda picture: picture.astype(float), "it is float64"),
        (lambda _: None, "it gave None, not a picture"),
    ],
)
def test_a_bad_picture_is_left_out_with_one_warning(path, fault, what):
    env = GymWrapper(Faulty(fault)).append_transform(Recorder(path))
    with pytest.warns(UserWarning, match=what) as said:
        env.rollout(STEPS, break_when_any_done=False)
    assert len(said) == 1
    env.transform.dump()
    assert env.transform.stats()["frames_lost"] == 0
    env.close()
    recorded = read(path)
    assert (0, 1) in observed(recorded)
    assert pictured(recorded) == [moment for moment in observed(recorded) if moment[1] != 1]


def test_rendering_goes_on_after_close_in_the_middle_of_an_episode(path):
    env = Noting()
    recording = GymWrapper(env).append_transform(Recorder(path))
    tensordict = recording.reset()
    tensordict = recording.step_mdp(recording.step(recording.rand_action(tensordict)))
    recording.transform.close()
    with pytest.warns(UserWarning, match="was closed"):
        recording.step(recording.rand_action(tensordict))
    recording.close()
    assert pictured(read(path)) == [(0, 0), (0, 1)]
    assert pictured(read(path.with_name("run.part_1.rrd"))) == [(0, 2)]
    assert env.rendered == [(0, 0), (0, 1), (0, 2)]


def test_a_failing_picture_after_close_loses_no_other_key(path):
    env = Noting()
    recording = GymWrapper(env).append_transform(Recorder(path))
    recording.rollout(2)
    recording.transform.close()
    env.render = functools.partial(fails, None)
    with pytest.warns(UserWarning, match="no display"):
        recording.rollout(2)
    del env.render
    recording.rollout(2)
    recording.close()
    after = read(path.with_name("run.part_1.rrd"))
    assert observed(after) == [(1, 0), (1, 1), (2, 0), (2, 1), (2, 2)]
    assert pictured(after) == [(2, 0), (2, 1), (2, 2)]


def test_a_recorder_that_is_appended_late_has_no_picture_of_the_reset(path):
    env = Noting()
    base = GymWrapper(env)
    tensordict = base.rand_action(base.reset())
    recording = base.append_transform(Recorder(path))
    recording.step(tensordict)
    recording.close()
    recorded = read(path)
    assert observed(recorded) == [(0, 0), (0, 1)]
    assert pictured(recorded) == env.rendered == [(0, 1)]


def test_rendering_does_not_change_random_numbers(path):
    class Random(Lengths):
        def render(self):
            torch.rand(3)
            return super().render()

    env = GymWrapper(Random())
    states = []
    for recording in (env, env.append_transform(Recorder(path))):
        torch.manual_seed(3)
        recording.rollout(10, break_when_any_done=False)
        states.append(torch.get_rng_state())
    env.close()
    assert torch.equal(*states)


def test_checking_the_specs_renders_nothing(path):
    env = Noting()
    recording = GymWrapper(env).append_transform(Recorder(path))
    check_env_specs(recording)
    recording.close()
    assert not env.rendered


def test_vmas_is_rendered(path):
    env = VmasEnv("flocking", num_envs=3, n_agents=2, seed=0).append_transform(
        RerunRecorder(path, render=True, logged_envs=[0, 2])
    )
    try:
        env.rollout(2)
    except ValueError as error:  # without a display and EGL
        pytest.skip(str(error))
    env.close()
    recorded = read(path)
    assert {len(recorded[f"/env_{i}/pixels"].values) for i in (0, 2)} == {3}
    assert not torch.equal(recorded["/env_0/pixels"].values[0], recorded["/env_2/pixels"].values[0])


class Unrenderable(Counter):
    pass


class OnePicture(NativelyAutoResetting):
    def render(self):
        return np.zeros((8, 8, 3), np.uint8)


class Numbers(Lengths):
    def render(self):
        return np.zeros(7)


class Text(Lengths):
    def render(self):
        return "a text"


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (functools.partial(GymEnv, "CartPole-v1"), r'GymEnv\(\.\.\., render_mode="rgb_array"\): it gave None'),
        (functools.partial(GymEnv, "CartPole-v1", num_envs=2), "it gave None"),
        (lambda: SerialEnv(2, functools.partial(GymEnv, "CartPole-v1")), "it gave None"),
        (
            functools.partial(GymEnv, "CartPole-v1", render_mode="rgb_array_list"),
            "it gave a list of 1, not one picture",
        ),
        (lambda: GymWrapper(Text()), "it gave text"),
        (lambda: GymWrapper(Numbers()), r"no picture, but float64 of shape \(7,\)"),
        (OnePicture, r"it gave \(8, 8, 3\), not a picture of each of 2 environments"),
        (lambda: Unrenderable(2, itertools.repeat(False)), "AttributeError"),
        (
            functools.partial(GymEnv, "CartPole-v1", from_pixels=True, pixels_only=False),
            "the environment gives already",
        ),
        (lambda: cartpole().append_transform(PixelRenderTransform()), "the environment gives already"),
    ],
)
def test_environments_without_rendering_are_refused_at_the_first_reset(path, make, what):
    env = make().append_transform(Recorder(path))
    with pytest.raises(ValueError, match=what):
        env.reset()
    env.close()
    assert not path.exists()


def test_pixels_may_be_selected_and_have_a_kind(path):
    env = cartpole().append_transform(
        RerunRecorder(path, render=True, in_keys=["pixels", "reward"], kinds={"pixels": "tensor"})
    )
    env.rollout(2)
    env.close()
    recorded = read(path)
    assert recorded.kind("pixels") == "tensor"
    assert recorded["/env_0/pixels"].along("frame") == [0, 1, 2]
    assert "/env_0/observation" not in recorded.entities


def test_rendered_pixels_may_have_an_image_format(path):
    env = cartpole().append_transform(RerunRecorder(path, render=True, kinds={"pixels": Image("h264")}))
    env.rollout(5)
    env.close()
    assert len(read(path)["/env_0/pixels"].keyframes) == 6


def test_stored_data_cannot_be_rendered(path):
    env = cartpole()
    rollout = env.rollout(3)
    for record in (
        lambda recorder: recorder.log_rollout(rollout),
        lambda recorder: recorder(rollout),
        lambda recorder: env.rollout(3, callback=recorder.callback),
    ):
        with pytest.raises(ValueError, match="append the recorder to the environment"):
            record(Recorder(path))
    with pytest.raises(TypeError, match="render='pixels' is of type str"):
        RerunRecorder(path, render="pixels")
