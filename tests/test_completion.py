"""Completion in zsh and fish, as somebody who types sees it; bash: `test_help`."""

import fcntl
import os
import pty
import select
import struct
import sys
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import peers
import pyte
import pytest

SHELLS = {
    "zsh": (["zsh", "-f", "-i"], "autoload -U compinit; compinit -u"),
    "fish": (["fish", "--no-config", "-i"], "true"),
}


class Typing:
    """A shell in a terminal."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._screen = pyte.Screen(150, 24)
        self._stream = pyte.ByteStream(self._screen)

    def until(self, shown: Callable[[str], bool]) -> None:
        """Wait until the terminal shows something."""
        deadline = time.monotonic() + peers.TIMEOUT
        while not shown(text := "\n".join(self._screen.display)):
            assert time.monotonic() < deadline, text
            if select.select([self._fd], [], [], 0.1)[0]:
                self._stream.feed(os.read(self._fd, 4096))

    def type(self, keys: str) -> None:
        os.write(self._fd, keys.encode())


@contextmanager
def shell(name: str, folder: Path) -> Iterator[Typing]:
    command = Path(sys.executable).with_name("ringmain")
    if not command.exists():
        pytest.skip("the entry point is installed elsewhere")
    peers.need(name)
    arguments, before = SHELLS[name]
    pid, fd = pty.fork()
    if pid == 0:
        path = f"{command.parent}:{os.environ['PATH']}"
        os.chdir(folder)
        os.execvpe(arguments[0], arguments, {"PATH": path, "TERM": "xterm", "HOME": str(folder), "LC_ALL": "C.UTF-8"})
    fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 150, 0, 0))
    try:
        it = Typing(fd)
        it.type(f'{before}; eval "$(_RINGMAIN_COMPLETE={name}_source ringmain)"; clear; echo de""fined\r')
        it.until(lambda text: text.startswith("defined"))
        yield it
    finally:
        os.kill(pid, 9)
        os.close(fd)
        os.waitpid(pid, 0)


@pytest.mark.parametrize("name", SHELLS)
def test_a_shell_completes_verbs_options_files_and_endpoints(tmp_path: Path, name: str) -> None:
    (tmp_path / "only-one.ndjson").touch()
    line = "ringmain "
    with shell(name, tmp_path) as it:
        it.type(line)
        for typed, completed in (
            ("lo", "load "),
            ("--listen-o", "--listen-once "),
            ("--output only", "--output only-one.ndjson "),
            ("tcps://1", "tcps://127.0.0.1:"),
        ):
            line += completed
            it.type(f"{typed}\t")
            it.until(lambda text, line=line: line.rstrip() in text)
        it.type("\x15ringmain relay --gate q\t")
        it.until(lambda text: "ringmain relay --gate queue" in text)
