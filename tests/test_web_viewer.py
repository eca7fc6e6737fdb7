"""What people see in a browser: recordings served by `torchrl-rerun view --web`, in a real Chromium, without a display."""

from __future__ import annotations

import io
import re
import shutil
import time

import numpy as np
import pytest
import torch
from PIL import Image

from driving import record
from environments import Scripted
from servers import viewing

COLOUR = torch.tensor([200, 30, 120], dtype=torch.uint8)
SOFTWARE_GRAPHICS = [
    "--use-gl=angle",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
    "--ignore-gpu-blocklist",
]
# The viewer tells the console of each shader it compiles, a hundred thousand lines, each of which the browser passes on.
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
def test_a_recording_in_the_browser(browser, path, image_format):
    record(Scripted(lambda t: {"x": COLOUR.expand(64, 64, 3)}), path, 20, image_format=image_format)
    with viewing(path) as (_, said):
        page = browser.new_page(viewport={"width": 600, "height": 400})
        failed = []
        page.on("pageerror", lambda error: failed.append(str(error)))
        page.add_init_script(QUIET)
        page.goto(re.search(r"http\S+", said)[0])
        shown = settled(page)
        page.close()
    assert failed == []
    is_of_the_recording = np.abs(shown.astype(int) - COLOUR.numpy()).max(-1) < 12
    assert is_of_the_recording.mean() > 0.15
    rows, columns = np.nonzero(is_of_the_recording)
    assert np.ptp(rows) > 80, "a picture, not a line of a plot"
    assert np.ptp(columns) > 80


def settled(page, seconds: float = 60.0) -> np.ndarray:
    """What is on the page when it doesn't change any more. It begins as a page of one colour, and goes on to a logo."""
    deadline = time.monotonic() + seconds
    before = None
    while True:
        png = page.screenshot()
        shown = np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))
        if png == before and len(np.unique(shown.reshape(-1, 3), axis=0)) > 200:
            return shown
        assert time.monotonic() < deadline, "it still changes"
        before = png
        time.sleep(1.0)
