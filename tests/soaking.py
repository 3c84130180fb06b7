"""What `soak` does side by side: files that are reopened, certificates that are replaced, receivers that are lost."""

import collections
import contextlib
import hashlib
import itertools
import random
import signal
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peers
import trustme
from cryptography import x509
from losing import drained

FILLER = peers.payload(1500).hex().encode()
RATE = 2_000_000  # bytes a second of each stream
# How long a receiver that is lost has a connection, a client of the load has its own, and a file its name: seconds.
LIVES, VISITS, ROTATION = (0.5, 4.0), (1.0, 8.0), (1.0, 4.0)
# What a load says of a broken certificate.
STAY = "the certificates stay as they were"
# So long the first connection of a receiver takes nothing: what its sender keeps at the most, a ring say, it has from
# then on, and not only once a pause happens to be long.
STALL = 10.0


class Broken(Exception):  # noqa: N818 - what is found out here
    """What must not be."""


def record(name: str, number: int) -> bytes:
    """Return a line of any length that says whose it is and which."""
    return b"%s %d %s\n" % (name.encode(), number, FILLER[: number * 37 % len(FILLER)])


class Heard:
    """What has come of one stream: all records up to `count`, each with the bytes that it has to have."""

    def __init__(self, name: str, *, once: bool) -> None:
        self.name = name
        self.count = self.twice = 0
        self.digest = hashlib.sha256()
        self._once = once

    def take(self, line: bytes) -> None:
        """Take one more record, the next one; unless all come `once` an earlier one may come again."""
        number = int(line.split(b" ", 2)[1])
        if line != record(self.name, number):
            raise Broken(f"{self.name}: record {number} is not what was sent: {line[:80]!r}")
        if number > self.count or (self._once and number < self.count):
            raise Broken(f"{self.name}: record {number} came where {self.count} was due")
        if number < self.count:
            self.twice += 1
            return
        self.digest.update(line)
        self.count += 1


