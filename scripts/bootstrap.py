"""The virtual environment that the scripts run in: made on first use, kept up to date, nothing else needed.

`.venv` in the clone holds the package (editable) and its development tools in the versions of `requirements.lock`.
It is made again when the lock, pyproject.toml or the Python version changes.  Only the standard library is used here.

torch comes in two builds of the same version: a small one for the CPU and one that needs gigabytes of CUDA packages.
Without an NVIDIA device the first is installed: from the package sources that pip is configured with if they offer it,
else from PyTorch's own index of CPU builds.  BLOCKSWARM_TORCH=cuda in the environment asks for the other one.
"""

from __future__ import annotations

import ast
import contextlib
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
LOCK = ROOT / "requirements.lock"
STAMP = VENV / "blockswarm-environment"
PYTHON = VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")

OLDEST_PYTHON = (3, 11)
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
"""Where PyTorch documents that its CPU builds are (pytorch.org/get-started/locally)."""

CUDA_PACKAGE = re.compile(r"(nvidia|cuda)-.*|triton")
DOWNLOAD_MB = {"cpu": 380, "cuda": 2900}
"""About what a first installation downloads on Linux, by build of torch."""


class SetupError(Exception):
    """The environment cannot be made; the message says what to do."""


def ensure_environment() -> Path:
    """Make or update `.venv` if needed and return its Python. Raises SetupError."""
    if sys.version_info < OLDEST_PYTHON:
        wanted = ".".join(map(str, OLDEST_PYTHON))
        raise SetupError(
            f"Python {wanted} or newer is needed, this is {sys.version.split()[0]}: run the script with it"
        )
    with exclusive_use():
        key = environment_key()
        if PYTHON.exists() and STAMP.exists() and STAMP.read_text(encoding="utf-8") == key:
            return PYTHON
        is_new = not is_usable()
        try:
            install(is_new)
        except BaseException:
            if is_new:
                shutil.rmtree(VENV, ignore_errors=True)
            raise
        STAMP.write_text(key, encoding="utf-8")
    return PYTHON


def run_in_environment(module: str, *arguments: str) -> int:
    """Run a module with the environment's Python and return its exit status."""
    return subprocess.run([ensure_environment(), "-m", module, *arguments], cwd=ROOT, check=False).returncode


def exit_with(main: object, *arguments: object) -> None:
    """Run a script's `main(*arguments) -> int`; an expected error or Ctrl-C ends in one line, not in a traceback.

    The end of a program that reads the output ends it without a word.
    """
    try:
        status = main(*arguments)  # type: ignore[operator]
    except SetupError as error:
        status = f"error: {error}"
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        status = 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes it once more at the end
        status = 1
    sys.exit(status)


def run_module(name: str) -> None:
    """Run a module of scripts/benchlib in the environment with this program's arguments, and exit with its status.

    Help makes no environment: without one, what the module is for has to do.
    """

    def run() -> int | None:
        wants_help = bool({"-h", "--help"} & set(sys.argv[1:]))
        if wants_help and not PYTHON.exists():
            source = ROOT / "scripts" / "benchlib" / f"{name}.py"
            print(ast.get_docstring(ast.parse(source.read_text(encoding="utf-8"))))
            print("\nIts options are shown when there is an environment, which scripts/check makes.")
            return 0
        environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parent)}
        python = PYTHON if wants_help else ensure_environment()
        sys.stdout.flush()
        # In the place of this process: a parent that Ctrl-C ends as well would leave the module no time to clean up.
        os.execve(python, [str(python), "-m", f"benchlib.{name}", *sys.argv[1:]], environment)
        return None

    exit_with(run)


