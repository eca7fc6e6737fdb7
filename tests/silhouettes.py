"""Silhouettes of a scene: what the viewer draws, and what MuJoCo draws from the same eye.

    python tests/silhouettes.py STATES.npz MASKS.npy

draws, in a process of its own, because MuJoCo reads MUJOCO_GL when it is imported.
"""

from __future__ import annotations

import io
import os
import subprocess
import sys

import numpy as np

FOVY = 55.0
"""Degrees that a 3D view of the viewer's sees from top to bottom (rerun-sdk 0.41)."""

SKY = (255, 0, 255)


def layout(origin, position, target):
    """Return the layout of a scene alone, without what never moves, and with a background that no body has."""
    import rerun.blueprint as rrb

    return rrb.Blueprint(
        rrb.Spatial3DView(
            origin=origin,
            contents=["+ $origin/**", "- $origin/world/**", "- $origin/root"],
            background=rrb.Background(color=SKY),
            line_grid=False,
            eye_controls=rrb.EyeControls3D(position=position, look_target=target),
        ),
        auto_views=False,
        collapse_panels=True,
    )


def of_rerun(viewer, views):
    """Return where the viewer draws bodies that move, bool ``[height, width]``.

    Args:
        viewer: a headless viewer that shows :func:`layout`.
        views: its views.
    """
    from PIL import Image

    [view] = views
    picture = np.array(Image.open(io.BytesIO(viewer.take_screenshot(view.view_id))).convert("RGB")).astype(int)
    is_sky = np.abs(picture - SKY).max(-1) < 40
    rows = np.flatnonzero(is_sky.mean(1) > 0.2)  # without the title
    columns = np.flatnonzero(is_sky.mean(0) > 0.2)
    return ~is_sky[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def of_mujoco(model, qpos, shape, position, target, folder):
    """Return where MuJoCo's software renderer draws geoms of bodies that move, bool ``[height, width]``."""
    import mujoco

    stored, masks = folder / "model.npz", folder / "mask.npy"
    binary = np.empty(mujoco.mj_sizeModel(model), np.uint8)
    mujoco.mj_saveModel(model, None, binary)
    np.savez(stored, model=binary, qpos=qpos, shape=shape, position=position, target=target)
    subprocess.run([sys.executable, __file__, stored, masks], check=True, env=os.environ | {"MUJOCO_GL": "egl"})
    return np.load(masks)


def overlap(first, second):
    """Return the intersection over the union of two masks."""
    return (first & second).sum() / (first | second).sum()


def main(stored, masks):
    import mujoco

    with np.load(stored) as told:
        model = mujoco.MjModel.from_binary_path("m.mjb", {"m.mjb": told["model"].tobytes()})
        qpos, shape, position, target = (told[name] for name in ("qpos", "shape", "position", "target"))
    data = mujoco.MjData(model)
    data.qpos[:] = qpos
    mujoco.mj_forward(model, data)
    height, width = shape.tolist()
    model.vis.global_.fovy = FOVY
    model.vis.global_.offheight, model.vis.global_.offwidth = height, width
    camera, way = mujoco.MjvCamera(), target - position
    camera.lookat[:] = target
    camera.distance = np.linalg.norm(way)
    camera.azimuth = np.degrees(np.arctan2(way[1], way[0]))
    camera.elevation = np.degrees(np.arcsin(way[2] / camera.distance))
    renderer = mujoco.Renderer(model, height, width)
    renderer.enable_segmentation_rendering()
    renderer.update_scene(data, camera)
    number, kind = np.moveaxis(renderer.render(), -1, 0)
    is_geom = kind == int(mujoco.mjtObj.mjOBJ_GEOM)
    moves = model.body_weldid[model.geom_bodyid] != 0
    np.save(masks, is_geom & moves[np.where(is_geom, number, 0)])


if __name__ == "__main__":
    main(*sys.argv[1:])
