"""A receiver that is lost again and again in mid-stream, and what each of its connections brought until then."""

import contextlib
import os
import random
import signal
import socket
import ssl
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import peers

# Little, so that a sender is soon behind: what is acknowledged to it goes no further than what is taken.
_RECEIVE_BUFFER = 32 << 10
# Takes so many bytes from its standard input into a file, and then stops itself: so whoever kills it knows what it has.
_TAKER = """
import os, signal, sys
left = int(sys.argv[1])
while left and (data := os.read(0, left)):
    os.write(1, data)
    left -= len(data)
os.kill(os.getpid(), signal.SIGSTOP)
"""


def check_parts(streams: list[bytes], data: bytes) -> None:
    """Each stream begins at or before where those before it ended, and together they are the data."""
    covered = 0
    for stream in streams:
        begin = data.rfind(stream, 0, covered + len(stream))
        assert begin >= 0, "a gap, or other bytes"
        covered = max(covered, begin + len(stream))
    assert covered == len(data)


def numbered(count: int, seed: int) -> list[bytes]:
    """Return records of many sizes that begin with their number and a colon."""
    rng = random.Random(seed)
    return [b"%d:%s" % (number, b"x" * rng.choice([0, 10, 300, 3000])) for number in range(count)]


def check_records(streams: list[bytes], records: list[bytes], delimiter: bytes) -> None:
    """Each stream begins with a whole one of the `numbered` records, at or before the next one; none is left out."""
    following = 0
    for stream in filter(None, streams):
        *whole, rest = stream.split(delimiter)
        first = int(whole[0].partition(b":")[0]) if whole else following
        assert first <= following
        assert whole == records[first : first + len(whole)]
        following = max(following, first + len(whole))
        if rest:
            assert (records[first + len(whole)] + delimiter).startswith(rest)
    assert following == len(records)


def listen_at(port: int) -> socket.socket:
    """Listen, also where connections were before."""
    listener = socket.create_server(("127.0.0.1", port))
    listener.settimeout(peers.TIMEOUT)  # who never comes fails the test
    return listener


class Losing:
    """Accept one connection after another at a port, lose `losses` of them, and take the next one to its end.

    How each is lost is left to chance: by a FIN, by a reset, by SIGKILL of the process that reads, before a byte was
    read, or before the handshake; some of them leave nobody who listens for a while. What our kernel has acknowledged
    is always taken before: its sender cannot know that it is not. `streams` are what each brought.
    """

    def __init__(self, losses: int, seed: int, context: ssl.SSLContext | None = None) -> None:
        self.port = peers.free_port()
        self.streams: list[bytes] = []
        self.ended_properly = False
        self._context = context
        self._random = random.Random(seed)
        self._listener = self._listen()
        self._executor = ThreadPoolExecutor(1)
        self._running = self._executor.submit(self._run, losses)

    def wait(self) -> None:
        """Wait until the last connection has ended, or raise what went wrong."""
        with self._executor:
            self._running.result(peers.TIMEOUT)

    def _listen(self) -> socket.socket:
        listener = socket.socket()
        listener.settimeout(peers.TIMEOUT)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER)
        listener.bind(("127.0.0.1", self.port))
        listener.listen()
        return listener

    def _run(self, losses: int) -> None:
        try:
            for _ in range(losses):
                self._lose_one()
            with self._accept() as raw, self._protected(raw) as sock:
                self.streams.append(peers.read_all(sock))
                self.ended_properly = True
        finally:
            self._listener.close()

    def _accept(self) -> socket.socket:
        sock, _ = self._listener.accept()
        sock.settimeout(peers.TIMEOUT)
        return sock

    def _protected(self, sock: socket.socket) -> socket.socket:
        if self._context is None:
            return sock
        return self._context.wrap_socket(sock, server_side=True, suppress_ragged_eofs=False)

    def _lose_one(self) -> None:
        how = self._random.choice(["fin", "reset", "without TLS" if self._context is not None else "kill"])
        with self._accept() as raw:
            if self._random.random() < 0.3:  # until the next one is to come
                self._listener.close()
            if how == "without TLS":
                peers.close_with_reset(raw)
            elif how == "kill":
                self.streams.append(self._read_by_process(raw) + drained(raw))
            else:
                sock = self._protected(raw)
                size = self._random.choice([0, self._random.randrange(100_000)])
                self.streams.append(_read(sock, size) + drained(sock))
                if how == "reset":
                    peers.close_with_reset(sock)
                sock.close()
        if self._listener.fileno() < 0:
            self._listener = self._listen()

    def _read_by_process(self, sock: socket.socket) -> bytes:
        command = [sys.executable, "-c", _TAKER, str(self._random.randrange(1, 100_000))]
        sock.setblocking(True)  # which the process shares
        with subprocess.Popen(command, stdin=sock, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            got: list[bytes] = []
            reader = threading.Thread(target=lambda: got.append(process.stdout.read()))
            reader.start()
            stat = Path(f"/proc/{process.pid}/stat")
            peers.eventually(
                lambda: stat.read_text().rpartition(")")[2].split()[0] == "T", "a process that has stopped"
            )
            os.kill(process.pid, signal.SIGKILL)
            reader.join()
        sock.settimeout(peers.TIMEOUT)
        return got[0]


def _read(sock: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size and (chunk := sock.recv(size - len(data))):
        data += chunk
    return data


def drained(sock: socket.socket) -> bytes:
    """Let our kernel acknowledge nothing more, and return what it had."""
    data = b""
    with contextlib.suppress(OSError):
        socket.socket.shutdown(sock, socket.SHUT_RDWR)
    with contextlib.suppress(OSError):  # TLS ends within a record then, and may have been reset
        while chunk := sock.recv(1 << 16):
            data += chunk
    return data
