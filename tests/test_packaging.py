"""What is handed to users: the sdist builds by itself, the wheel holds what is used and nothing else."""

import importlib.metadata
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the sdist from a copy of the sources, and the wheel from the sdist, with what is installed here."""
    for name in ("build", "Cython", "setuptools"):
        try:
            importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            pytest.skip(f"{name} is not installed")
    if not (ROOT / "ext").exists():
        pytest.skip("the sources are not beside these tests")
    folder = tmp_path_factory.mktemp("packages")
    ignored = shutil.ignore_patterns(".*", "build", "dist", "*.egg-info", "__pycache__")
    shutil.copytree(ROOT, folder / "source", ignore=ignored)
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", folder / "dist", folder / "source"]
    result = subprocess.run(command, env=os.environ | {"RINGMAIN_DEBUG": "1"}, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    return folder / "dist"


def test_the_sdist_holds_all_that_a_build_needs(packages: Path) -> None:
    with tarfile.open(next(packages.glob("*.tar.gz"))) as sdist:
        names = {name.partition("/")[2] for name in sdist.getnames()}
    ours = {str(path.relative_to(ROOT)) for folder in ("ext", "src", "tests") for path in (ROOT / folder).rglob("*.p*")}
    assert {name for name in ours if name.endswith((".py", ".pyi", ".pyx", ".pxd", "py.typed"))} <= names
    assert {
        "pyproject.toml",
        "setup.py",
        "README.md",
        "CHANGELOG.md",
        "CONTRIBUTING.md",
        "LICENSE",
        "Makefile",
    } <= names
    assert not [name for name in names if name.endswith((".so", ".c", ".pyc"))]


def test_the_wheel_holds_modules_stubs_their_marker_and_the_schema_only(packages: Path) -> None:
    with zipfile.ZipFile(next(packages.glob("*.whl"))) as wheel:
        names = [Path(name) for name in wheel.namelist()]
        metadata = wheel.read(next(str(name) for name in names if name.name == "METADATA")).decode()
    inside = [name for name in names if not name.parts[0].endswith(".dist-info")]
    assert {name.parts[0] for name in inside} == {"ringmain"}
    data = {Path("ringmain/py.typed"), Path("ringmain/bench/schema.json")}
    assert {name.suffix for name in inside if name not in data} == {".py", ".pyi", ".so"}
    assert data <= set(inside)
    compiled = {name.name.partition(".")[0] for name in inside if name.suffix == ".so"}
    assert compiled == {name.stem for name in inside if name.suffix == ".pyi"}
    assert compiled == {path.stem for path in (ROOT / "ext" / "ringmain").glob("*.pyx")}
    assert "License-Expression: MIT" in metadata
    assert "Requires-Python: >=3.11" in metadata
