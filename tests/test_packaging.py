"""What is handed to users: the sdist builds by itself, the wheel holds what is used and nothing else."""

import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from collections.abc import Callable
from pathlib import Path

import peers
import pytest
from conftest import Certificates
from feeding import library
from packaging.requirements import Requirement

import ringmain
from ringmain.cli.commands import cli

ROOT = Path(__file__).parent.parent
# Each worker of a run builds for itself, and several compilers beside other tests on a busy machine take their time.
pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the sdist from a copy of the sources, and the wheel from the sdist, with what is installed here."""
    for name in ("build", "click", "Cython", "setuptools"):
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
    # Nothing here is about speed, and optimizing is most of what a build costs.
    environment = os.environ | {"RINGMAIN_DEBUG": "1", "CFLAGS": "-O0"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
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
        "SECURITY.md",
        "LICENSE",
        "Makefile",
        "Containerfile",
        "docs/manpages.py",
        "docs/index.md",
    } <= names
    assert not [name for name in names if name.endswith((".so", ".c", ".pyc"))]


def test_the_wheel_holds_modules_stubs_their_marker_the_schema_and_man_pages_only(packages: Path) -> None:
    with zipfile.ZipFile(next(packages.glob("*.whl"))) as wheel:
        names = [Path(name) for name in wheel.namelist()]
        metadata = wheel.read(next(str(name) for name in names if name.name == "METADATA")).decode()
    pages = [name for name in names if name.parts[0].endswith(".data")]
    assert {name.parent.relative_to(name.parts[0]) for name in pages} == {Path("data/share/man/man1")}
    assert {name.name for name in pages} == {"ringmain.1", *(f"ringmain-{name}.1" for name in cli.commands)}
    inside = [name for name in names if not name.parts[0].endswith(".dist-info") and name not in pages]
    assert {name.parts[0] for name in inside} == {"ringmain"}
    data = {Path("ringmain/py.typed"), Path("ringmain/bench/schema.json")}
    assert {name.suffix for name in inside if name not in data} == {".py", ".pyi", ".so"}
    assert data <= set(inside)
    compiled = {name.name.partition(".")[0] for name in inside if name.suffix == ".so"}
    assert compiled == {name.stem for name in inside if name.suffix == ".pyi"}
    assert compiled == {path.stem for path in (ROOT / "ext" / "ringmain").glob("*.pyx")}
    assert "License-Expression: MIT" in metadata
    assert "Requires-Python: >=3.11" in metadata


def test_what_is_installed_is_below_3_mb() -> None:
    """Without the bytecode that Python writes beside it. Debug symbols, which some Pythons ask for, were 5 MB more."""
    if any(os.environ.get(f"RINGMAIN_{it}", "0") not in ("", "0") for it in ("DEBUG", "SANITIZE", "COVERAGE")):
        pytest.skip("this is a build for developers")
    files = [it for it in Path(ringmain.__file__).parent.rglob("*") if it.is_file() and it.suffix != ".pyc"]
    assert any(it.suffix == ".so" for it in files)
    assert sum(it.stat().st_size for it in files) < 3_000_000


Install = Callable[[str], Path]

# The library at work: TLS from one thread to another, then what it needs more for than uvloop.
LIBRARY = """
import sys, threading, ringmain

def send(port):
    with ringmain.save(f"tcps://127.0.0.1:{port}", cafile=sys.argv[2]) as saver:
        saver.write(b"by uvloop alone")

with ringmain.load("tcps://127.0.0.1:0", certfile=sys.argv[1], listen_once=True) as loader:
    thread = threading.Thread(target=send, args=[loader.port])
    thread.start()
    print(b"".join(map(bytes, loader)).decode())
thread.join()
for use in (ringmain.nics, ringmain.load("tcps://127.0.0.1:0", self_signed=True).__enter__):
    try:
        print(type(use()).__name__)
    except ringmain.UsageError as error:
        print(error)
