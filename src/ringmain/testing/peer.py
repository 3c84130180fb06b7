"""A loader or a saver that listens beside a test, in a process of its own, and what became of its connections."""

import contextlib
import json
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ringmain.endpoint import Endpoint
from ringmain.errors import RingmainError, TimedOutError, UsageError

if TYPE_CHECKING:
    from typing_extensions import Buffer

_HOST = "127.0.0.1"
_TIMEOUT = 30.0
# How long a process that was told to end may take.
_GRACE = 5.0


class PeerConnection(NamedTuple):
    """What became of one connection to a peer.

    `verdict` is "ended" after a proper end, else "truncated" (TLS without close_notify), "reset", or "failed" where it
    was never ready for data, as after a TLS handshake that failed; then `error` says why in one line, and is None
    otherwise. `peer` is the address at the caller's side, "127.0.0.1:51234", and `tls` "TLSv1.3" or the like; both are
    None where the connection never got that far. `size` is how many bytes were received or sent; a lost client may have
    got fewer. `sha256` is the hexadecimal digest of what a loader received.
    """

    peer: str | None
    tls: str | None
    size: int
    verdict: str
    error: str | None
    sha256: str | None


class Peer:
    """Something to connect to, at `host` and `port`, or `endpoint` in one.

    It serves one client after another; those that come meanwhile wait connected.
    Under TLS `cafile` is the PEM file of the authority to trust, else None. `size` is how many bytes a saver sends to
    each client, 0 for a loader. Everything may be called from any thread, and while an event loop runs: only `wait`
    blocks.
    """

    def __init__(self, task: dict[str, Any], payload: bytes, cafile: str | None) -> None:
        self.host = str(task["host"])
        self.cafile = cafile
        self.size = len(payload) * int(task["times"])
        command = [sys.executable, "-P", "-m", "ringmain.testing._listener", json.dumps(task)]
        # A process group of its own: Ctrl-C at the terminal is for the tests, and they end it.
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, process_group=0)
        self._changed = threading.Condition()
        self._connections: list[PeerConnection] = []
        self._given = 0
        self._port: int | None = None
        self._over = False
        self._reader = threading.Thread(target=self._read, name="ringmain peer", daemon=True)
        self._reader.start()
        try:
            self._give(payload)
            self._until(lambda: self._port is not None, _TIMEOUT, "start a peer", "it does not listen")
        except BaseException:
            self.close()
            raise

    def __repr__(self) -> str:
        with self._changed:
            count = len(self._connections)
        state = "closed" if self._over else "listening"
        return f"<Peer {self.endpoint} {state}, {count} connection{'' if count == 1 else 's'} ended>"

    @property
    def port(self) -> int:
        """The port listened at."""
        assert self._port is not None
        return self._port

    @property
    def endpoint(self) -> str:
        """The endpoint as ringmain's functions and commands take it: "tcp://127.0.0.1:43211", or "tcps://" for TLS."""
        return str(Endpoint(self.host, str(self.port), self.cafile is not None))

    @property
    def connections(self) -> list[PeerConnection]:
        """The connections that have ended so far, in that order."""
        with self._changed:
            return list(self._connections)

    def wait(self, timeout: float = _TIMEOUT) -> PeerConnection:
        """Return the next connection once it has ended: the first one, at the next call the second, and so on.

        In a coroutine: `await asyncio.to_thread(peer.wait)`.

        timeout (30.0): seconds after which `ringmain.TimedOutError`, a TimeoutError, is raised if none has ended
        """
        with self._changed:
            count = self._given + 1
            what = f"wait for {self.endpoint}"
            self._until(lambda: len(self._connections) >= count, timeout, what, "no connection has ended")
            self._given = count
            return self._connections[count - 1]

    def close(self) -> None:
        """Listen no more and break off what is open; at the end of a test that happens by itself."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        try:
            self._process.wait(_GRACE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._reader.join()
        self._process.stdout.close()

    def _until(self, condition: Callable[[], bool], timeout: float, what: str, why: str) -> None:
        with self._changed:
            if not self._changed.wait_for(lambda: condition() or self._over, timeout):
                raise TimedOutError(what, f"{why} within {timeout:g} s", "does the other side close it?")
            if not condition():
                raise RingmainError(what, "its process has ended", "see standard error")

    def _give(self, payload: bytes) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # its end is noticed anyway
            self._process.stdin.write(payload)
            self._process.stdin.flush()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            row = json.loads(line)
            with self._changed:
                if "port" in row:
                    self._port = row["port"]
                else:
                    self._connections.append(PeerConnection(**row))
                self._changed.notify_all()
        with self._changed:
            self._over = True
            self._changed.notify_all()


class Peers:
    """Makes peers; `close`, which the fixture calls at the end of its scope, ends them all.

    Each lives in a process of its own, at a port that the system has chosen: any number of runs, and of workers of
    pytest-xdist, go on side by side, each with peers of its own.
    """

    def __init__(self) -> None:
        self._stack = contextlib.ExitStack()
        self._pems: tuple[str, str] | None = None
        self._made: list[Peer] = []

    def __repr__(self) -> str:
        return f"<Peers {', '.join(peer.endpoint for peer in self._made) or 'none yet'}>"

    def loader(self, *, tls: bool = False, digest: bool = True) -> Peer:
        """Return a peer that receives whatever the sender under test sends. It is up and listens.

        tls (False): with a certificate of a throw-away authority, for 127.0.0.1 and localhost
        digest (True): hash what comes; without, `sha256` is None, which is faster
        """
        return self._start("load", b"", 1, tls=tls, digest=digest)

    def saver(self, payload: "Buffer", *, times: int = 1, tls: bool = False) -> Peer:
        """Return a peer that sends each client, the receiver under test, the `payload`, and then ends.

        It is up and listens. What a client sends is read and dropped.

        times (1): how often in a row
        tls (False): as for `loader`
        """
        return self._start("save", memoryview(payload).tobytes(), times, tls=tls, digest=False)

    def close(self) -> None:
        """End all peers."""
        self._stack.close()
        self._made.clear()

    def _start(self, verb: str, payload: bytes, times: int, *, tls: bool, digest: bool) -> Peer:
        cafile, certfile = self._certificates() if tls else (None, None)
        task = {
            "verb": verb,
            "host": _HOST,
            "certfile": certfile,
            "payload_size": len(payload),
            "times": times,
            "digest": digest,
        }
        peer = Peer(task, payload, cafile)
        self._stack.callback(peer.close)
        self._made.append(peer)
        return peer

    def _certificates(self) -> tuple[str, str]:
        """Return the files of the authority, and of a key with the certificate that it gave out."""
        if self._pems is None:
            try:
                import trustme
            except ImportError as error:
                raise UsageError("a peer with TLS", "it needs trustme", "pip install 'ringmain[pytest]'") from error
            folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="ringmain-")))
            authority = trustme.CA()
            authority.cert_pem.write_to_path(str(folder / "ca.pem"))
            own = folder / "own.pem"
            own.touch(mode=0o600)
            own_pem = authority.issue_cert(_HOST, "localhost").private_key_and_cert_chain_pem
            own_pem.write_to_path(str(own))
            self._pems = str(folder / "ca.pem"), str(own)
        return self._pems
