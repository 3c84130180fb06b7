"""`make stress` itself: that it finds what fails at times, and that nothing of it runs on."""

import signal
import subprocess
import sys
from pathlib import Path

import peers

STRESS = [sys.executable, str(Path(__file__).with_name("stress.py"))]


def test_a_test_that_fails_in_one_round_is_in_the_table_with_its_seed(tmp_path: Path) -> None:
    flaky = tmp_path / "test_it.py"
    flaky.write_text(
        "def test_at_times(request):\n"
        "    assert request.config.getoption('randomly_seed') % 2 == 0, 'it was odd'\n"
        "def test_always(): pass\n"
    )
    command = STRESS + ["--rounds", "3", "--jobs", "2", "--seed", "10", "--reports", str(tmp_path / "reports")]
    done = subprocess.run(command + ["--", str(flaky)], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 1, done.stderr
    table = done.stdout.partition("3 of 3 rounds, 6 tests in all, 1 that failed\n")[2].splitlines()
    assert table[1].split() == ["test_it::test_at_times", "1", "of", "3", "11"]
    assert "it was odd" in (tmp_path / "reports" / "round-2-seed-11.txt").read_text()


def test_a_round_whose_pytest_breaks_is_a_failure_too(tmp_path: Path) -> None:
    breaks = tmp_path / "test_it.py"
    breaks.write_text("import os\ndef test_it(): os._exit(3)\n")
    command = STRESS + ["--rounds", "1", "--reports", str(tmp_path / "reports"), "--", str(breaks)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 1, done.stderr
    assert "(the round itself): pytest ended with 3" in done.stdout


def test_nothing_runs_on_when_it_is_interrupted(bench: peers.Bench, tmp_path: Path) -> None:
    test, children = tmp_path / "test_it.py", tmp_path / "children"
    test.write_text(
        "import os, pathlib, subprocess\n"
        "def test_it():\n"
        "    sleeper = subprocess.Popen(['sleep', '100'])\n"
        f"    with open({str(children)!r}, 'a') as file: file.write(f'{{os.getpid()}} {{sleeper.pid}}\\n')\n"
        "    sleeper.wait()\n"
    )
    command = STRESS + ["--rounds", "3", "--jobs", "2", "--reports", str(tmp_path / "reports"), "--", str(test)]
    program = bench.start(command)
    peers.eventually(lambda: children.exists() and children.read_text().count("\n") == 2, "two rounds side by side")
    threads = Path(f"/proc/{program.process.pid}/task").glob("*/children")
    own = [pid for thread in threads for pid in thread.read_text().split()]
    assert len(own) == 4, "two rounds and two loops that only compute"
    program.signal(signal.SIGTERM)
    assert program.wait() == 128 + signal.SIGTERM
    pids = [*own, *children.read_text().split()]
    peers.eventually(lambda: all(map(is_over, pids)), "the end of all")


def is_over(pid: str) -> bool:
    """Tell whether a process has ended, be it that nobody has asked for its exit code yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True
