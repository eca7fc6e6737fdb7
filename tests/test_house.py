"""The structure of the package: imports in one direction, an engine without torch, and a short listing of folders."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from rerun.chunk import RrdReader

import torchrl_rerun
from torchrl_rerun import RerunRecorder
from torchrl_rerun.kinds.describe import KINDS
from torchrl_rerun.recording.options import Options, RecorderOptions

PACKAGE = Path(torchrl_rerun.__file__).parent
FLOORS = (
    "kinds",
    "scenes",
    "layout",
    "blocks",
    "chunks",
    "rrd",
    "writing",
    "recording",
    "reading",
    "export",
    "viewing",
    "wrappers",
    "transform",
    "stored",
    "cli",
)
"""Folders from the bottom up: a folder imports only from folders before it."""
BESIDE = {"reading": ("blocks", "chunks", "recording", "writing")}
"""Folders that a folder must not import, although they are below it."""
FRAMEWORKS = ("torch", "tensordict", "torchrl", "gymnasium")
ENGINE = FLOORS[: FLOORS.index("recording") + 1]


def modules():
    return sorted(PACKAGE.rglob("*.py"))


def floor_of(path):
    parts = path.relative_to(PACKAGE).parts
    return parts[0] if len(parts) > 1 else ""


def imports_in(path, *, at_top=False):
    """Yield the imported modules. Imports in functions and for types count unless ``at_top``."""
    tree = ast.parse(path.read_text())
    for node in tree.body if at_top else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (each.name for each in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{each.name}" for each in node.names)


def inside(name):
    """Return the folder of a module of this package: empty if it is in none, None for other packages."""
    first, _, rest = name.partition(".")
    if first != "torchrl_rerun":
        return None
    floor = rest.partition(".")[0]
    return floor if floor in FLOORS else ""


def test_the_package_has_a_dozen_folders_of_few_files():
    there = [each for each in PACKAGE.iterdir() if not each.name.startswith(("_", "."))]
    assert sorted(each.name for each in there if each.is_dir()) == sorted(FLOORS)
    assert len([each for each in there if each.suffix == ".py"]) < 5


@pytest.mark.parametrize("floor", FLOORS)
def test_a_folder_imports_only_from_folders_below_it(floor):
    below = ["", *FLOORS[: FLOORS.index(floor) + 1]]
    wrong = [
        f"{path.relative_to(PACKAGE)}: {name}"
        for path in modules()
        if floor_of(path) == floor
        for name in imports_in(path)
        if inside(name) is not None and (inside(name) not in below or inside(name) in BESIDE.get(floor, ()))
    ]
    assert not wrong


def test_no_test_file_imports_another():
    """Shared code is in the helper modules: environments, drivers, readers."""
    folder = Path(__file__).parent
    files = {path.stem for path in folder.glob("test_*.py")}
    wrong = [
        f"{path.relative_to(folder)}: {name}"
        for path in sorted(folder.rglob("*.py"))
        for name in [*imports_in(path), *re.findall(r"(?:from|import) (test_\w+)", path.read_text())]
        if name.partition(".")[0] in files
    ]
    assert not wrong


@pytest.mark.parametrize("name", ["readback", "reference"])
def test_readback_and_reference_do_not_import_the_package(name):
    """A mistake in the recorder could be hidden by a mistake in the reader."""
    names = list(imports_in(Path(__file__).parent / f"{name}.py"))
    assert not [each for each in names if inside(each) is not None]


def test_no_test_replaces_a_module():
    """`programs.py` alone replaces the main module, for the programs that it runs."""
    puts = re.compile(r"sys\.modules(\[[^]]+\]\s*=[^=]|\.(setdefault|update|pop)\()|\w\(sys\.modules\b")
    folder = Path(__file__).parent
    assert [path.name for path in sorted(folder.rglob("*.py")) if puts.search(path.read_text())] == ["programs.py"]


def test_imports_have_no_cycles():
    names = {".".join(("torchrl_rerun", *path.relative_to(PACKAGE).with_suffix("").parts)): path for path in modules()}
    graph = {}
    for name, path in names.items():
        found = {each if each in names else each.rpartition(".")[0] for each in imports_in(path, at_top=True)}
        graph[name] = {each for each in found if each in names and each != name}
    done, under_way = set(), []

    def visit(name):
        assert name not in under_way, " -> ".join([*under_way[under_way.index(name) :], name])
        if name not in done:
            under_way.append(name)
            for each in sorted(graph[name]):
                visit(each)
            under_way.pop()
            done.add(name)

    for name in graph:
        visit(name)


def test_the_engine_names_no_framework():
    wrong = [
        f"{path.relative_to(PACKAGE)}: {name}"
        for path in modules()
        if floor_of(path) in ENGINE
        for name in imports_in(path, at_top=True)
        if name.partition(".")[0] in FRAMEWORKS
    ]
    assert not wrong


def test_wrappers_name_neither_torch_nor_torchrl():
    wrong = [
        f"{path.relative_to(PACKAGE)}: {name}"
        for path in modules()
        if floor_of(path) == "wrappers"
        for name in imports_in(path)
        if name.partition(".")[0] in ("torch", "tensordict", "torchrl")
    ]
    assert not wrong


KIND_MODULES = tuple(kind.__module__ for kind in KINDS)


def test_kinds_are_named_only_in_the_folder_of_kinds():
    """Neither by class nor by name: a new kind is a new file. Scenes make the kinds that their simulators need."""
    wrong = []
    for path in modules():
        if floor_of(path) in ("kinds", "scenes", ""):
            continue
        wrong += [
            f"{path.relative_to(PACKAGE)}: {name}"
            for name in imports_in(path)
            if name.startswith(tuple(f"{module}." for module in KIND_MODULES)) or name in KIND_MODULES
        ]
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Compare):
                sides = [ast.unparse(side) for side in (node.left, *node.comparators)]
                if any(re.search(r"(stream|\.described)\.kind(\.name)?$", side) for side in sides):
                    wrong.append(f"{path.relative_to(PACKAGE)}:{node.lineno}: {ast.unparse(node)}")
    assert not wrong


WITHOUT_FRAMEWORKS = """
    import sys

    class Refused:
        def find_spec(self, name, *_):
            if name.partition(".")[0] in ("torch", "tensordict", "torchrl", "gymnasium"):
                raise ImportError(f"{name} is forbidden here")

    sys.meta_path.insert(0, Refused())

    import numpy as np
    from torchrl_rerun.blocks.block import FrameValues
    from torchrl_rerun.kinds.schema import Moment
    from torchrl_rerun.kinds.describe import running_sum
    from torchrl_rerun.kinds.leaf import Leaf
    from torchrl_rerun.recording.options import Options, RecorderOptions
    from torchrl_rerun.recording.session import Facts, Session, open_recording

    session = Session.of(sys.argv[1], Options(image_format="raw"))
    recording = open_recording(session, Facts(batch_size=(2,), name="Arrays", fps=50.0))

    def streams(*leaves):
        return [session.options.describe(leaf) for leaf in leaves]

    returns = running_sum(Leaf(("reward",), "float32", (1,)), ("episode_return",))
    recording.describe(Moment.OBSERVED, [*streams(Leaf(("observation",), "float32", (3,))), returns])
    flags = streams(Leaf(("reward",), "float32", (1,)), Leaf(("done",), "bool", (1,)))
    recording.describe(Moment.STEPPED, flags, [("done",)])
    recording.describe(Moment.ACTED, streams(Leaf(("action",), "int64", ())))
    recording.finish_describing()
    for t in range(5):
        observed = np.full((2, 3), t, np.float32)
        if t == 0:
            recording.reset([observed])
        else:
            stepped = [np.full((2, 1), 0.5, np.float32), np.array([[False], [t == 4]])]
            recording.step(FrameValues([observed], stepped, [np.array([t, -t])]))
    recording.dump()
    recording.close()
    assert not [name for name in sys.modules if name.partition(".")[0] in ("torch", "tensordict", "torchrl", "gymnasium")]
