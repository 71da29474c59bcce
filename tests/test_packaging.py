"""The wheel that users install: one import package, complete, and nothing else at the top of site-packages."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import zipfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("routing", "proto", "peer", "client")
NOT_SOURCE = shutil.ignore_patterns("__pycache__", "*.pyc")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """A wheel built offline from a copy of the sources (a build in place leaves files behind)."""
    try:
        setuptools_major = int(version("setuptools").partition(".")[0])
    except PackageNotFoundError:
        setuptools_major = 0
    if setuptools_major < 77:
        pytest.skip(f"building needs setuptools 77 or newer in the environment, here is {setuptools_major or 'none'}")
    source, output = copied_sources(tmp_path_factory.mktemp("source")), tmp_path_factory.mktemp("wheel")
    build("wheel", source, output)
    return zipfile.ZipFile(next(output.glob("*.whl")))


def copied_sources(folder: Path) -> Path:
    """All that a build takes, in a folder of its own: a build in place leaves files behind."""
    for name in FOLDERS:
        shutil.copytree(ROOT / name, folder / name, ignore=NOT_SOURCE)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    return folder


def build(kind: str, source: Path, output: Path) -> None:
    """Build the sources' "wheel" or "sdist", without a download."""
    code = f"import sys; from setuptools.build_meta import build_{kind}; build_{kind}(sys.argv[1])"
    command = [sys.executable, "-c", code, output]
    built = subprocess.run(command, cwd=source, capture_output=True, text=True, check=False, timeout=120)
    assert built.returncode == 0, built.stdout + built.stderr


@pytest.mark.long
def test_wheel_has_one_top_level_package(wheel: zipfile.ZipFile):
    """A package named `proto` or `client` of ours would overwrite somebody else's."""
    top = {name.partition("/")[0] for name in wheel.namelist()}
    assert {name for name in top if not name.endswith(".dist-info")} == {"blockswarm"}
    assert "blockswarm/__init__.py" not in wheel.namelist()


@pytest.mark.long
def test_wheel_has_every_file_of_the_four_folders(wheel: zipfile.ZipFile):
    """Also py.typed, templates, protocol sources and data, which a build forgets silently."""
    here = {
        f"blockswarm/{path.relative_to(ROOT).as_posix()}"
        for folder in FOLDERS
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    missing = here - set(wheel.namelist())
    assert not missing, "not in the wheel (tool.setuptools in pyproject.toml): " + ", ".join(sorted(missing))
    assert {f"blockswarm/{folder}/py.typed" for folder in FOLDERS} <= here


def test_wheel_names_the_programs_and_the_licence(wheel: zipfile.ZipFile):
    information = {Path(name).name: name for name in wheel.namelist() if ".dist-info/" in name}
    entry_points = wheel.read(information["entry_points.txt"]).decode()
    assert "swarm-peer = blockswarm.peer.cli:main" in entry_points
    assert "swarm-client = blockswarm.client.program.cli:main" in entry_points
    assert "swarm-dashboard = blockswarm.client.dashboard.cli:main" in entry_points
    assert "swarm-sim = blockswarm.routing.sim.cli:main" in entry_points
    metadata = wheel.read(information["METADATA"]).decode()
    assert "License-Expression: Apache-2.0" in metadata
    assert "LICENSE" in information


@pytest.mark.long
def test_the_source_archive_gives_the_same_wheel(wheel: zipfile.ZipFile, tmp_path: Path):
    (tmp_path / "source").mkdir()
    build("sdist", copied_sources(tmp_path / "source"), tmp_path)
    with tarfile.open(next(tmp_path.glob("*.tar.gz"))) as archive:
        archive.extractall(tmp_path / "unpacked", filter="data")
    (source,) = (tmp_path / "unpacked").iterdir()
    build("wheel", source, tmp_path)
    again = zipfile.ZipFile(next(tmp_path.glob("*.whl")))
    assert sorted(again.namelist()) == sorted(wheel.namelist())


IMPORT_ALL = """
import importlib, pkgutil, sys
import blockswarm
assert list(blockswarm.__path__) == [sys.argv[1] + "/blockswarm"], blockswarm.__path__
for module in pkgutil.walk_packages(blockswarm.__path__, "blockswarm."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
print(sum(name.startswith("blockswarm.") for name in sys.modules))
"""


@pytest.mark.long
def test_all_modules_of_the_wheel_can_be_imported_without_the_clone(wheel: zipfile.ZipFile, tmp_path: Path):
    """Beside the dependencies alone; `scripts/try_install` does it with pip, in empty environments."""
    installed = tmp_path / "installed"
    wheel.extractall(installed)
    dependencies = Path(pytest.__file__).parents[1]
    code = f"import sys; sys.path[:0] = [{str(installed)!r}, {str(dependencies)!r}]" + IMPORT_ALL
    command = [sys.executable, "-S", "-c", code, installed]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    modules = {name for name in wheel.namelist() if name.startswith("blockswarm/") and name.endswith(".py")}
    assert int(done.stdout.split()[-1]) >= len([name for name in modules if "__main__" not in name]) - 1