"""


@pytest.fixture(scope="module")
def install(packages: Path, tmp_path_factory: pytest.TempPathFactory) -> Install:
    """Return what installs the wheel with an extra or none, and what pip would bring with that; without a network.

    Nothing else is there: what the wheel requires is linked from where these tests run, with its own requirements.
    """

    def bring(requirements: list[str] | None, extra: str, site: Path) -> None:
        for requirement in map(Requirement, requirements or []):
            if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
                distribution = importlib.metadata.distribution(requirement.name)
                for top in {file.parts[0] for file in distribution.files or []} - {"..", "__pycache__"}:
                    if not (site / top).exists():
                        (site / top).symlink_to(str(distribution.locate_file(top)))
                bring(distribution.requires, "", site)

    def install(extra: str) -> Path:
        folder = tmp_path_factory.mktemp("installed")
        venv.create(folder, symlinks=True)
        python = folder / "bin" / "python"
        pip = [sys.executable, "-m", "pip", "--python", python, "--disable-pip-version-check", "install", "--quiet"]
        subprocess.run([*pip, "--no-index", "--no-deps", next(packages.glob("*.whl"))], check=True)
        where = [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
        site = Path(subprocess.run(where, check=True, capture_output=True, text=True).stdout.strip())
        bring(importlib.metadata.Distribution.at(next(site.glob("ringmain-*.dist-info"))).requires, extra, site)
        return folder / "bin"

    return install


def output_of(*command: str | Path, code: int = 0) -> tuple[str, str]:
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == code, done.stderr
    return done.stdout, done.stderr


def test_the_library_needs_uvloop_only_and_the_command_says_what_it_needs(
    install: Install, certificates: Certificates
) -> None:
    installed = install("")
    site = next(installed.parent.glob("lib/python*/site-packages"))
    assert {path.name.partition("-")[0] for path in site.iterdir()} == {"ringmain", "uvloop"}
    out, err = output_of(installed / "python", "-c", LIBRARY, certificates.server, certificates.ca)
    assert err == ""
    assert out.splitlines() == [
        "by uvloop alone",
        "nics(): it needs psutil; pip install 'ringmain[cli]'",
        "self_signed=True: it needs cryptography; pip install 'ringmain[cli]'",
    ]
    for command in ([installed / "ringmain", "load", "tcp://:0"], [installed / "python", "-m", "ringmain", "--help"]):
        assert output_of(*command, code=2) == (
            "",
            "ringmain: the command cannot start: no module named 'click'; pip install 'ringmain[cli]'\n",
        )


def test_with_its_extra_the_command_does_all_it_can(install: Install, certificates: Certificates) -> None:
    installed = install("cli")
    assert output_of(installed / "ringmain", "--version") == (f"ringmain {ringmain.__version__}\n", "")
    assert "lo" in [
        json.loads(line)["name"] for line in output_of(installed / "ringmain", "nics", "--json")[0].splitlines()
    ]
    out, err = output_of(installed / "python", "-c", LIBRARY, certificates.server, certificates.ca)
    assert out.splitlines() == ["by uvloop alone", "list", "Loader"]
    assert "self-signed certificate" in err
    bare = output_of(installed / "ringmain", "load", "--connect", "tcp://127.0.0.1:1", code=7)
    assert bare[1].startswith("ringmain: ")


def test_a_click_that_others_brought_and_that_is_too_old_is_one_line() -> None:
    as_before_8_4 = (
        "import click, ringmain.__main__\nclick.ParamType = type('ParamType', (), {})\nringmain.__main__.main()"
    )
    assert output_of(sys.executable, "-c", as_before_8_4, code=2) == (
        "",
        "ringmain: the command cannot start: type 'ParamType' is not subscriptable; pip install 'ringmain[cli]'\n",
    )


def test_the_man_pages_have_all_options_and_man_shows_them_without_a_warning(packages: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(next(packages.glob("*.whl"))) as wheel:
        paths = [Path(wheel.extract(name, tmp_path)) for name in wheel.namelist() if name.endswith(".1")]
    for name, command in cli.commands.items():
        [page] = [it.read_text() for it in paths if it.name == f"ringmain-{name}.1"]
        for flag in (
            flag for it in command.params if not getattr(it, "hidden", False) for flag in it.opts if flag[:1] == "-"
        ):
            assert flag.replace("-", "\\-") in page, f"{name}: {flag}"
    man = peers.need("man")
    for path in paths:
        shown = subprocess.run(
            [man, "--warnings=w", "-l", path],
            capture_output=True,
            text=True,
            check=True,
            env=os.environ | {"LC_ALL": "C.UTF-8"},
        )
        assert shown.stderr == ""
        assert "EXIT STATUS" in shown.stdout


def test_the_wheel_needs_nothing_of_a_linux_that_is_not_everywhere(packages: Path) -> None:
    library("auditwheel")
    shown = subprocess.run(
        [sys.executable, "-m", "auditwheel", "show", next(packages.glob("*.whl"))], capture_output=True, text=True
    )
    assert shown.returncode == 0, shown.stderr
    told = " ".join(shown.stdout.split())
    assert re.search(r'is consistent with the following platform tag: "manylinux_2_\d+_\w+"', told), told
    assert "requires no external shared libraries" in told or "eliminating all external shared libraries" not in told, (
        told
    )