"""


def test_the_options_are_the_recorders_arguments():
    arguments = inspect.signature(RerunRecorder).parameters
    defaults = {name: each.default for name, each in arguments.items() if name != "sink"}
    assert {each.name: each.default for each in dataclasses.fields(Options)} == defaults


def test_the_options_that_wrappers_take_are_the_recorders_arguments():
    arguments = inspect.signature(RerunRecorder).parameters
    assert list(RecorderOptions.__annotations__) == [name for name in arguments if name != "sink"]


def test_the_engine_records_arrays_without_any_framework(tmp_path):
    path = tmp_path / "run.rrd"
    command = [sys.executable, "-c", textwrap.dedent(WITHOUT_FRAMEWORKS), path]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = {}
    for chunk in RrdReader(path).store().stream():
        if chunk.is_static or not chunk.entity_path.startswith("/env_"):
            continue
        batch = chunk.to_record_batch()
        [name] = [name for name in batch.schema.names if name.startswith(("Scalars:", "StateChange:"))][:1]
        found = zip(batch.column("frame").to_pylist(), batch.column(name).to_pylist(), strict=True)
        rows.setdefault(chunk.entity_path, []).extend(found)
    assert sorted(rows["/env_1/observation"]) == [(t, [float(t)] * 3) for t in range(5)]
    assert sorted(rows["/env_0/reward"]) == [(t, [0.5]) for t in range(1, 5)]
    assert sorted(rows["/env_0/episode_return"]) == [(t, [0.5 * t]) for t in range(5)]
    assert [frame for frame, _ in sorted(rows["/env_1/action"])] == [0, 1, 2, 3]
