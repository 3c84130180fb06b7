"""The gate of instruction counts: the same code passes to the instruction, a change that needs more fails by name."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import peers
import pytest

import ringmain

SOURCES = Path(__file__).parent.parent
NAME = "hand_out_a_block_and_take_it_back"
if not (SOURCES / "benchmarks" / "instructions.py").exists() or not (SOURCES / "ext").exists():
    pytest.skip("the benchmarks and the Cython sources are not beside these tests", allow_module_level=True)


@pytest.fixture(scope="module")
def baseline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    peers.need("valgrind")
    path = tmp_path_factory.mktemp("instructions") / "baseline.json"
    done = gate(path, "--update")
    assert done.returncode == 0, done.stderr
    return path


def gate(baseline: Path, *arguments: str, package: Path | None = None) -> "subprocess.CompletedProcess[str]":
    """Run the gate for one operation, of the installed package or another."""
    command = [sys.executable, "-m", "benchmarks.instructions", NAME, "--baseline", str(baseline), *arguments]
    environment = {**os.environ, "PYTHONPATH": str(package)} if package is not None else dict(os.environ)
    return subprocess.run(
        command, cwd=SOURCES, env=environment, capture_output=True, text=True, timeout=300, check=False
    )


def test_the_same_code_needs_the_same_instructions(baseline: Path) -> None:
    done = gate(baseline)
    assert done.returncode == 0, done.stdout
    _, then, now, ratio, verdict = done.stdout.splitlines()[1].split()
    assert float(then) == pytest.approx(float(now), rel=0.001)
    assert (ratio, verdict) == ("1.000", "ok")


def test_a_change_that_needs_more_fails(baseline: Path, tmp_path: Path) -> None:
    """The ring is built with a needless loop in it, and takes the place of the real one."""
    shutil.copytree(Path(ringmain.__file__).parent, tmp_path / "package" / "ringmain")
    for folder in ("ext", "src", "docs"):  # of the last two man pages are made
        shutil.copytree(SOURCES / folder, tmp_path / folder)
    for source in (tmp_path / "ext" / "ringmain").glob("*.pyx"):
        if source.stem != "_ring":
            source.unlink()
    source = tmp_path / "ext" / "ringmain" / "_ring.pyx"
    line = "        block.filled += size\n"
    assert source.read_text().count(line) == 1
    source.write_text(
        source.read_text().replace(line, f"{line}        for _ in range(20):\n            self.holds(1)\n")
    )
    shutil.copy(SOURCES / "setup.py", tmp_path)
    build = [sys.executable, "setup.py", "--quiet", "build_ext", "--build-lib", str(tmp_path / "package")]
    subprocess.run(build, cwd=tmp_path, capture_output=True, timeout=300, check=True)
    done = gate(baseline, package=tmp_path / "package")
    assert done.returncode == 1, done.stderr
    assert [done.stdout.splitlines()[1].split()[place] for place in (0, -1)] == [NAME, "MORE"]


def test_an_operation_that_the_baseline_lacks_is_told_and_not_judged(baseline: Path, tmp_path: Path) -> None:
    other = json.loads(baseline.read_text())
    other["instructions"] = {"something_else": 1.0}
    path = tmp_path / "other.json"
    path.write_text(json.dumps(other))
    done = gate(path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[1].split(maxsplit=4)[4] == "new: renew the baseline"


def test_a_baseline_of_other_tools_or_none_is_refused(baseline: Path, tmp_path: Path) -> None:
    other = json.loads(baseline.read_text())
    other["tools"]["compiler"] = "tcc"
    path = tmp_path / "other.json"
    path.write_text(json.dumps(other))
    for refused, words in ((path, "compiler tcc there"), (tmp_path / "none.json", "no baseline")):
        done = gate(refused)
        assert done.returncode == 2
        assert words in done.stderr
        assert "UPDATE=1" in done.stderr
        assert len(done.stderr.splitlines()) == 1


def test_without_valgrind_one_line_says_so(tmp_path: Path, baseline: Path) -> None:
    (tmp_path / "bin").mkdir()
    command = [sys.executable, "-m", "benchmarks.instructions", "--baseline", str(baseline), NAME]
    environment = {**os.environ, "PATH": str(tmp_path / "bin")}
    done = subprocess.run(command, cwd=SOURCES, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == ("instructions: valgrind is not installed; install it (Debian: apt-get install valgrind)\n")
