"""The example project: its workflow, run as written but for what only the hosting service can do.

Put in place of the service: a repository of two commits, a folder for RUNNER_TEMP, the base commit's id, a `python`
that is this one, and pip without an index, so that what is installed here has to satisfy the requirements. FAIL_AT is
not that of the workflow, since these tests run on machines that have other things to do: slower is tenfold, and what is
not may be as slow as it likes.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import peers
import pytest
from feeding import library
from hosted import Repository

EXAMPLE = Path(__file__).parent.parent / "examples" / "ci"
if not EXAMPLE.exists():
    pytest.skip("the examples are not beside these tests", allow_module_level=True)
yaml = library("yaml")
library("pytest_benchmark")

COUNTING = "            counts.update(event.event_type for event in events)\n"
SLOW_COUNTING = "            for _ in range(120):\n                Counter(event.event_type for event in events)\n"


def job() -> dict[str, Any]:
    workflow = yaml.safe_load((EXAMPLE / ".github" / "workflows" / "throughput.yml").read_text())
    [it] = workflow["jobs"].values()
    return dict(it)


class Project(Repository):
    """A copy of the example, in a repository with a base commit."""

    def __init__(self, folder: Path) -> None:
        ignored = shutil.ignore_patterns("__pycache__", ".pytest_cache", ".benchmarks")
        shutil.copytree(EXAMPLE, folder / "project", ignore=ignored)
        (folder / "bin").mkdir()
        python = folder / "bin" / "python"
        python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
        python.chmod(0o755)
        ours = {**job()["env"], "PATH": f"{python.parent}:{os.environ['PATH']}", "PIP_NO_INDEX": "1"}
        super().__init__(folder / "project", folder / "temp", **ours)

    def run_workflow(self, fail_at: str) -> dict[str, str]:
        """Run each step; return what they print, by their names."""
        return dict(self.run_steps(job()["steps"], FAIL_AT=fail_at))


@pytest.fixture
def project(tmp_path: Path) -> Project:
    peers.need("git")
    return Project(tmp_path)


def test_the_workflow_passes_where_nothing_has_become_slower(project: Project) -> None:
    (project.root / "README.md").write_text("changed")
    project.commit()
    printed = project.run_workflow(fail_at="min:10000%")
    assert "Requirement already satisfied: ringmain" in printed["Install"]
    assert "3 passed, 1 skipped" in printed["Test"]
    compared = printed["Measure this commit and compare"]
    assert "test_throughput (0001_base)" in compared
    assert "test_throughput (NOW)" in compared


def test_the_workflow_fails_at_a_parser_that_has_become_slower(project: Project) -> None:
    module = project.root / "src" / "event_counter.py"
    code = module.read_text()
    assert COUNTING in code
    module.write_text(code.replace(COUNTING, SLOW_COUNTING + COUNTING))
    project.commit()
    with pytest.raises(subprocess.CalledProcessError) as failed:
        project.run_workflow(fail_at="min:50%")
    assert "--benchmark-compare-fail" in failed.value.cmd
    assert "Performance has regressed" in failed.value.output


def test_hosted_steps_bring_the_code_with_its_history_and_a_python() -> None:
    hosted = {step["uses"].partition("@")[0]: step["with"] for step in job()["steps"] if "uses" in step}
    assert set(hosted) == {"actions/checkout", "actions/setup-python"}
    assert hosted["actions/checkout"] == {"fetch-depth": 0}
