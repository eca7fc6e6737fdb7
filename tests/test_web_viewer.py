"""Recordings served by `torchrl-rerun view --web` in a real Chromium, without a display."""

from __future__ import annotations

import io
import re
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from driving import record
from environments import Scripted
from servers import viewing, wait_until

COLOUR = torch.tensor([200, 30, 120], dtype=torch.uint8)
SOFTWARE_GRAPHICS = [
    "--use-gl=angle",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
    "--ignore-gpu-blocklist",
]
# The viewer writes 100,000 lines to the console, about the shaders that it compiles. The browser passes on each of them.
QUIET = "console.debug = console.log = console.info = () => {}"


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright drives the browser")
    program = shutil.which("chromium")
    if program is None:
        pytest.skip("there is no chromium: install Debian's")
    with sync_api.sync_playwright() as playwright:
        # No sandbox: it needs rights that containers and root don't have.
        yield playwright.chromium.launch(executable_path=program, args=["--no-sandbox", *SOFTWARE_GRAPHICS])


@pytest.mark.parametrize("image_format", ["jpeg", "h264"])
def test_a_browser_shows_the_pictures_of_a_recording(browser, path, image_format):
    record(Scripted(lambda t: {"x": COLOUR.expand(64, 64, 3)}), path, 20, image_format=image_format)
    with viewing(path) as (_, said):
        page = browser.new_page(viewport={"width": 600, "height": 400})
        failed = []
        page.on("pageerror", lambda error: failed.append(str(error)))
        page.add_init_script(QUIET)
        page.goto(re.search(r"http\S+", said)[0])
        wait_until(lambda: failed or shows_the_picture(page))
        page.close()
    assert failed == []


def shows_the_picture(page) -> bool:
    """Return whether the colour of the recording fills an area of the page, and not just a line of a plot."""
    shown = np.asarray(Image.open(io.BytesIO(page.screenshot())).convert("RGB"))
    is_of_the_recording = np.abs(shown.astype(int) - COLOUR.numpy()).max(-1) < 12
    rows, columns = np.nonzero(is_of_the_recording)
    return is_of_the_recording.mean() > 0.15 and np.ptp(rows) > 80 and np.ptp(columns) > 80
