"""The documentation: examples run, commands exist, and the site is built without warnings."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess

import pytest
from sphinx.util.inventory import InventoryFile
from typer.testing import CliRunner

import torchrl_rerun
from pages import DOCS, PAGES, ROOT, examples
from programs import python
from torchrl_rerun.cli import app

COMMAND = re.compile(r'^\$ .*\b(torchrl-rerun\b(?:"[^"\n]*"|[^)|>"\n])*)', re.MULTILINE)
of_each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


@of_each_page
def test_examples_of_a_page_run(page, tmp_path, monkeypatch):
    """Run the examples of a page in order, as one program."""
    monkeypatch.chdir(tmp_path)
    for example in examples(page):
        example.evaluate()


@of_each_page
def test_commands_of_a_page_exist(page):
    """Ask each command for help with its options: an unknown option is an error."""
    for command in COMMAND.findall(page.read_text()):
        asked = CliRunner().invoke(app, [*shlex.split(command, comments=True)[1:], "--help"])
        assert asked.exit_code == 0, f"{command}\n{asked.output}"


def test_each_command_is_in_the_table_and_has_a_section():
    page = (DOCS / "command_line.md").read_text()
    commands = {each.name for each in app.registered_commands}
    assert set(re.findall(r"^## (\w+)$", page, re.MULTILINE)) == commands
    table, _, _ = page.partition("\n\nAll take")
    assert set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)) == commands


@pytest.fixture(scope="module")
def site(tmp_path_factory, kernels):
    """Build the site like `make docs`, tutorial included."""
    folder = tmp_path_factory.mktemp("site")
    command = [*python(), "-m", "sphinx", "-q", "-W", DOCS, folder]
    built = subprocess.run(
        command, capture_output=True, text=True, timeout=600, env=os.environ | {"JUPYTER_PATH": str(kernels)}
    )
    assert built.returncode == 0, built.stderr
    return folder


def test_site_has_every_page(site):
    pages = {path.relative_to(DOCS).with_suffix(".html") for path in (*DOCS.rglob("*.md"), *DOCS.rglob("*.ipynb"))}
    built = {path.relative_to(site) for path in site.rglob("*.html")}
    assert {page for page in pages if "_build" not in page.parts} <= built


def test_site_describes_all_public_names(site):
    inventory = InventoryFile.loads((site / "objects.inv").read_bytes(), uri="")
    described = {name for kind in ("py:class", "py:exception", "py:function") for name in inventory.data[kind]}
    assert {f"torchrl_rerun.{name}" for name in torchrl_rerun.__all__} <= described


IMPORTED = re.compile(r"^ *from (torchrl_rerun[.\w]*) import (.+)$", re.MULTILINE)


def test_site_describes_all_names_that_examples_import(site):
    inventory = InventoryFile.loads((site / "objects.inv").read_bytes(), uri="")
    described = {name for kind in inventory.data for name in inventory.data[kind]}
    imported = {
        f"{module}.{name.strip()}"
        for page in PAGES
        for module, names in IMPORTED.findall(page.read_text())
        for name in names.split(",")
    }
    assert len(imported) > 12
    assert imported <= described


def test_tutorial_is_committed_without_outputs():
    cells = json.loads((DOCS / "tutorial.ipynb").read_text())["cells"]
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in cells)


def test_tutorial_shows_its_results(site):
    tutorial = (site / "tutorial.html").read_text()
    assert "episodes failed; the worst of them:" in tutorial
    assert "failures/env_" in tutorial
    assert re.search(r'<img [^>]*src="_images/[0-9a-f]{64}\.png"', tutorial)
