"""The map of the repository, checked: folders, who may import what, and what starting a program costs."""

from __future__ import annotations

import ast
import importlib.util
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from support.sources import (
    FOLDERS,
    GENERATED,
    ROOT,
    Import,
    all_files,
    executed_nodes,
    imports_of,
    package_files,
    parsed,
    relative_path,
)

TOP_LEVEL = {*FOLDERS, "tests", "scripts", "docs", "examples"} | {
    "pyproject.toml", "requirements.lock", "README.md", "LICENSE", "CHANGELOG.md", "CONTRIBUTING.md"
}  # fmt: skip

PRESENTATION = {"routing/sim/cli.py", "routing/sim/plots.py"}
"""The two modules of routing/ that face a person: they may use a terminal, a clock and plots."""
TORCH_ALLOWED = re.compile(
    r"peer/engine/.*|client/model/(growing|head|load|model|remote|slices|stream|text_session|batch/(history|packing|padding)|guess/(draft_model|forwards|front|guesser))\.py"
    r"|client/api/run/(call|grammar|sampling|texts)\.py|client/dashboard/probe/program\.py"
    r"|proto/weights/.*|proto/wire/tensors\.py|proto/model/(cache|ends|family|tiny)\.py"
)
UNPICKLING = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}


def package_imports() -> list[Import]:
    return [found for path in package_files() for found in imports_of(path)]


def listing(findings: list[object]) -> str:
    return "\n".join(map(str, findings))


def test_top_level_has_only_the_map():
    """A reader finds his way because nothing else is there."""
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if tracked.returncode:
        pytest.skip("not a git checkout")
    top = {Path(line).parts[0] for line in tracked.stdout.splitlines()}
    assert {name for name in top if not name.startswith(".")} <= TOP_LEVEL


def test_pyproject_lists_every_package():
    """A folder that pyproject.toml does not list is missing from the installed package."""
    configured = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]["packages"]
    on_disk = {".".join(["blockswarm", *path.parent.relative_to(ROOT).parts]) for path in package_files()}
    assert set(configured) == on_disk


@pytest.mark.parametrize("folder", FOLDERS)
def test_folders_are_typed(folder: str):
    assert (ROOT / folder / "py.typed").exists()


def test_blockswarm_stays_a_namespace():
    """With an __init__.py of its own, two installed parts of the namespace would hide each other."""
    import blockswarm

    assert getattr(blockswarm, "__file__", None) is None


@pytest.mark.long
def test_nothing_imports_a_folder_as_a_top_level_package():
    """`import routing` would make a second copy of every class beside `blockswarm.routing`."""
    wrong = [found for path in all_files() for found in imports_of(path) if found.top in FOLDERS]
    assert not wrong, listing(wrong)


@pytest.mark.long
def test_imports_inside_the_package_are_relative():
    wrong = [found for found in package_imports() if found.top == "blockswarm" and not found.is_relative]
    assert not wrong, listing(wrong)


def test_import_linter_contracts_hold():
    """Layers and forbidden modules, indirect imports included; the contracts are in pyproject.toml."""
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports; raise SystemExit(lint_imports())"]
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
    assert finished.returncode == 0, finished.stdout + finished.stderr


def test_torch_stays_in_the_engine_and_at_the_edges_of_the_model():
    """Everything else starts fast and runs without it."""
    wrong = [found for found in package_imports() if found.top == "torch" and not TORCH_ALLOWED.fullmatch(found.path)]
    assert not wrong, listing(wrong)


@pytest.mark.long
def test_nothing_is_unpickled():
    """A pickle from a peer, a hub or a disk is somebody else's program."""
    wrong: list[object] = [found for found in package_imports() if found.top in UNPICKLING]
    wrong += [
        f"{relative_path(path)}:{node.lineno} calls torch.load"
        for path in package_files()
        for node in executed_nodes(parsed(path))
        if isinstance(node, ast.Attribute) and ast.unparse(node) == "torch.load"
    ]
    assert not wrong, listing(wrong)


def test_generated_stubs_import_nothing_of_ours_but_stubs():
    """They must stay replaceable by running protoc again."""
    stubs = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py") if GENERATED.fullmatch(path.name)]
    ours = [found for path in stubs for found in imports_of(path) if found.top == "blockswarm"]
    wrong = [found for found in ours if not all(GENERATED.fullmatch(f"{name}.py") for name in found.names)]
    assert not wrong, listing(wrong)