class Feed:
    """What is sent on one stream: records, with pauses."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.count = self.size = 0
        self.digest = hashlib.sha256()
        self.ended = False

    def send(self, write: Callable[[bytes], Any], over: Callable[[], bool]) -> None:
        """Write records until that is over."""
        began, before = time.monotonic(), self.size
        while not over():
            data = b"".join(record(self.name, self.count + it) for it in range(40))
            write(data)
            self.digest.update(data)
            self.count, self.size = self.count + 40, self.size + len(data)
            time.sleep(max(0.001, (self.size - before) / RATE - (time.monotonic() - began)))
        self.ended = True

    def check(self, heard: Heard) -> None:
        """Compare with what has come."""
        if (heard.count, heard.digest.hexdigest()) != (self.count, self.digest.hexdigest()):
            raise Broken(f"{self.name}: {self.count} records were sent, {heard.count} came")


class Soak:
    """What all parts have: a folder, an authority, what has happened, and whether it is over."""

    def __init__(self, bench: peers.Bench, seed: int, *, settles: bool) -> None:
        self.bench = bench
        self.settles = settles  # it goes on for long enough to tell what grows
        self.random = random.Random(seed)
        self.over = threading.Event()
        self.events: collections.Counter[str] = collections.Counter()
        self.bytes: collections.Counter[str] = collections.Counter()
        self.programs: dict[str, peers.Program] = {}
        self.authority = trustme.CA()
        self.ca = bench.folder / "ca.pem"
        self.authority.cert_pem.write_to_path(str(self.ca))
        self.certificate = bench.folder / "server.pem"
        self.replace_certificate()

    def replace_certificate(self) -> str:
        """Put another certificate with its key where the last one is, at once; return its serial number."""
        issued = self.authority.issue_cert("localhost", "127.0.0.1")
        self._put(issued.private_key_and_cert_chain_pem.bytes())
        return f"{x509.load_pem_x509_certificate(issued.cert_chain_pems[0].bytes()).serial_number:X}"

    def break_certificate(self) -> None:
        """Put half a one there."""
        self._put(self.certificate.read_bytes()[:500])

    def _put(self, pem: bytes) -> None:
        new = self.certificate.with_suffix(".new")
        new.touch(mode=0o600)
        new.write_bytes(pem)
        new.rename(self.certificate)

    def pause(self, between: tuple[float, float]) -> bool:
        """Wait for so long, by chance; tell whether it goes on."""
        return not self.over.wait(self.random.uniform(*between))


class Rotated:
    """A load that many clients send to, while its file is moved away and its certificate replaced."""

    name = "load, reopened"

    def __init__(self, soak: Soak, clients: int) -> None:
        self._soak = soak
        self._clients = clients
        self._log = soak.bench.folder / "log"
        self._numbers = itertools.count()
        self._sent: dict[str, Feed] = {}
        self._heard: dict[str, Heard] = {}
        self._visiting = clients
        self._moved: Path | None = None  # what is yet to be looked through
        options = ["--tls-auto", "--certfile", soak.certificate, "--reload-certificates", "1s", "--max-connections"]
        options += [clients + 8, "--gate", "queue", "--handshake-timeout", "60s", "--output", self._log]
        self._program, self._port = soak.bench.listening("load", *options, start_new_session=True)
        soak.programs[self.name] = self._program

    def work(self) -> list[Callable[[], None]]:
        """Return what is to be done side by side until it is over."""
        return [self._rotate, *(lambda tls=it % 2 == 1: self._visit(tls) for it in range(self._clients))]

    def _visit(self, tls: bool) -> None:
        """Be one client after the other."""
        try:
            while not self._soak.over.is_set():
                feed = Feed(f"client-{next(self._numbers)}")
                self._sent[feed.name] = feed
                until = time.monotonic() + self._soak.random.uniform(*VISITS)
                sock = peers.connect_tls(self._port, self._soak.ca) if tls else peers.connect(self._port)
                with sock:
                    feed.send(sock.sendall, lambda until=until: time.monotonic() > until or self._soak.over.is_set())
                    if isinstance(sock, ssl.SSLSocket):
                        sock.unwrap().close()
                    else:
                        sock.shutdown(socket.SHUT_WR)
                        peers.read_all(sock)
                self._soak.events["clients of the load"] += 1
                self._soak.bytes[self.name] += feed.size
        finally:
            self._visiting -= 1

    def _rotate(self) -> None:
        """Move the file away, have it reopened, and look through what was moved the time before."""
        while self._soak.pause(ROTATION):
            self._renew()
        peers.eventually(lambda: self._visiting == 0, "the end of all clients")
        self._renew()
        self._program.signal(signal.SIGTERM)
        if self._program.wait() != 128 + signal.SIGTERM:
            raise Broken(f"the load ended with {self._program.wait()}: {self._program.stderr[-500:]}")
        for path in filter(None, (self._moved, self._log)):
            self._take(path)
        if self._sent:
            raise Broken(f"{len(self._sent)} clients have not come whole: {min(self._sent)}")
        if self._soak.events["broken certificates"] and STAY not in self._program.stderr:
            raise Broken("a broken certificate was no warning")

    def _renew(self) -> None:
        serial = None
        if self._soak.random.random() < 0.2:
            self._soak.break_certificate()
            self._soak.events["broken certificates"] += 1
        else:
            serial = self._soak.replace_certificate()
            self._soak.events["certificates"] += 1
        moved = self._log.with_name(f"log.{self._soak.events['reopenings']}")
        self._log.rename(moved)
        self._program.signal(signal.SIGHUP)
        peers.eventually(self._log.exists, "the new file")
        self._soak.events["reopenings"] += 1
        if serial is not None:
            peers.eventually(lambda: self._serial() == serial, "the new certificate")
        if self._moved is not None:
            self._take(self._moved)
        self._moved = moved

    def _serial(self) -> str:
        """Return the serial number of the certificate that a new client is shown."""
        with peers.connect_tls(self._port, self._soak.ca) as sock:
            certificate = sock.getpeercert()
            return str(certificate["serialNumber"]).lstrip("0") if certificate else ""

    def _take(self, path: Path) -> None:
        """Look through a file that nothing more is written to, and remove it."""
        data = path.read_bytes()
        if data and not data.endswith(b"\n"):
            raise Broken(f"{path} ends within a record: {data[-80:]!r}")
        for line in data.splitlines(keepends=True):
            name = line.partition(b" ")[0].decode()
            self._heard.setdefault(name, Heard(name, once=True)).take(line)
        path.unlink()
        for name, feed in list(self._sent.items()):
            heard = self._heard.get(name)
            if feed.ended and heard is not None and heard.count >= feed.count:
                feed.check(heard)
                del self._sent[name], self._heard[name]


class Lossy:
    """A verb that connects again, to a receiver of ours that is lost each few seconds."""

    def __init__(self, soak: Soak, verb: str, *, tls: bool) -> None:
        self.name = f"{verb} --reconnect{', TLS' if tls else ''}"
        self._soak = soak
        self._feed = Feed(f"{verb}-{'tls' if tls else 'plain'}")
        self._heard = Heard(self._feed.name, once=False)
        self._stall = STALL if soak.settles else 0.0
        self._context: ssl.SSLContext | None = None
        if tls:
            self._context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            soak.authority.issue_cert("127.0.0.1").configure_cert(self._context)
        self._listener = socket.socket()
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 18)
        self._listener.bind(("127.0.0.1", 0))
        self._listener.listen()
        self._listener.settimeout(1.0)
        where = f"{'tcps' if tls else 'tcp'}://127.0.0.1:{self._listener.getsockname()[1]}"
        again = ["--reconnect", "--delimiter", r"\n"]
        self._port = 0
        if verb == "save":
            trust = ["--cafile", soak.ca] if tls else []
            self._program = soak.bench.ringmain("save", *again, *trust, where, stdin=subprocess.PIPE)
        else:
            trust = ["--destination-cafile", soak.ca] if tls else []
            self._program, self._port = soak.bench.relaying(where, "--one-way", "--listen-once", *again, *trust)
        soak.programs[self.name] = self._program

    def work(self) -> list[Callable[[], None]]:
        """Return what is to be done side by side until it is over."""
        return [self._send, self._receive]

    def _send(self) -> None:
        if self._port:
            with peers.connect(self._port) as sock:
                self._feed.send(sock.sendall, self._soak.over.is_set)
                sock.shutdown(socket.SHUT_WR)
                if peers.read_all(sock):
                    raise Broken("a one-way relay has answered")
        else:
            stdin = self._program.process.stdin
            assert stdin is not None
            self._feed.send(lambda data: (stdin.write(data), stdin.flush()), self._soak.over.is_set)
            stdin.close()
        self._soak.bytes[self.name] += self._feed.size
        if self._program.wait() != 0:
            raise Broken(f"{self.name} ended with {self._program.wait()}: {self._program.stderr[-500:]}")

    def _receive(self) -> None:
        with self._listener:
            while self._take_one():
                self._soak.events[f"losses of {self.name}"] += 1
        self._feed.check(self._heard)
        self._soak.events["records that came twice"] += self._heard.twice

    def _take_one(self) -> bool:
        """Take one connection for a while, and lose it, or the last one to its end; tell whether it was lost."""
        with self._accept() as raw:
            raw.settimeout(peers.TIMEOUT)
            sock = raw
            if self._context is not None:
                sock = self._context.wrap_socket(raw, server_side=True, suppress_ragged_eofs=False)
            with sock:
                self._soak.over.wait(self._stall)
                self._stall = 0.0
                until = time.monotonic() + self._soak.random.uniform(*LIVES)
                rest = b""
                while self._soak.over.is_set() or time.monotonic() < until:
                    chunk = sock.recv(1 << 16)
                    if not chunk:
                        if rest or not self._soak.over.is_set():
                            raise Broken(f"{self.name} ended early, or within a record: {rest[-80:]!r}")
                        return False
                    rest = self._hear(rest + chunk)
                self._hear(rest + drained(sock))
                if self._soak.random.random() < 0.5:
                    peers.close_with_reset(sock)
                return True

    def _accept(self) -> socket.socket:
        """Wait for the next connection for as long as there may be one."""
        until = time.monotonic() + peers.TIMEOUT
        while self._program.process.poll() is None and time.monotonic() < until:
            with contextlib.suppress(TimeoutError):
                return self._listener.accept()[0]
        raise Broken(f"{self.name} has not connected again: {self._program.stderr[-500:]}")

    def _hear(self, data: bytes) -> bytes:
        """Take the whole records; return what is left."""
        *whole, rest = data.split(b"\n")
        for line in whole:
            self._heard.take(line + b"\n")
        return rest
