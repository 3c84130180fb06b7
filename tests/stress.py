"""Run the whole suite many times over on a busy machine: what fails in one round of ten is a fault all the same.

Each round has an order of its own, from a seed that is shown; two processes that only compute run beside it, and tests
come late with what they do, see hesitant.py. The table at the end tells which tests failed, and in which rounds; what
each round printed is kept in a folder. `make stress` runs it; what follows `--` goes to pytest.
"""

import argparse
import collections
import concurrent.futures
import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, NoReturn

ROOT = Path(__file__).parent.parent
BUSY_LOOPS = 2
# Ends by itself when whoever started it is gone, however that came.
BUSY_LOOP = "import os\nparent = os.getppid()\nwhile os.getppid() == parent:\n    sum(range(100_000))"
# The round failed, and no test says so: pytest itself broke, or was killed, or found nothing to run.
THE_ROUND = "(the round itself)"


class Round(NamedTuple):
    """What became of one round: how its tests ended, and the first line of what each failure says."""

    seed: int
    report: Path
    tests: int
    skipped: int
    failures: dict[str, str]
    seconds: float


class Rounds:
    """The rounds that are running, so that they can be ended."""

    def __init__(self, reports: Path, arguments: list[str]) -> None:
        self._reports = reports
        self._arguments = arguments
        self._lock = threading.Lock()
        self._running: set[subprocess.Popen[bytes]] = set()
        self._over = False

    def run(self, number: int, seed: int) -> Round | None:
        """Run the suite once; None if it was ended before it was through."""
        report = self._reports / f"round-{number}-seed-{seed}.txt"
        since = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="ringmain-stress-") as folder, report.open("wb") as output:
            results = Path(folder, "results.xml")
            command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "tests.hesitant"]
            command += [f"--randomly-seed={seed}", f"--basetemp={folder}/tests", f"--junit-xml={results}"]
            command += self._arguments
            with self._lock:
                if self._over:
                    return None
                # A session of its own: what a test has left running ends with it.
                process = subprocess.Popen(
                    command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
                )
                self._running.add(process)
            os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # not reaped yet: the number is still its own
            with self._lock:
                kill(process)
                code = process.wait()
                self._running.discard(process)
                if self._over:
                    return None
            return judged(seed, report, results, code, time.monotonic() - since)

    def end(self) -> None:
        """Kill the rounds that are running, and let no other begin."""
        with self._lock:
            self._over = True
            for process in self._running:
                kill(process)


def kill(process: subprocess.Popen[bytes]) -> None:
    """Kill a round with all that it has started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def judged(seed: int, report: Path, results: Path, code: int, seconds: float) -> Round:
    """Read what pytest tells of a round that is over."""
    failures: dict[str, str] = {}
    tests = skipped = 0
    # A round that was killed, or whose pytest broke, leaves no file or half of one.
    with contextlib.suppress(FileNotFoundError, ElementTree.ParseError):
        for case in ElementTree.parse(results).iter("testcase"):
            tests += 1
            skipped += case.find("skipped") is not None
            for result in (*case.iter("failure"), *case.iter("error")):
                name = f"{case.get('classname', '')}::{case.get('name', '')}"
                failures.setdefault(name, (result.get("message") or "").partition("\n")[0])
    if code != 0 and not failures:
        failures[THE_ROUND] = f"pytest ended with {code}"
    return Round(seed, report, tests, skipped, failures, seconds)


@contextlib.contextmanager
def busy_machine() -> Iterator[None]:
    """Keep processors busy meanwhile."""
    loops = [subprocess.Popen([sys.executable, "-c", BUSY_LOOP]) for _ in range(BUSY_LOOPS)]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


def told(number: int, it: Round) -> None:
    """Say how a round went."""
    verdict = f"{len(it.failures)} FAILED" if it.failures else "passed"
    say(f"round {number}, seed {it.seed}: {verdict}, {it.tests} tests ({it.skipped} skipped), {it.seconds:.0f} s")
    for name, why in it.failures.items():
        say(f"    {name}: {why[:150]}")


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def summed_up(done: list[Round], wanted: int, reports: Path) -> int:
    """Show the table of failures; return the exit code."""
    failed: collections.defaultdict[str, list[int]] = collections.defaultdict(list)
    for it in done:
        for name in it.failures:
            failed[name].append(it.seed)
    say(f"\n{len(done)} of {wanted} rounds, {sum(it.tests for it in done)} tests in all, {len(failed)} that failed")
    if failed:
        width = max(map(len, failed))
        say(f"{'test':{width}}  rounds failed  seeds")
        for name, seeds in sorted(failed.items(), key=lambda it: (-len(it[1]), it[0])):
            say(f"{name:{width}}  {len(seeds):>6} of {len(done):<3}  {', '.join(map(str, seeds))}")
        say(f"the rounds' output is in {reports}; the same again:")
        say("    make test WORKERS=0 PYTEST_ARGS='-p tests.hesitant --randomly-seed=SEED'")
    return 1 if failed or len(done) < wanted else 0


def interrupted(number: int, _: object) -> NoReturn:
    sys.exit(128 + number)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=10, help="how often the suite is run")
    parser.add_argument("--jobs", type=int, default=1, help="how many rounds run side by side")
    parser.add_argument("--seed", type=int, help="of the first round; the others follow from it")
    parser.add_argument("--reports", type=Path, default=ROOT / "build" / "stress", help="emptied, then written to")
    parser.add_argument("arguments", nargs="*", help="for pytest")
    options = parser.parse_args()
    if options.rounds < 1 or options.jobs < 1:
        parser.error("--rounds and --jobs are at least 1")
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupted)
    first = random.randrange(1 << 31) if options.seed is None else options.seed
    shutil.rmtree(options.reports, ignore_errors=True)
    options.reports.mkdir(parents=True)
    say(f"Python {sys.version.split()[0]}, {options.rounds} rounds, {options.jobs} side by side, first seed {first}")
    rounds, done = Rounds(options.reports, options.arguments), []
    with busy_machine(), concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
        try:
            work = {pool.submit(rounds.run, it, first + it - 1): it for it in range(1, options.rounds + 1)}
            for future in concurrent.futures.as_completed(work):
                if (it := future.result()) is not None:
                    told(work[future], it)
                    done.append(it)
        finally:
            rounds.end()
            code = summed_up(done, options.rounds, options.reports)
    return code


if __name__ == "__main__":
    sys.exit(main())
