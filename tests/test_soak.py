"""`make soak` itself: that all of it happens in a few seconds already, and that it finds what it looks for."""

import itertools
import os
import signal
import subprocess
import sys
from pathlib import Path

import peers
import pytest
import soak
from soaking import Broken, Feed, Heard, record

SOAK = [sys.executable, str(Path(__file__).with_name("soak.py")), "--seed", "7", "--minutes"]


def test_a_few_seconds_of_it_pass() -> None:
    done = subprocess.run([*SOAK, "0.1"], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    for event in ("clients of the load", "reopenings", "certificates", "losses of save --reconnect"):
        assert event in done.stdout
    for name in (
        "load, reopened",
        *(f"{verb} --reconnect{tls}" for verb in ("save", "relay") for tls in ("", ", TLS")),
    ):
        assert len([line for line in done.stdout.splitlines() if line.startswith(f"{name}  ")]) == 2
    assert done.stdout.endswith("every record has come, the right bytes by SHA-256\n")


def test_a_program_that_dies_fails_it(bench: peers.Bench) -> None:
    program = bench.start([*SOAK, "1"], stdout=subprocess.PIPE)

    def saver() -> int | None:
        children = Path(f"/proc/{program.process.pid}/task/{program.process.pid}/children").read_text().split()
        commands = {int(it): Path(f"/proc/{it}/cmdline").read_bytes().split(b"\0") for it in children}
        return next((pid for pid, words in commands.items() if b"save" in words), None)

    os.kill(peers.eventually(saver, "a save"), signal.SIGKILL)
    out, _ = program.process.communicate(timeout=peers.TIMEOUT + 60)
    assert program.wait() == 1
    assert b"FAILED  save --reconnect" in out


def test_what_is_missing_wrong_or_twice_is_found() -> None:
    heard = Heard("a", once=True)
    for number in range(3):
        heard.take(record("a", number))
    for line in (
        record("a", 4),
        record("a", 2),
        record("b", 3),
        record("a", 3)[:-2] + b"\n",
    ):
        with pytest.raises(Broken):
            heard.take(line)
    again = Heard("a", once=False)
    again.take(record("a", 0))
    again.take(record("a", 0))
    assert (again.count, again.twice) == (1, 1)


def test_records_that_have_not_come_are_found() -> None:
    feed, heard, sent = Feed("a"), Heard("a", once=True), []
    feed.send(sent.append, lambda: len(sent) == 1)
    for line in sent[0].splitlines(keepends=True)[:-1]:
        heard.take(line)
    with pytest.raises(Broken, match="40 records were sent, 39 came"):
        feed.check(heard)
    heard.take(record("a", 39))
    feed.check(heard)


@pytest.mark.parametrize(
    ("memory", "descriptors", "flat"),
    [
        ([50 << 20] * 100, [20, 21] * 50, True),
        ([(50 << 20) + it * (200 << 10) for it in range(100)], [20] * 100, False),
        ([50 << 20] * 100, list(range(100)), False),
        ([10 << 20] * 20 + [50 << 20] * 80, [5] * 20 + [20] * 80, True),  # until it has settled
    ],
    ids=["flat", "memory", "descriptors", "settles"],
)
def test_growth_is_found(memory: list[int], descriptors: list[int], flat: bool) -> None:
    watched = soak.Watched({"it": None})
    watched.samples["it"] = list(zip(memory, itertools.islice(itertools.cycle(descriptors), 100), strict=True))
    ((name, verdict, _),) = watched.rows(judged=True)
    assert (name, verdict) == ("it", flat)
