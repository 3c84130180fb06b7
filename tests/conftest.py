"""Fixtures, and what every test is held to: no descriptor leaked, no block lent, no process left."""

import asyncio
import ctypes
import fcntl
import gc
import importlib.util
import os
import signal
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import peers
import pytest
import trustme
import uvloop

from ringmain._ring import Ring

# A pytest that a test starts is a run of its own, also when this one is a worker of another.
for _name in [name for name in os.environ if name.startswith("PYTEST_XDIST_")]:
    del os.environ[_name]

# So is a make that a test starts, also where make runs the tests: as a part of that it would say where it is.
for _name in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS"):
    os.environ.pop(_name, None)

# What a test starts must hear of the signals that it sends, also where the run itself was told to hear none: a shell
# without a terminal lets what it starts in the background ignore SIGINT, nohup lets it ignore SIGHUP.
for _number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGTERM):
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, signal.default_int_handler if _number == signal.SIGINT else signal.SIG_DFL)

# readline, once something imports it, puts these into the environment of what is started, past os.environ.
if importlib.util.find_spec("readline") is not None:
    importlib.import_module("readline")
for _name in ("COLUMNS", "LINES"):
    os.environ.pop(_name, None)
    os.unsetenv(_name)

if TYPE_CHECKING:
    import brokers
    import conforming
    import scraping

_CLONE_NEWNET = 0x40000000  # <linux/sched.h>
_SIOCSIFFLAGS = 0x8914  # <linux/sockios.h>
_IFF_UP = 1  # <net/if.h>


def _have_a_network_of_our_own() -> None:
    """Leave the machine's network for one with a loopback only, where we may: root may.

    A port that a test has closed is free: another run of the tests, or another worker of this one, may be given it
    while who was connected to the first still tries to come back.
    """
    if ctypes.CDLL(None).unshare(_CLONE_NEWNET) == 0:
        with socket.socket() as sock:
            fcntl.ioctl(sock, _SIOCSIFFLAGS, struct.pack("16sh22x", b"lo", _IFF_UP))


_have_a_network_of_our_own()


# For tests that forget what they have opened: of the objects in a cycle the collector finalizes whichever it likes
# first. A socket that it comes to before its owner warns before it closes itself.
FORGOTTEN = pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")


# What the fixture `run` gives.
Run = Callable[[Coroutine[Any, Any, Any]], Any]


class Certificates(NamedTuple):
    ca: Path
    server: Path
    client: Path
    stranger: Path
    stranger_ca: Path


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    folder = tmp_path_factory.mktemp("certificates")

    def write(authority: trustme.CA, name: str, *hosts: str) -> Path:
        path = folder / name
        authority.issue_cert(*hosts).private_key_and_cert_chain_pem.write_to_path(str(path))
        path.chmod(0o600)
        return path

    authority, other = trustme.CA(), trustme.CA()
    authority.cert_pem.write_to_path(str(folder / "ca.pem"))
    other.cert_pem.write_to_path(str(folder / "stranger_ca.pem"))
    return Certificates(
        folder / "ca.pem",
        write(authority, "server.pem", "localhost", "127.0.0.1", "::1"),
        write(authority, "client.pem", "client@example.org"),
        write(other, "stranger.pem", "localhost", "127.0.0.1"),
        folder / "stranger_ca.pem",
    )


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[peers.Bench]:
    with peers.bench(tmp_path) as it:
        yield it


@pytest.fixture(scope="session", autouse=True)
def first_loop() -> None:
    """Run a loop once: libuv keeps a pipe for signals from the first one on, which is no leak."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(asyncio.sleep(0))


def open_descriptors() -> set[Path]:
    return set(Path("/proc/self/fd").iterdir())


# A test looks through so many objects at the most: those of the modules alone are hundreds of thousands.
LOOKED_THROUGH = 20_000


def lent_blocks() -> int:
    """Return how many blocks of all the rings there are have views that live."""
    objects = gc.get_objects()
    lent, looked_through = sum(it.lent for it in objects if isinstance(it, Ring)), len(objects)
    del objects  # or it keeps alive what is to be collected
    if lent == 0 and looked_through > LOOKED_THROUGH:
        gc.collect()
        gc.freeze()  # what lives on, a library that was imported say, is not listed again
    return lent


@pytest.fixture(autouse=True)
def nothing_is_left_behind() -> Iterator[None]:
    descriptors, lent = open_descriptors(), lent_blocks()
    yield
    peers.give_ports_back()
    if len(open_descriptors()) > len(descriptors) or lent_blocks() > lent:
        for thread in threading.enumerate():
            if thread.name == "ringmain-pump":  # it lets go of its loop a moment after its last pump is over
                thread.join(peers.TIMEOUT)
        gc.collect()  # which takes its time: only where something may be left in a cycle
    after = open_descriptors()
    assert len(after) <= len(descriptors), f"descriptors leaked: {[str(it.readlink()) for it in after - descriptors]}"
    # Threads of Arrow, say, let go of what they have parsed a moment after who asked has it.
    peers.eventually(lambda: lent_blocks() <= lent, "that no block is lent")


@pytest.fixture(params=[uvloop.new_event_loop, asyncio.new_event_loop], ids=["uvloop", "asyncio"])
def run(request: pytest.FixtureRequest) -> Callable[[Coroutine[Any, Any, Any]], Any]:
    """Run a coroutine on uvloop, and on asyncio's own loop; fail if the loop's exception handler was called."""

    def run_it(coroutine: Coroutine[Any, Any, Any], limit: float = 120.0) -> Any:
        complaints: list[dict[str, Any]] = []

        async def watched() -> Any:
            asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
            async with asyncio.timeout(limit):
                return await coroutine

        with asyncio.Runner(loop_factory=request.param) as runner:
            result = runner.run(watched())
        assert not complaints
        return result

    return run_it


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """Give a socket that listens; who never comes fails the test."""
    with socket.create_server(("127.0.0.1", 0)) as it:
        it.settimeout(peers.TIMEOUT)
        yield it


@pytest.fixture
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let those who dial again after a loss do so soon."""
    monkeypatch.setattr("ringmain.net.redial._LONGEST_PAUSE", 0.05)
    monkeypatch.setattr("ringmain.flow.clients._GRACE", 0.2)


@pytest.fixture(params=[False, True], ids=["plain", "tls"])
def context(request: pytest.FixtureRequest, certificates: Certificates) -> ssl.SSLContext | None:
    """Give a receiver of ours plain TCP, and what it needs for TLS."""
    if not request.param:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificates.server)
    return context


@pytest.fixture
def broker(request: pytest.FixtureRequest, bench: peers.Bench) -> "brokers.Broker":
    """Give a NATS server with a stream EVENTS: of the subject events, or of the SUBJECTS of the tests' module."""
    import brokers

    broker = brokers.Broker(bench)
    broker.add_stream("EVENTS", *getattr(request.module, "SUBJECTS", ()))
    return broker


@pytest.fixture
def metrics() -> "scraping.Metrics":
    """Give a program's metrics a port."""
    import scraping

    return scraping.Metrics()


@pytest.fixture(params=[False, True], ids=["plain", "tls"])
def net(request: pytest.FixtureRequest, certificates: Certificates) -> "conforming.Net":
    """Give the conformance suite plain TCP, and TLS."""
    import conforming  # which needs what is defined here

    return conforming.Net(certificates, tls=request.param)


@pytest.fixture
def tls_net(certificates: Certificates) -> "conforming.Net":
    """Give a test TLS only."""
    import conforming

    return conforming.Net(certificates, tls=True)