def test_routing_needs_only_the_standard_library_numpy_and_scipy():
    """Decisions are pure: the simulator and the live swarm run the same code."""
    allowed = sys.stdlib_module_names | {"numpy", "scipy", "blockswarm"}
    wrong = [
        found
        for found in package_imports()
        if found.path.startswith("routing/") and found.top not in allowed and found.path not in PRESENTATION
    ]
    assert not wrong, listing(wrong)


def test_routing_has_no_clock_and_no_hidden_randomness():
    """Time and random numbers come in as arguments, so equal inputs give equal decisions."""
    seeded = {"default_rng", "Generator", "SeedSequence", "PCG64", "BitGenerator"}
    wrong: list[object] = []
    for path in package_files():
        name = relative_path(path)
        if not name.startswith("routing/") or name in PRESENTATION:
            continue
        wrong += [found for found in imports_of(path) if found.top in {"time", "datetime", "secrets", "uuid"}]
        for node in executed_nodes(parsed(path)):
            if not isinstance(node, ast.Attribute):
                continue
            owner = ast.unparse(node.value)
            if (owner in {"np.random", "numpy.random"} and node.attr not in seeded) or (
                owner == "random" and node.attr not in {"Random"} and imports_module(path, "random")
            ):
                wrong.append(f"{name}:{node.lineno} uses {owner}.{node.attr}")
    assert not wrong, listing(wrong)


def imports_module(path: Path, module: str) -> bool:
    return any(found.module == module and not found.names for found in imports_of(path))


def test_nothing_imports_the_simulators_presentation():
    """Only `swarm-sim` itself may pay for a terminal and for plots."""
    modules = {"blockswarm." + name.removesuffix(".py").replace("/", ".") for name in PRESENTATION}
    wrong = [
        found
        for found in package_imports()
        if found.path not in PRESENTATION
        and (found.module in modules or any(f"{found.module}.{name}" in modules for name in found.names))
    ]
    assert not wrong, listing(wrong)


@pytest.mark.parametrize("path", package_files(), ids=relative_path)
def test_every_module_says_what_it_is_for(path: Path):
    if path.name == "__init__.py" and not parsed(path).body:
        return  # an empty file says it by its folder
    assert ast.get_docstring(parsed(path)), f"{relative_path(path)} has no docstring"


HELP = """
import sys
from {module} import main
sys.argv = ["{command}", "--help"]
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
heavy = ("torch", "transformers", "hivemind", "scipy", "matplotlib")
print("loaded:", *(name for name in heavy if name in sys.modules))
"""


@pytest.mark.parametrize(
    ("command", "module"),
    [
        ("swarm-peer", "blockswarm.peer.cli"),
        ("swarm-client", "blockswarm.client.program.cli"),
        ("swarm-dashboard", "blockswarm.client.dashboard.cli"),
        ("swarm-sim", "blockswarm.routing.sim.cli"),
    ],
)
def test_help_does_not_pay_for_heavy_imports(command: str, module: str):
    """Help that takes seconds is not read."""
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"{module} is not written yet")
    program = [sys.executable, "-c", HELP.format(command=command, module=module)]
    finished = subprocess.run(program, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
    assert finished.returncode == 0, finished.stderr
    help_text, _, loaded = finished.stdout.rpartition("loaded:")
    assert "--help" in help_text
    assert not loaded.split(), f"{command} --help loads {loaded.strip()}"


@pytest.mark.parametrize("module", ["blockswarm.client", "blockswarm.peer", "blockswarm.proto", "blockswarm.routing"])
def test_importing_a_folder_is_cheap(module: str):
    """`from blockswarm.client import ...` on a laptop must not start with hivemind and a solver."""
    program = f"import sys, {module}; print(*({{'torch', 'hivemind', 'scipy', 'matplotlib'}} & sys.modules.keys()))"
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert not finished.stdout.split()


@pytest.mark.long
def test_help_of_scripts_makes_no_environment(tmp_path: Path):
    """It downloads gigabytes, and answers a question with an hour."""
    shutil.copytree(ROOT / "scripts", tmp_path / "scripts", ignore=shutil.ignore_patterns("demo_*"))
    names = sorted(path.name for path in (tmp_path / "scripts").glob("bench_*"))
    for name in (*names, "check", "demo", "faults", "map", "reproduce_paper", "test"):
        program = [sys.executable, "-E", "-S", tmp_path / "scripts" / name, "--help"]
        finished = subprocess.run(program, capture_output=True, text=True, check=False, timeout=60)
        assert (finished.returncode, finished.stderr) == (0, ""), name
        assert len(finished.stdout) > 100, name
    assert [path.name for path in tmp_path.iterdir()] == ["scripts"], "an environment"
