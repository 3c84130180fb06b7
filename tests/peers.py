"""Start the programs under test and their peers, and end them whatever happens."""

import contextlib
import fcntl
import hashlib
import json
import os
import random
import shutil
import socket
import ssl
import struct
import subprocess
import sys
import tempfile
import termios
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

RINGMAIN = [sys.executable, "-P", "-m", "ringmain"]
TIMEOUT = 60.0


def payload(size: int, seed: int = 1) -> bytes:
    """Return pseudo-random bytes, the same for the same seed."""
    return random.Random(seed).randbytes(size)


def sha256(data: bytes | Path) -> str:
    """Return the digest of bytes or of a file."""
    return hashlib.sha256(data if isinstance(data, bytes) else data.read_bytes()).hexdigest()


def eventually(condition: Callable[[], Any], what: str | Callable[[], str] = "a condition") -> Any:
    """Wait for a true value and return it; fail after TIMEOUT, with words that may be looked up then."""
    deadline = time.monotonic() + TIMEOUT
    while time.monotonic() < deadline:
        value = condition()
        if value:
            return value
        time.sleep(0.01)
    raise AssertionError(f"{what if isinstance(what, str) else what()} did not come true in {TIMEOUT} s")


_kept: list[socket.socket] = []


def free_port() -> int:
    """Return a port of the loopback that nothing listens at, and that nobody else is given until the test ends.

    A socket of ours is bound to it and does not listen: who asks for it by number may, with SO_REUSEADDR as all set it.
    Without that another run of the tests, or a connect, could have it before what this test starts.
    """
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind(("127.0.0.1", 0))
    _kept.append(sock)
    return int(sock.getsockname()[1])


def give_ports_back() -> None:
    """Close what `free_port` keeps."""
    while _kept:
        _kept.pop().close()


@contextlib.contextmanager
def full_backlog() -> Iterator[int]:
    """Yield a port that answers no SYN, because its backlog is full."""
    with socket.socket() as listener, contextlib.ExitStack() as stack:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(3):
            sock = stack.enter_context(socket.socket())
            sock.setblocking(False)
            sock.connect_ex(listener.getsockname())
        time.sleep(0.05)
        yield listener.getsockname()[1]


def is_connecting(port: int) -> bool:
    """Tell whether more connects to a full backlog are under way than `full_backlog` itself made."""
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(line[2].endswith(f":{port:04X}") and line[3] == "02" for line in lines) > 2


