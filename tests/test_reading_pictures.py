"""Pictures come back as what they were: whatever they show, and however they are stored."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict
from torchrl.data import Bounded, Composite, Unbounded
from torchrl.envs import EnvBase

from readback import same
from torchrl_rerun import Image, RerunRecorder, load

SHAPES = {
    "grey": (40, 48),
    "rgb": (40, 48, 3),
    "first": (3, 40, 48),
    "alpha": (40, 48, 4),
    "stack": (4, 40, 48),
    "colours": (40, 48, 12),
    "clip": (3, 40, 48, 3),
    "segmentation": (40, 48),
}


class Pictures(EnvBase):
    """Noise of all kinds."""

    def __init__(self, batch_size=()):
        super().__init__(batch_size=torch.Size(batch_size))
        whole = {name: Bounded(0, 255, (*batch_size, *shape), dtype=torch.uint8) for name, shape in SHAPES.items()}
        floats = {name: Unbounded((*batch_size, 40, 48, 3)) for name in ("float", "negative")}
        floats["depth"] = Unbounded((*batch_size, 40, 48))
        self.observation_spec = Composite(whole | floats, shape=batch_size)
        self.action_spec = Unbounded((*batch_size, 1))
        self.reward_spec = Unbounded((*batch_size, 1))

    def _reset(self, tensordict=None, **kwargs):
        seen = self.observation_spec.rand()
        return seen.update({"negative": seen["negative"].abs().neg(), "float": torch.rand_like(seen["float"])})

    def _step(self, tensordict):
        reward = torch.ones(*self.batch_size, 1)
        return self._reset().update(TensorDict(reward=reward, done=reward > 2, batch_size=self.batch_size))

    def _set_seed(self, seed):
        torch.manual_seed(seed or 0)


@pytest.mark.parametrize("image_format", ["raw", "png"])
def test_exact_formats(path, image_format):
    env = Pictures((2,)).append_transform(RerunRecorder(path, image_format=image_format))
    env.set_seed(0)
    rollout = env.rollout(5)
    env.close()
    back = load(path).rollout()
    for key in back.keys(True, True):
        assert same(back[key], rollout[key]), key


@pytest.mark.parametrize("image_format", ["jpeg", "h264", "av1"])
@pytest.mark.filterwarnings("ignore:.*is stored as")
def test_lossy_formats_have_the_shape_that_was_recorded(path, image_format):
    env = Pictures().append_transform(RerunRecorder(path, image_format=image_format))
    rollout = env.rollout(5)
    env.close()
    [episode] = load(path)
    back = episode.tensordict()
    for name in SHAPES:
        assert back[name].shape == rollout[name].shape, name
        assert back[name].dtype == torch.uint8
    assert same(back["negative"], rollout["negative"])
    assert same(back["depth"], rollout["depth"])


def test_the_newest_frame_of_a_stack(path):
    env = Pictures().append_transform(
        RerunRecorder(
            path, image_format="png", kinds={key: Image(stack="newest") for key in ("stack", "colours", "clip")}
        )
    )
    rollout = env.rollout(5)
    env.close()
    [episode] = load(path)
    back = episode.tensordict(["stack", "colours", "clip"])
    assert same(back["stack"], rollout["stack"][:, -1:])
    assert same(back["colours"], rollout["colours"][..., -3:])
    assert same(back["clip"], rollout["clip"][:, -1:])
