"""Pictures come back as what they were: whatever they show, and however they are stored."""

from __future__ import annotations

import pytest
import torch

from environments import PICTURE_SHAPES, PicturesOfAllShapes
from readback import same
from torchrl_rerun import Image, RerunRecorder, load


@pytest.mark.parametrize("image_format", ["raw", "png"])
def test_exact_formats(path, image_format):
    env = PicturesOfAllShapes((2,)).append_transform(RerunRecorder(path, image_format=image_format))
    env.set_seed(0)
    rollout = env.rollout(5)
    env.close()
    back = load(path).rollout()
    for key in back.keys(True, True):
        assert same(back[key], rollout[key]), key


@pytest.mark.parametrize("image_format", ["jpeg", "h264", "av1"])
@pytest.mark.filterwarnings("ignore:.*is stored as")
def test_lossy_formats_have_the_shape_that_was_recorded(path, image_format):
    env = PicturesOfAllShapes().append_transform(RerunRecorder(path, image_format=image_format))
    rollout = env.rollout(5)
    env.close()
    [episode] = load(path)
    back = episode.tensordict()
    for name in PICTURE_SHAPES:
        assert back[name].shape == rollout[name].shape, name
        assert back[name].dtype == torch.uint8
    assert same(back["negative"], rollout["negative"])
    assert same(back["depth"], rollout["depth"])


def test_the_newest_frame_of_a_stack(path):
    env = PicturesOfAllShapes().append_transform(
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