class Program:
    """A running program whose standard error is kept in a file."""

    def __init__(self, command: list[str], **popen: Any) -> None:
        self.log = tempfile.TemporaryFile()  # noqa: SIM115 - closed by close()
        popen.setdefault("stdin", subprocess.DEVNULL)
        popen.setdefault("stdout", subprocess.DEVNULL)
        self.process = subprocess.Popen(command, stderr=self.log, **popen)

    @property
    def stderr(self) -> str:
        return os.pread(self.log.fileno(), 1 << 20, 0).decode()

    def wait(self) -> int:
        return self.process.wait(TIMEOUT)

    def says(self, text: str) -> None:
        """Wait until it has written that to standard error; fail with what it has written, and how it ended."""
        eventually(
            lambda: text in self.stderr,
            lambda: f"{text!r} in {self.stderr!r} of a process that ended with {self.process.poll()}",
        )

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def memory(self, field: str = "VmHWM") -> int:
        """Return a figure of /proc/PID/status in bytes."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.split(f"{field}:")[1].split()[0]) * 1024

    def hears(self, number: int) -> None:
        """Send a signal, and wait until it is delivered: of two that are pending the later one may be handled first."""
        self.signal(number)
        status = Path(f"/proc/{self.process.pid}/status")

        def pending() -> int:
            return int(status.read_text().split("ShdPnd:")[1].split()[0], 16)

        eventually(lambda: not pending() & 1 << number - 1, "the signal to be delivered")

    def fd_count(self) -> int:
        return len(list(Path(f"/proc/{self.process.pid}/fd").iterdir()))

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        self.log.close()


def expect(program: Program, code: int, *words: str) -> None:
    """Check how a program ended, and that it said so in a line."""
    assert program.wait() == code, program.stderr
    assert "Traceback" not in program.stderr
    for word in words:
        assert word in program.stderr


class Bench:
    """Starts programs for one test, and ends them after it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.programs: list[Program] = []

    def start(self, command: list[str], **popen: Any) -> Program:
        program = Program(command, **popen)
        self.programs.append(program)
        return program

    def ringmain(self, *arguments: Any, **popen: Any) -> Program:
        """Start ringmain."""
        return self.start(RINGMAIN + [str(argument) for argument in arguments], **popen)

    def listening(self, verb: str, *arguments: Any, host: str = "127.0.0.1", **popen: Any) -> tuple[Program, int]:
        """Start a ringmain that listens at a free port; return it and the port."""
        return self._listening(verb, *arguments, f"tcp://{host}:0", **popen)

    def relaying(
        self, destination: str, *arguments: Any, scheme: str = "tcp", host: str = "127.0.0.1"
    ) -> tuple[Program, int]:
        """Start a relay that listens at a free port; return it and the port."""
        return self._listening("relay", *arguments, f"{scheme}://{host}:0", destination)

    def serving_measurements(
        self, *arguments: Any, scheme: str = "tcp", host: str = "127.0.0.1"
    ) -> tuple[Program, int]:
        """Start a server of `ringmain bench` that listens at a free port; return it and the port."""
        return self._listening("bench", "--server", *arguments, f"{scheme}://{host}:0")

    def _listening(self, *arguments: Any, **popen: Any) -> tuple[Program, int]:
        port_file = self.folder / f"port-{len(self.programs)}"
        program = self.ringmain(*arguments, "--port-file", port_file, **popen)

        def port() -> int | None:
            assert program.process.poll() is None, program.stderr
            return int(port_file.read_text().split()[0]) if port_file.exists() else None

        return program, eventually(port, "the port file")

    def file(self, data: bytes, name: str = "input") -> Path:
        path = self.folder / name
        path.write_bytes(data)
        return path


@contextlib.contextmanager
def bench(folder: Path) -> Iterator[Bench]:
    """Yield a Bench and end all that it started."""
    it = Bench(folder)
    try:
        yield it
    finally:
        for program in it.programs:
            program.close()


def need(name: str) -> str:
    """Return the path of a peer program; without it skip, or under CI fail."""
    path = shutil.which(name)
    if path is not None:
        return path
    if os.environ.get("CI") == "true":
        pytest.fail(f"{name} is not installed; `make test` installs it where it may")
    pytest.skip(f"{name} is not installed")


def dial_unix(path: Path | str) -> socket.socket:
    """Connect to a UNIX socket, once somebody listens there: its file comes before that."""
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(TIMEOUT)

    def connects() -> bool:
        with contextlib.suppress(FileNotFoundError, ConnectionRefusedError):
            sock.connect(str(path))
            return True
        return False

    try:
        eventually(connects, f"a listener at {path}")
    except BaseException:
        sock.close()
        raise
    return sock


def need_systemd(name: str) -> str:
    """Return the path of a program of systemd's; without it skip: `make test` does not install that."""
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"{name} is missing; systemd may replace what manages services here, so that is left to you")
    return path


def wait_for_port(port: int, host: str = "127.0.0.1") -> None:
    """Wait until something listens at a port, without connecting to it."""
    family = "tcp6" if ":" in host else "tcp"
    needle = f":{port:04X} "

    def listens() -> bool:
        lines = Path(f"/proc/net/{family}").read_text().splitlines()[1:]
        if family == "tcp":
            lines += Path("/proc/net/tcp6").read_text().splitlines()[1:]
        return any(needle in line.split(maxsplit=2)[1] + " " and line.split()[3] == "0A" for line in lines)

    eventually(listens, f"a listener at {port}")


def states(port: int) -> set[str]:
    """Return the states of all TCP sockets whose own port this is."""
    names = {
        "01": "ESTABLISHED",
        "04": "FIN_WAIT1",
        "06": "TIME_WAIT",
        "08": "CLOSE_WAIT",
        "09": "LAST_ACK",
        "0A": "LISTEN",
    }
    return {names.get(row[3], row[3]) for row in rows_of(port)}


