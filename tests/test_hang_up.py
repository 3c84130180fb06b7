"""SIGHUP where a terminal sends it, and while we start; SIGUSR1, which asks for figures."""

import contextlib
import os
import pty
import re
import signal
import sys
import termios
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import peers
import pytest
from crews import Crew

# Takes standard input, a terminal, for its own, as a shell in a window does.
WITH_TERMINAL = f"""
import fcntl, os, sys
os.setsid()
fcntl.ioctl(0, {termios.TIOCSCTTY}, 0)
os.execv(sys.argv[1], sys.argv[1:])
"""
SERVICE: dict[str, Any] = {"start_new_session": True}


@contextlib.contextmanager
def terminal() -> Iterator[tuple[Any, Any]]:
    """Yield both sides of a terminal: what shows it, and what runs in it."""
    ours, theirs = pty.openpty()
    with os.fdopen(ours, "r+b", 0) as shown, os.fdopen(theirs, "r+b", 0) as used:
        yield shown, used


@pytest.mark.parametrize("how", ["hang-up", "signal"])
def test_a_terminal_that_hangs_up_ends_the_run_and_all_is_written(bench: peers.Bench, tmp_path: Path, how: str) -> None:
    port_file, file = tmp_path / "port", tmp_path / "log"
    with terminal() as (ours, theirs):
        command = [*peers.RINGMAIN, "load", "-O", str(file), "--port-file", str(port_file), "127.0.0.1:0"]
        loader = bench.start([sys.executable, "-c", WITH_TERMINAL, *command], stdin=theirs)
        theirs.close()
        peers.eventually(port_file.exists, "the port file")
        with peers.connect(int(port_file.read_text())) as sock:
            sock.sendall(b"acknowledged")
            peers.eventually(lambda: file.stat().st_size == 12, "what was sent")
            if how == "signal":
                loader.signal(signal.SIGHUP)
            else:
                ours.close()
            assert loader.wait() == 128 + signal.SIGHUP
    assert file.read_bytes() == b"acknowledged"


def test_a_signal_while_we_start_is_heard_once_there_is_a_run(bench: peers.Bench, tmp_path: Path) -> None:
    late = tmp_path / "late"
    late.mkdir()
    (late / "click.py").write_text(
        f"""
import os, sys, time
os.write(2, b'starting\\n')
while not os.path.exists({str(tmp_path / "go")!r}):
    time.sleep(0.01)
sys.path.remove({str(late)!r})
del sys.modules["click"]
import click
"""
    )
    environment = os.environ | {"PYTHONPATH": str(late)}
    loader = bench.ringmain("load", "127.0.0.1:0", env=environment, **SERVICE)
    loader.says("starting")
    loader.signal(signal.SIGHUP)
    loader.signal(signal.SIGUSR1)
    (tmp_path / "go").touch()
    loader.says("buffer 0%")
    assert loader.process.poll() is None
    loader.signal(signal.SIGTERM)
    assert loader.wait() == 143


FIGURES = r"(\S+ \S+)  0:\d\d:\d\d  in \S+ \S+/s  out \S+ \S+/s  buffer \d+%\n"


def figures_of(program: peers.Program, line: str, size: str) -> str:
    """Ask until the figures tell so much; return all that was written to standard error."""

    def told() -> bool:
        program.signal(signal.SIGUSR1)
        return any(found[1] == size for found in re.finditer(line, program.stderr))

    peers.eventually(told, lambda: f"{size} in {program.stderr!r}")
    return program.stderr


@pytest.mark.parametrize("quiet", [[], ["-q"]], ids=["", "quiet"])
def test_sigusr1_tells_figures_and_everything_goes_on(bench: peers.Bench, tmp_path: Path, quiet: list[str]) -> None:
    loader, port = bench.listening("load", "-o", *quiet, "-O", tmp_path / "log")
    with peers.connect(port) as sock:
        sock.sendall(bytes(3 << 20))
        told = figures_of(loader, FIGURES, "3.00 MiB")
        sock.sendall(b"and on")
    assert loader.wait() == 0
    assert re.fullmatch(rf"(listening on \S+\n)?({FIGURES})+", told)
    assert (tmp_path / "log").read_bytes() == bytes(3 << 20) + b"and on"


def test_a_saver_and_a_relay_tell_theirs(bench: peers.Bench) -> None:
    saver, there = bench.listening("save", "--listen", "-I", bench.file(bytes(3 << 20)))
    relay, port = bench.relaying(f"127.0.0.1:{there}")
    with peers.connect(port) as sock:
        size = 0
        while size < 3 << 20:
            size += len(sock.recv(1 << 16))
        figures_of(saver, FIGURES, "3.00 MiB")
        figures_of(
            relay, r"there \S+ \S+ at \S+ \S+/s  back (\S+ \S+) at \S+ \S+/s  0:\d\d:\d\d  buffer \d+%\n", "3.00 MiB"
        )
    for program in (saver, relay):
        program.signal(signal.SIGTERM)
        assert program.wait() == 143


def test_the_figures_of_several_processes_are_their_sums(bench: peers.Bench) -> None:
    crew = Crew(bench)
    with contextlib.ExitStack() as stack:
        for _ in range(2):
            sock = stack.enter_context(peers.connect(crew.port))
            sock.sendall((b"x" * 1023 + b"\n") * 1024)
        figures_of(crew.program, FIGURES, "2.00 MiB")
    crew.program.signal(signal.SIGTERM)
    assert crew.program.wait() == 143
