"""The workflow that guards our own benches, run as written but for what only the hosting service can do, and in small.

Put in place of the service: a repository, a folder for RUNNER_TEMP, and the base commit's id. What `make` would install
is there already: the package under test, for both commits.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import peers
import pytest
from feeding import library
from hosted import Repository

ROOT = Path(__file__).parent.parent
WORKFLOW = ROOT / ".github" / "workflows" / "gate.yml"
if not WORKFLOW.exists() or not (ROOT / "ext").exists():
    pytest.skip("the workflow and the sources are not beside these tests", allow_module_level=True)
yaml = library("yaml")

SMALL = {
    "OPERATIONS": "hand_out_a_block_and_take_it_back",
    "RINGMAIN_BENCH_TIME": "20ms",
    "RINGMAIN_BENCH_OMIT": "10ms",
    "RINGMAIN_BENCH_ROUNDS": "3",
    "RINGMAIN_BENCH_NOISE_THRESHOLD": "99%",
}


def job(name: str) -> dict[str, Any]:
    return dict(yaml.safe_load(WORKFLOW.read_text())["jobs"][name])


class Project(Repository):
    """The sources in a repository with one commit, which is the base commit too."""

    def __init__(self, folder: Path) -> None:
        ignored = shutil.ignore_patterns(".*", "__pycache__", "build", "*.so", "*.egg-info", "tests", "examples")
        shutil.copytree(ROOT, folder / "project", ignore=ignored)
        super().__init__(folder / "project", folder / "temp")
        self.install(self.root)

    def install(self, where: Path) -> None:
        """Give a checkout what `make` would: a venv that has the package, and is newer than its sources."""
        programs = where / ".venv" / "bin"
        programs.mkdir(parents=True)
        for name, arguments in (("python", ""), ("ringmain", "-m ringmain ")):
            program = programs / name
            program.write_text(f'#!/bin/sh\nexec "{sys.executable}" {arguments}"$@"\n')
            program.chmod(0o755)
        for name in ("made", "installed", "benching"):
            (programs.parent / name).touch()

    def run_job(self, name: str) -> str:
        """Run the steps of a job; return what they print."""
        it, printed = job(name), []
        for _, text in self.run_steps(it["steps"], **{**it.get("env", {}), **SMALL}):
            printed.append(text)
            if (self.temp / "base").exists() and not (self.temp / "base" / ".venv").exists():
                self.install(self.temp / "base")
        return "".join(printed)


@pytest.fixture
def project(tmp_path: Path) -> Project:
    for program in ("git", "make", "valgrind"):
        peers.need(program)
    return Project(tmp_path)


def test_instructions_are_compared_with_those_of_the_base_commit(project: Project) -> None:
    printed = project.run_job("instructions")
    assert printed.splitlines()[-1].split()[0] == SMALL["OPERATIONS"]
    assert printed.splitlines()[-1].split()[-2:] == ["1.000", "ok"]
    # What needs more than at the base commit fails.
    path = project.temp / "base" / "benchmarks" / "instructions.json"
    baseline = json.loads(path.read_text())
    baseline["instructions"][SMALL["OPERATIONS"]] /= 2
    path.write_text(json.dumps(baseline))
    with pytest.raises(subprocess.CalledProcessError) as failed:
        project.run(job("instructions")["steps"][-1]["run"], **SMALL)
    assert "MORE" in failed.value.output


def test_throughput_is_compared_with_that_of_the_base_commit(project: Project) -> None:
    printed = project.run_job("throughput")
    assert "\nverdict: " in printed
    tests = json.loads((project.temp / "base.json").read_text())["tests"]
    assert len(tests) == 8
    assert all(len(it["rounds"]) == 3 for it in tests.values())
    [kept] = [step["with"] for step in job("throughput")["steps"] if step.get("uses", "").startswith("actions/upload")]
    report = Path(kept["path"].replace("${{ runner.temp }}", str(project.temp)))
    assert all(name in report.read_text() for name in tests)


@pytest.mark.parametrize("name", ["instructions", "throughput"])
def test_hosted_steps_bring_the_code_with_its_history_and_a_python(name: str) -> None:
    hosted = {step["uses"].partition("@")[0]: step["with"] for step in job(name)["steps"] if "uses" in step}
    assert hosted["actions/checkout"] == {"fetch-depth": 0}
    assert "python-version" in hosted["actions/setup-python"]