def rows_of(port: int) -> list[list[str]]:
    """Return what the kernel tells of all TCP sockets whose own port this is, as /proc/net/tcp has it."""
    lines = Path("/proc/net/tcp").read_text().splitlines()[1:] + Path("/proc/net/tcp6").read_text().splitlines()[1:]
    return [row for line in lines if (row := line.split())[1].endswith(f":{port:04X}")]


def established(port: int) -> int:
    """Return how many ends of established connections a port has part in, on either side."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(row[3] == "01" and (row[1] + row[2]).count(f":{port:04X}") > 0 for row in rows)


def unacknowledged(sock: socket.socket) -> int:
    """Return how many bytes that were sent the peer's kernel has yet to acknowledge."""
    return int(struct.unpack("i", fcntl.ioctl(sock, termios.TIOCOUTQ, bytes(4)))[0])


def until_reset(sock: socket.socket) -> None:
    """Take what comes until a reset; fail where it ends properly."""
    with pytest.raises(ConnectionResetError):
        while sock.recv(100):
            pass
        raise AssertionError("it ended properly")


def rows_in(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a stats file so far."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def connect(port: int, host: str = "127.0.0.1", timeout: float = TIMEOUT) -> socket.socket:
    """Return a plain socket that is connected."""
    return socket.create_connection((host, port), timeout)


def connect_tls(port: int, ca: Path, host: str = "127.0.0.1", version: str | None = None) -> ssl.SSLSocket:
    """Return a TLS socket that is connected and has verified its peer."""
    context = ssl.create_default_context(cafile=str(ca))
    if version is not None:
        context.minimum_version = context.maximum_version = ssl.TLSVersion[f"TLSv{version.replace('.', '_')}"]
    return context.wrap_socket(connect(port, host), server_hostname="localhost", suppress_ragged_eofs=False)


def hello() -> bytes:
    """Return what a client of TLS says first."""
    outgoing = ssl.MemoryBIO()
    client = ssl.create_default_context().wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="localhost")
    with contextlib.suppress(ssl.SSLWantReadError):
        client.do_handshake()
    return outgoing.read()


def unread(file: Any) -> int:
    """Return how many bytes wait in the kernel to be read: at a socket, or at either end of a pipe."""
    return int(struct.unpack("i", fcntl.ioctl(file.fileno(), termios.FIONREAD, bytes(4)))[0])


def unread_at(port: int) -> int:
    """Return how many bytes wait in the kernel to be read by those who accepted a connection at this port."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    queues = [row[4] for row in rows if row[1].endswith(f":{port:04X}") and row[3] != "0A"]
    return sum(int(queue.partition(":")[2], 16) for queue in queues)


def close_with_reset(sock: socket.socket) -> None:
    """Close with RST."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def ends_in_reset(sock: socket.socket) -> bool:
    """Wait for the end of what the other side sends; tell whether it is a reset."""
    try:
        while sock.recv(1 << 16):
            pass
    except ConnectionResetError:
        return True
    return False


def is_reset(port: int, data: bytes = b"") -> bool:
    """Connect, send, and wait for the end; tell whether it is a reset, which may be faster than each of these."""
    try:
        with connect(port) as sock:
            sock.sendall(data)
            return ends_in_reset(sock)
    except (ConnectionResetError, BrokenPipeError):
        return True


def send_no_more(sock: socket.socket) -> None:
    """Send FIN, unless the other side has reset the connection by now."""
    with contextlib.suppress(OSError):  # ENOTCONN
        sock.shutdown(socket.SHUT_WR)


def read_all(sock: socket.socket) -> bytes:
    """Read to the end."""
    chunks = []
    while chunk := sock.recv(1 << 16):
        chunks.append(chunk)
    return b"".join(chunks)


def send_in_thread(port: int, *parts: bytes) -> threading.Thread:
    """Send each part over a connection of its own, one after another."""

    def send() -> None:
        for part in parts:
            with connect(port) as sock:
                sock.sendall(part)

    thread = threading.Thread(target=send)
    thread.start()
    return thread