@contextlib.contextmanager
def exclusive_use() -> Iterator[None]:
    """Let one script at a time work on the environment (no lock on Windows, which has no flock)."""
    try:
        import fcntl
    except ImportError:
        yield
        return
    descriptor = os.open(ROOT, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def environment_key() -> str:
    """Changes whenever the environment has to be made again."""
    digest = hashlib.sha256()
    for part in (
        LOCK.read_bytes(),
        (ROOT / "pyproject.toml").read_bytes(),
        wanted_torch().encode(),
        str(ROOT).encode(),
    ):
        digest.update(hashlib.sha256(part).digest())
    return f"{sys.version_info.major}.{sys.version_info.minor} {digest.hexdigest()}\n"


def is_usable() -> bool:
    """Whether `.venv` is an environment of this Python version, which may be updated in place."""
    ask = "import sys; print(sys.version_info[:2])"
    try:
        answer = subprocess.run([PYTHON, "-c", ask], capture_output=True, text=True, check=False).stdout
    except OSError:
        return False
    return answer.strip() == str(tuple(sys.version_info[:2]))


def wanted_torch() -> str:
    """The build of torch for this machine: "cuda" with an NVIDIA device or on request, else "cpu"."""
    asked = os.environ.get("BLOCKSWARM_TORCH", "")
    if asked not in ("", "cpu", "cuda"):
        raise SetupError(f"BLOCKSWARM_TORCH must be cpu or cuda, not {asked!r}")
    return asked or ("cuda" if has_nvidia_device() else "cpu")


def has_nvidia_device() -> bool:
    """Whether the NVIDIA driver is here and lists a device."""
    try:
        listing = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return listing.returncode == 0 and "GPU" in listing.stdout


def install(is_new: bool) -> None:
    """Bring `.venv` to what the lock says, after saying what that takes."""
    build = wanted_torch()
    if is_new:
        say(f"making the virtual environment {VENV}")
        make_venv()
    # setuptools goes first: the project is then built with it, not with a second copy in an environment of its own.
    pip("install", "--quiet", "--constraint", LOCK, "setuptools")
    project = ("--constraint", LOCK, "--no-build-isolation", "--editable", f"{ROOT}[dev,plots]")
    say("asking the package index what is missing")
    missing = resolve(*project)
    from_cpu_index = build == "cpu" and any(CUDA_PACKAGE.fullmatch(name) for name in missing)
    if from_cpu_index:
        missing = {name: version for name, version in missing.items() if not CUDA_PACKAGE.fullmatch(name)}
    announce(missing, build, from_cpu_index)
    if from_cpu_index:
        pip("install", "--no-deps", "--index-url", CPU_INDEX, f"torch=={missing['torch']}", advice=CPU_INDEX_ADVICE)
    # Without anything to add, pip would only list a hundred lines of what is satisfied already.
    pip("install", *project, *(() if missing else ("--quiet",)))
    say("the environment is ready")


CPU_INDEX_ADVICE = f"""\
No CPU build of torch could be installed, neither from pip's configured sources nor from {CPU_INDEX}.
Give pip a source that has one (pip config set global.find-links FOLDER), or set BLOCKSWARM_TORCH=cuda to download the
build with the CUDA packages, {DOWNLOAD_MB["cuda"] / 1000:.1f} GB, which runs without a GPU too."""


def make_venv() -> None:
    """An empty environment with pip. Raises SetupError where Python comes without the means."""
    made = subprocess.run([sys.executable, "-m", "venv", "--clear", VENV], capture_output=True, text=True, check=False)
    if made.returncode:
        reason = (made.stdout + made.stderr).strip()
        raise SetupError(f"python -m venv failed (on Debian and Ubuntu: apt install python3-venv)\n{reason}")


def resolve(*arguments: object) -> dict[str, str]:
    """The packages that `pip install arguments` would add, name -> version, from metadata where there is some."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        pip("install", "--dry-run", "--quiet", "--report", report, *arguments)
        added = json.loads(report.read_text(encoding="utf-8"))["install"]
    versions = {item["metadata"]["name"].lower().replace("_", "-"): item["metadata"]["version"] for item in added}
    del versions["blockswarm"]
    return versions


def announce(missing: dict[str, str], build: str, from_cpu_index: bool) -> None:
    """Say what is about to be downloaded."""
    if not missing:
        return
    size = f", about {DOWNLOAD_MB[build]} MB" if "torch" in missing else ""
    say(f"installing {len(missing)} packages{size} (the sources that pip is configured with, or its cache):")
    names = ", ".join(f"{name} {version}" for name, version in sorted(missing.items()))
    print(names, file=sys.stderr, flush=True)
    if "torch" in missing:
        source = f"from {CPU_INDEX}" if from_cpu_index else "from pip's configured sources"
        reason = (
            "no NVIDIA device here" if build == "cpu" else "an NVIDIA device is here, or BLOCKSWARM_TORCH asks for it"
        )
        say(f"torch: the {build.upper()} build, {source} ({reason})")


def pip(*arguments: object, advice: str = "pip could not install what is needed; its message above says why") -> None:
    """Run the environment's pip, which shows its own progress, all of it as messages.

    Raises SetupError with `advice` if it fails.
    """
    command = [PYTHON, "-m", "pip", "--no-input", "--disable-pip-version-check", *map(str, arguments)]
    if subprocess.run(command, cwd=ROOT, stdout=sys.stderr, check=False).returncode:
        raise SetupError(advice)


def say(message: str) -> None:
    """Tell progress beside a program's own output, which another program may read."""
    print(f"==> {message}", file=sys.stderr, flush=True)
