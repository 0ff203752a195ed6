"""The wheel: what is in it, and that it works where nothing else of this project is."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.project.test_docs import ROOT, blocks

pytestmark = pytest.mark.slow
Python = Callable[[str], str]

IMPORTED = """
import sys
import torch, einops, typing_extensions

before = set(sys.modules)
import crossfuse

names = {name.partition(".")[0] for name in set(sys.modules) - before}
print(*sorted(names - {"crossfuse"} - set(sys.stdlib_module_names)))
"""
PACKAGES = "import sysconfig; print(sysconfig.get_path('purelib'))"
WHERE = """
import crossfuse
from importlib.metadata import requires, version

assert version("crossfuse") == crossfuse.__version__
print(crossfuse.__file__)
print(*requires("crossfuse"), sep=chr(10))
"""


def run(*command: str | Path, cwd: Path) -> str:
    """What a command prints; its error output is the message of a failure."""
    # Neither the checkout nor settings of the caller's may be seen from inside.
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(command, cwd=cwd, env=kept, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def built(folder: Path, kind: str = "wheel") -> Path:
    """Builds with the backend itself, which needs no network."""
    pytest.importorskip("hatchling", reason="the wheel is built with hatchling")
    run(sys.executable, "-m", "hatchling", "build", "-t", kind, "-d", folder, cwd=ROOT)
    (file,) = folder.glob("*.whl" if kind == "wheel" else "*.tar.gz")
    return file


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel."""
    return built(tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Python:
    """Installs the wheel into an empty environment and runs scripts there.

    It finds torch in the present environment, through a line in a .pth file: that adds the folder,
    but does not follow the .pth files in it, so that the checkout is not found.
    """
    folder = tmp_path_factory.mktemp("environment")
    run(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder)
    inside = folder / ("Scripts" if os.name == "nt" else "bin") / "python"
    pip = (sys.executable, "-m", "pip", "--python", inside, "--disable-pip-version-check")
    run(*pip, "install", "--quiet", "--no-deps", "--no-index", wheel, cwd=folder)
    packages = Path(run(inside, "-c", PACKAGES, cwd=folder).strip())
    (packages / "present.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return lambda script: run(inside, "-W", "error", "-c", script, cwd=folder)


def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    source = ROOT / "src"
    files = {
        path.relative_to(source).as_posix()
        for path in (source / "crossfuse").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert names == files
    assert "crossfuse/py.typed" in names


@pytest.mark.parametrize("kind", ["wheel", "sdist"])
def test_two_builds_have_the_same_bytes(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the date of the commit, for example, a user can build what was published."""
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1750000000")
    one, other = (built(tmp_path / name, kind) for name in ("one", "other"))
    assert one.name == other.name
    assert one.read_bytes() == other.read_bytes()


def test_the_wheel_carries_its_licence(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)


def test_the_installed_package_is_the_wheels(python: Python) -> None:
    where, *requirements = python(WHERE).splitlines()
    assert not Path(where).is_relative_to(ROOT)
    names = {re.split(r"[^\w-]", requirement)[0] for requirement in requirements}
    assert names == {"torch", "einops", "typing-extensions"}


def test_the_readme_runs(python: Python) -> None:
    python("\n".join(source for _, source in blocks(ROOT / "README.md")))


def test_it_imports_nothing_but_its_dependencies(python: Python) -> None:
    assert python(IMPORTED).split() == []
