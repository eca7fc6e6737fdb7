"""Pictures that `load` gives back, for all contents and formats."""

from __future__ import annotations

import pytest
import torch

from environments import PICTURE_SHAPES, PicturesOfAllShapes
from readback import same
from torchrl_rerun import Image, RerunRecorder, load


@pytest.mark.parametrize("image_format", ["raw", "png"])
def test_pictures_in_exact_formats_come_back_bit_for_bit(path, image_format):
    env = PicturesOfAllShapes((2,)).append_transform(RerunRecorder(path, image_format=image_format))
    env.set_seed(0)
    rollout = env.rollout(5)
    env.close()
    back = load(path).rollout()
    for key in back.keys(True, True):
        assert same(back[key], rollout[key]), key


@pytest.mark.parametrize("image_format", ["jpeg", "h264", "av1"])
@pytest.mark.filterwarnings("ignore:.*is stored as")
def test_pictures_in_lossy_formats_come_back_in_their_shape(path, image_format):
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


def test_the_newest_frame_of_a_stack_comes_back(path):
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
