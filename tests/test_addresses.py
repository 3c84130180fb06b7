"""Which address is dialled: several of them, with a zone, or by a name with a dot at its end."""

import asyncio
import contextlib
import shutil
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peers
import pytest
import streams
from conftest import Certificates, open_descriptors

import ringmain
from ringmain import errors
from ringmain.net import dial, happy_eyeballs

Run = Callable[[Any], Any]
Rows = list[tuple[Any, ...]]


def row(port: int, host: str = "127.0.0.1") -> tuple[Any, ...]:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return family, socket.SOCK_STREAM, 6, "", (host, port, 0, 0) if ":" in host else (host, port)


@pytest.fixture
def resolved(monkeypatch: pytest.MonkeyPatch) -> Rows:
    """Return the list of what every name is resolved to."""
    rows: Rows = []

    async def resolve(*_: object, **__: object) -> Rows:
        return rows

    monkeypatch.setattr(dial, "resolve", resolve)
    return rows


@pytest.fixture
def refusing() -> int:
    return peers.free_port()


def test_a_silent_address_does_not_keep_the_next_one_from_being_tried(run: Run, resolved: Rows) -> None:
    async def main() -> None:
        async with ringmain.save("host:1", connect_timeout=None) as saver:
            await saver.write(b"through the second")

    with peers.full_backlog() as silent, streams.server_at() as listener:
        resolved += [row(silent), row(silent), row(listener.getsockname()[1])]
        run(main())
        sock, _ = listener.accept()
        with sock:
            assert peers.read_all(sock) == b"through the second"


def test_an_address_that_answers_late_is_waited_for_beside_the_others(run: Run, resolved: Rows, refusing: int) -> None:
    async def main() -> None:
        with peers.full_backlog() as silent:
            resolved.extend([row(silent), row(refusing), row(silent)])
            with pytest.raises(
                errors.TimedOutError, match=r"no answer within 1 s; is it up\? .* else raise connect_timeout="
            ) as caught:
                await ringmain.load("host:1", connect=True, connect_timeout=1).__aenter__()
            assert caught.value.limit == "connect_timeout"

    run(main())


def test_families_take_turns_beginning_with_the_first(
    run: Run, resolved: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[str] = []

    def begin(it: tuple[Any, ...], _: int | None) -> socket.socket:
        tried.append(it[4][0])
        raise OSError(101, "unreachable")

    monkeypatch.setattr(happy_eyeballs, "_begin", begin)
    resolved += [row(1, host) for host in ("::1", "::2", "::3", "10.0.0.1", "10.0.0.2")]

    async def main() -> None:
        with pytest.raises(errors.ConnectError, match="network is unreachable; check address and route"):
            await ringmain.load("host:1", connect=True).__aenter__()

    run(main())
    assert tried == ["::1", "10.0.0.1", "::2", "10.0.0.2", "::3"]


def test_where_no_more_sockets_can_be_watched_none_stays_watched(run: Run) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        with pytest.raises(OSError):  # noqa: PT011 - EPERM, in the words of the loop
            await happy_eyeballs._any_writable([first, unwatchable], 3600)
        assert not loop.remove_writer(first)

    unwatchable: Any
    with streams.connection() as (_, first), Path(__file__).open("rb") as unwatchable:  # epoll takes no regular file
        run(main())


def test_a_refusal_is_told_before_a_missing_route(run: Run, resolved: Rows, refusing: int) -> None:
    resolved += [row(refusing), (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("255.255.255.255", 1))]

    async def main() -> None:
        with pytest.raises(errors.ConnectError, match="connection refused; is anything listening there"):
            await ringmain.load("host:1", connect=True).__aenter__()

    run(main())


def test_a_peer_that_accepts_and_resets_at_once_was_connected(run: Run, resolved: Rows) -> None:
    def serve(listener: socket.socket) -> None:
        for _ in range(10):
            peers.close_with_reset(listener.accept()[0])

    async def main() -> None:
        for _ in range(10):
            async with ringmain.load("host:1", connect=True) as loader:
                with pytest.raises(errors.ReceiveError, match="connection reset by peer after 0 bytes"):
                    await anext(loader)

    with streams.server_at() as listener:
        resolved += [row(listener.getsockname()[1])]
        thread = threading.Thread(target=serve, args=[listener])
        thread.start()
        run(main())
        thread.join()


def test_dialling_may_be_cancelled_wherever_it_waits_and_leaves_nothing(
    run: Run, resolved: Rows, refusing: int
) -> None:
    async def main() -> None:
        with peers.full_backlog() as silent, streams.server_at() as listener:
            resolved.extend([row(refusing), row(silent), row(listener.getsockname()[1])])
            before = open_descriptors()
            over = False
            turns = 0
            while not over:
                loader = ringmain.load("host:1", connect=True)
                task = asyncio.ensure_future(loader.__aenter__())
                for _ in range(turns):
                    await asyncio.sleep(0 if turns < 30 else 0.02)
                over = task.done()
                task.cancel()
                await asyncio.wait([task])
                if not task.cancelled():
                    task.result()
                    await loader.__aexit__(None, None, None)
                assert len(open_descriptors()) <= len(before)
                turns += 1

    run(main())


def test_a_name_is_verified_without_the_dot_at_its_end(run: Run, resolved: Rows, certificates: Certificates) -> None:
    asked: list[str | None] = []

    def serve(listener: socket.socket) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificates.server)
        context.sni_callback = lambda *arguments: asked.append(arguments[1])
        for _ in range(2):
            sock, _ = listener.accept()
            with contextlib.suppress(OSError), context.wrap_socket(sock, server_side=True) as tls_sock:
                tls_sock.recv(1)

    async def main() -> None:
        for url, options in (("tcps://localhost.:1", {}), ("tcps://other:1", {"server_name": "localhost."})):
            async with ringmain.save(url, cafile=str(certificates.ca), **options):
                pass

    with streams.server_at() as listener:
        resolved += [row(listener.getsockname()[1])]
        thread = threading.Thread(target=serve, args=[listener])
        thread.start()
        run(main())
        thread.join()
    assert asked == ["localhost", "localhost"]


ZONE = """
import asyncio, sys, uvloop, ringmain

async def main():
    async with ringmain.load("tcp://[fe80::1%lo]:0", listen_once=True) as loader:
        async with ringmain.save(f"tcp://[fe80::1%lo]:{loader.port}") as saver:
            await saver.write(b"one link")
        async for block in loader:
            print(loader.addresses[0].rpartition(":")[0], bytes(block).decode())
    try:
        await ringmain.load("tcp://[fe80::1%nowhere]:1", connect=True).__aenter__()
    except ringmain.ResolveError as error:
        print(error)

for factory in (asyncio.new_event_loop, uvloop.new_event_loop):
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(main())
"""


def test_an_address_of_one_link_keeps_its_zone() -> None:
    need = [shutil.which("unshare"), shutil.which("ip")]
    prepare = "ip link set lo up && ip address add fe80::1/64 dev lo nodad"
    inside = ["unshare", "--map-root-user", "--net", "sh", "-c"]
    if None in need or subprocess.run([*inside, prepare], check=False, capture_output=True).returncode:
        pytest.skip("this system gives no network namespace")
    done = subprocess.run(
        [*inside, f'{prepare} && exec "$0" -c "$1"', sys.executable, ZONE],
        capture_output=True,
        text=True,
        check=False,
        timeout=peers.TIMEOUT,
    )
    assert done.returncode == 0, done.stderr
    line, refused = "[fe80::1%lo] one link", "is there an interface nowhere? ringmain nics lists them"
    assert done.stdout.count(line) == done.stdout.count(refused) == 2
