"""Instructions of the compiled core for each micro benchmark, counted by callgrind: a gate that no noise moves.

python -m benchmarks.instructions [NAME ...] [--baseline FILE] [--update]

Only what is executed inside ringmain's own modules counts, so that neither the interpreter nor the C library matters.
The counts depend on compiler, Cython and Python: the baseline keeps their versions, and refuses others. Exit code 0 if
nothing needs more instructions than in the baseline, 1 if something does, 2 if that cannot be told.
"""

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks.micro import WORKLOADS
from benchmarks.tables import aligned, say

BASELINE = Path(__file__).parent / "instructions.json"
# More than this is a regression. Runs of the same build differ by less than 0.1 %.
TOLERANCE = 0.01
TURNS = 200
# The first turns fill caches of the interpreter and make the ring's blocks.
WARM_UP = 20
# What nothing else calls: callgrind writes down what was counted so far each time that it is entered.
_MARK = "getppid"


class CannotTellError(Exception):
    """The counts cannot be had, or not be compared."""


def perform(names: list[str]) -> None:
    """Perform the workloads, each between two marks; this is what runs under callgrind."""
    for name in names:
        with ExitStack() as stack:
            turn = WORKLOADS[name](stack)
            for _ in range(WARM_UP):
                turn()
            os.getppid()
            for _ in range(TURNS):
                turn()
            os.getppid()


def count(names: list[str]) -> dict[str, float]:
    """Return the instructions of one operation of each workload; raise CannotTellError."""
    valgrind = shutil.which("valgrind")
    if valgrind is None:
        raise CannotTellError("valgrind is not installed; install it (Debian: apt-get install valgrind)")
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        command = [valgrind, "--tool=callgrind", f"--callgrind-out-file={out}", f"--dump-before={_MARK}"]
        command += [sys.executable, "-m", "benchmarks.instructions", "--perform", *names]
        environment = {**os.environ, "PYTHONHASHSEED": "0"}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600, check=False)
        if done.returncode:
            raise CannotTellError(f"valgrind failed: {done.stderr[-300:]}")
        parts = [out.with_name(f"out.{2 * number}") for number in range(1, len(names) + 1)]
        if not all(part.exists() for part in parts):
            raise CannotTellError(f"valgrind saw no calls of {_MARK}; is this Python built in an unusual way?")
        return {name: sum(_own_costs(part)) / TURNS for name, part in zip(names, parts, strict=True)}


def _own_costs(path: Path) -> Iterator[int]:
    """Yield the costs inside ringmain's modules, from a file in callgrind's format (valgrind's manual tells it)."""
    names: dict[str, str] = {}
    ours = inclusive = False
    for line in path.read_text().splitlines():
        if match := re.match(r"c?ob=(\(\d+\))(?: (.*))?", line):
            if match[2]:
                names[match[1]] = match[2]
            if line.startswith("ob="):
                ours = "/ringmain/_" in names[match[1]]
        elif line.startswith("calls="):
            inclusive = True  # the next line is what the callee took
        elif re.match(r"[\d+*-]", line):
            if ours and not inclusive:
                yield int(line.split()[1])
            inclusive = False


def tools() -> dict[str, str]:
    """Return the versions of what the counts depend on."""
    from ringmain import _ring

    comment = re.search(rb"GCC: \(.*?\) [\d.]+|clang version [\d.]+", Path(_ring.__file__).read_bytes())
    cython = next((name for name in sys.modules if name.startswith("_cython_")), "")
    return {
        "compiler": comment[0].decode() if comment else "unknown",
        "cython": cython.removeprefix("_cython_"),
        "python": ".".join(platform.python_version_tuple()[:2]),
        "machine": platform.machine(),
    }


def load_baseline(path: Path) -> dict[str, float]:
    """Return the counts of a baseline that was made with the same tools; raise CannotTellError."""
    try:
        baseline: dict[str, Any] = json.loads(path.read_text())
    except OSError as error:
        raise CannotTellError(f"no baseline {path}; make one: make bench-instructions UPDATE=1") from error
    here = tools()
    differing = [f"{name} {baseline['tools'][name]} there, {here[name]} here" for name in here]
    differing = [text for text, name in zip(differing, here, strict=True) if baseline["tools"][name] != here[name]]
    if differing:
        raise CannotTellError(
            f"baseline {path} was made with other tools: {'; '.join(differing)}; "
            "check out what to compare with, and make one with these: make bench-instructions UPDATE=1"
        )
    return dict(baseline["instructions"])


def judge(then: dict[str, float], now: dict[str, float]) -> bool:
    """Print how the counts compare; tell whether none has grown."""
    rows = [["instructions", "baseline", "now", "ratio", ""]]
    grown = False
    for name, found in now.items():
        if name not in then:
            rows.append([name, "-", f"{found:.1f}", "-", "new: renew the baseline"])
            continue
        ratio = found / then[name]
        words = "MORE" if ratio > 1 + TOLERANCE else "less: renew the baseline" if ratio < 1 - TOLERANCE else "ok"
        grown = grown or words == "MORE"
        rows.append([name, f"{then[name]:.1f}", f"{found:.1f}", f"{ratio:.3f}", words])
    say("\n".join(aligned(rows)))
    return not grown


def main() -> int:
    """Count, and compare or keep."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.instructions", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(WORKLOADS)}")
    parser.add_argument("--baseline", type=Path, default=BASELINE, metavar="FILE")
    parser.add_argument("--update", action="store_true", help="make the baseline anew")
    parser.add_argument("--perform", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    names = arguments.names or list(WORKLOADS)
    if unknown := set(names) - set(WORKLOADS):
        parser.error(f"no such workload: {', '.join(sorted(unknown))}")
    if arguments.perform:
        perform(names)
        return 0
    try:
        then = {} if arguments.update else load_baseline(arguments.baseline)
        now = count(names)
        if arguments.update:
            text = json.dumps({"tools": tools(), "instructions": now}, indent=1)
            arguments.baseline.write_text(text + "\n")
            say(f"wrote {arguments.baseline}")
            return 0
        return 0 if judge(then, now) else 1
    except CannotTellError as error:
        sys.stderr.write(f"instructions: {error}\n")
        return 2


if __name__ == "__main__":
    sys.exit(main())
