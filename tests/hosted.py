"""The steps of a hosted workflow, run as written but for what only the service can do, in a repository of our own."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import peers

_BASE_SHA = "${{ github.event.pull_request.base.sha }}"
_ME = {f"GIT_{who}_{what}": "me@example.org" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}


class Repository:
    """A folder as a repository with one commit, which is the base commit too. `environment` is that of its steps."""

    def __init__(self, root: Path, temp: Path, **environment: str) -> None:
        """`temp` stands for RUNNER_TEMP."""
        self.root, self.temp = root, temp
        temp.mkdir()
        self.environment = {**os.environ, **_ME, **environment, "RUNNER_TEMP": str(temp)}
        self.run("git init --quiet . && git add --all && git commit --quiet --message=base")
        self.base = self.run("git rev-parse HEAD").strip()

    def commit(self) -> None:
        """Commit what has been changed."""
        self.run("git commit --quiet --all --message=changed")

    def run(self, command: str, **environment: str) -> str:
        """Return what a command prints; raise CalledProcessError where it fails."""
        done = subprocess.run(
            ["bash", "-e", "-c", command],
            cwd=self.root,
            env=self.environment | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=8 * peers.TIMEOUT,
        )
        if done.returncode:
            raise subprocess.CalledProcessError(done.returncode, command, done.stdout)
        return done.stdout

    def run_steps(self, steps: list[dict[str, Any]], **environment: str) -> Iterator[tuple[str, str]]:
        """Run one after another; yield its name and what it prints."""
        for step in steps:
            if "uses" in step:
                continue
            its = {name: value.replace(_BASE_SHA, self.base) for name, value in step.get("env", {}).items()}
            assert "${{" not in "".join([step["run"], *its.values()])
            yield step.get("name", ""), self.run(step["run"], **{**environment, **its})
