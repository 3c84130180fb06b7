"""A listener goes on, whatever its clients do and whatever runs out."""

import asyncio
import contextlib
import errno
import os
import resource
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peers
import pytest
from conftest import Certificates
from streams import server_at

import ringmain
from ringmain.net.arrivals import Arrivals

Run = Callable[[Any], Any]


def path_with(folder: Path) -> str:
    """Return the search path of Python with a folder before what is there."""
    return os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))


def test_a_client_that_is_reset_right_after_it_was_accepted_ends_nothing(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    async def main() -> bytes:
        async with ringmain.load("127.0.0.1:0") as loader:
            client = peers.connect(loader.port)
            original = socket.socket.getpeername

            def reset_meanwhile(sock: socket.socket) -> Any:
                name = original(sock)
                asked.append(str(name))
                peers.close_with_reset(client)  # on loopback it has arrived when this returns
                return name

            monkeypatch.setattr(socket.socket, "getpeername", reset_meanwhile)
            waiting = asyncio.ensure_future(anext(loader))
            await asyncio.sleep(0.1)
            monkeypatch.undo()
            peers.close_with_reset(client)
            with peers.connect(loader.port) as sock:
                sock.sendall(b"the next one")
                return bytes(await waiting)

    assert run(main()) == b"the next one"


@pytest.mark.parametrize("verb", ["load", "save"])
def test_no_error_of_a_socket_is_laid_at_standard_output(bench: peers.Bench, tmp_path: Path, verb: str) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import ringmain.net.gate\n"
        "def fail(self, link):\n    raise OSError(107, 'Transport endpoint is not connected')\n"
        "ringmain.net.gate.Gate.done = fail\n"  # stands for whatever nobody has thought of
    )
    listen = ["-l", "-I", bench.file(b"x")] if verb == "save" else []
    program, port = bench.listening(verb, *listen, env=os.environ | {"PYTHONPATH": path_with(tmp_path)})
    peers.connect(port).close()
    assert program.wait() == 1
    line = program.stderr.splitlines()[-1]
    assert line == "ringmain: ringmain cannot go on: transport endpoint is not connected; please report this"
    assert "Traceback" not in program.stderr


@pytest.mark.parametrize("verb", ["load", "save"])
def test_standard_error_that_takes_nothing_stops_nothing(bench: peers.Bench, tmp_path: Path, verb: str) -> None:
    port_file = tmp_path / "port"
    listen = ["-l", "-I", bench.file(b"x" * 10)] if verb == "save" else []
    command = [*peers.RINGMAIN, verb, *listen, "-o", "--port-file", port_file, "127.0.0.1:0"]
    with Path("/dev/full").open("wb") as full:
        program = subprocess.Popen([str(word) for word in command], stdout=subprocess.PIPE, stderr=full)
        refused = subprocess.run([*peers.RINGMAIN, verb, "nonsense"], stderr=full, check=False)
    assert refused.returncode == 2
    peers.eventually(port_file.exists)
    with program, peers.connect(int(port_file.read_text())) as sock:
        if verb == "load":
            sock.sendall(b"x" * 10)
            sock.shutdown(socket.SHUT_WR)
            assert program.communicate(timeout=peers.TIMEOUT)[0] == b"x" * 10
        else:
            assert peers.read_all(sock) == b"x" * 10
    assert program.wait(peers.TIMEOUT) == 0


# Writes each import that is not yet there to a file, and each socket that is made or bound.
IMPORT_LOG = """
import os, sys
def hook(event, arguments, log=open(os.environ["IMPORT_LOG"], "a", buffering=1)):
    if event in ("socket.__new__", "socket.bind"):
        log.write(f"{event}\\n")
    elif event == "import":
        log.write(f"{event} {arguments[0]}\\n")
sys.addaudithook(hook)
"""
RELAYS: dict[str, list[str]] = {
    "relay": [],
    "relay that is told": ["--accept-proxy"],
    "relay that tells v1": ["--send-proxy", "v1"],
    "relay that tells v2": ["--send-proxy", "v2"],
}


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("verb", ["load", "save", *RELAYS])
def test_what_a_client_needs_is_imported_before_the_first_one_comes(
    bench: peers.Bench, certificates: Certificates, tmp_path: Path, verb: str, tls: bool
) -> None:
    log = tmp_path / "imports"
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(IMPORT_LOG)
    environment = os.environ | {"PYTHONPATH": path_with(tmp_path / "site"), "IMPORT_LOG": str(log)}
    relaying = verb in RELAYS
    whose = "source-" if relaying else ""
    options: list[Any] = [f"--{whose}certfile", certificates.server] if tls else []
    scheme = "tcps" if tls else "tcp"
    with contextlib.ExitStack() as stack:
        if relaying:
            _, there = bench.listening("load", "--tls", "--certfile", certificates.server)
            options += RELAYS[verb] + ["--destination-cafile", certificates.ca]
            last = [f"tcps://localhost:{there}"]
        else:
            options += ["-l", "-I", bench.file(b"x")] if verb == "save" else []
            last = []
        port_file = tmp_path / "port"
        command = [verb.split()[0], *options, "--port-file", port_file, f"{scheme}://127.0.0.1:0", *last]
        program = bench.ringmain(*command, stdout=subprocess.PIPE, env=environment)
        peers.eventually(port_file.exists)
        port = int(port_file.read_text())
        header = b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n" if "--accept-proxy" in options else b""
        # Where a header is told of, the destination takes it for bad TLS: the client may be reset while it connects.
        with contextlib.suppress(ConnectionError):
            first = stack.enter_context(peers.connect(port))
            if header:
                first.sendall(header)
            if tls:
                context = ssl.create_default_context(cafile=str(certificates.ca))
                first = stack.enter_context(context.wrap_socket(first, server_hostname="localhost"))
            first.sendall(b"x" * 1000)
            time.sleep(1.2)  # the filter goes on after a second
            first.close()
        with contextlib.suppress(ConnectionError), peers.connect(port) as garbage:  # reset while it connects even
            garbage.sendall(b"garbage\r\n\r\n")
        for leave in (peers.close_with_reset, socket.socket.close):
            with contextlib.suppress(ConnectionError):
                leave(peers.connect(port))
        time.sleep(0.2)
        assert program.process.poll() is None, program.stderr
        lines = log.read_text().splitlines()
        accepted = lines.index("socket.__new__", lines.index("socket.bind"))
        assert [line for line in lines[accepted:] if line.startswith("import")] == []


@pytest.mark.parametrize("verb", ["load", "save"])
def test_one_descriptor_a_client_is_enough_for_tls(
    bench: peers.Bench, certificates: Certificates, tmp_path: Path, verb: str
) -> None:
    listen = ["-l", "-I", bench.file(b"hello")] if verb == "save" else ["-O", tmp_path / "got"]
    program, port = bench.listening(verb, *listen, "--tls", "--certfile", certificates.server)
    numbers = {int(path.name) for path in Path(f"/proc/{program.process.pid}/fd").iterdir()}
    free = next(number for number in range(1000) if number not in numbers)
    limits = resource.prlimit(program.process.pid, resource.RLIMIT_NOFILE)
    for spare in (1, 2, 3):
        resource.prlimit(program.process.pid, resource.RLIMIT_NOFILE, (free + spare, limits[1]))
        with peers.connect_tls(port, certificates.ca) as sock:
            if verb == "save":
                assert peers.read_all(sock) == b"hello"
            else:
                sock.sendall(b"hello")
                sock.unwrap().close()
    if verb == "load":
        peers.eventually(lambda: (tmp_path / "got").read_bytes() == b"hello" * 3, "all that was sent")
    assert program.process.poll() is None, program.stderr


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EPERM, errno.ECONNABORTED], ids=errno.errorcode.get)
def test_an_accept_that_goes_on_failing_is_tried_again_at_leisure(
    run: Run, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, number: int
) -> None:
    calls = 0

    def refuse(sock: socket.socket) -> Any:
        nonlocal calls
        calls += 1
        if calls > 10_000:
            raise AssertionError("it spins")
        raise OSError(number, os.strerror(number))

    async def main() -> bytes:
        async with ringmain.load("127.0.0.1:0", listen_once=True) as loader:
            waiting = asyncio.ensure_future(anext(loader))
            monkeypatch.setattr(socket.socket, "accept", refuse)
            with peers.connect(loader.port) as sock:
                sock.sendall(b"patient")
                await asyncio.sleep(0.5)
                assert 0 < calls <= 64 * 6  # a timer of 0.1 s, and some tries each time
                monkeypatch.undo()
                return bytes(await waiting)

    assert run(main()) == b"patient"
    assert caplog.text.count("cannot accept a client") == 1


def hello_in_parts(port: int, ca: Path, go_on: threading.Event, done: list[str]) -> None:
    """Shake hands as a client, stopping in the middle of the first message until told; then send and say goodbye."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = ssl.create_default_context(cafile=str(ca)).wrap_bio(incoming, outgoing, server_hostname="localhost")
    with peers.connect(port) as sock:
        with pytest.raises(ssl.SSLWantReadError):
            tls.do_handshake()
        hello = outgoing.read()
        sock.sendall(hello[:20])
        assert go_on.wait(peers.TIMEOUT)
        sock.sendall(hello[20:])
        while True:
            try:
                tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                sock.sendall(outgoing.read())
                data = sock.recv(1 << 16)
                if not data:
                    return
                incoming.write(data)
        tls.write(b"at last")
        with contextlib.suppress(ssl.SSLWantReadError):
            tls.unwrap()
        sock.sendall(outgoing.read())
        done.append(str(tls.version()))
        sock.recv(100)


def test_a_handshake_outlives_the_iteration_that_waited_for_it(run: Run, certificates: Certificates) -> None:
    go_on, done = threading.Event(), []

    async def main() -> bytes:
        async with ringmain.load("tcps://127.0.0.1:0", certfile=str(certificates.server)) as loader:
            slow = asyncio.ensure_future(asyncio.to_thread(hello_in_parts, loader.port, certificates.ca, go_on, done))
            for _ in range(20):
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(anext(loader), 0.02)
            go_on.set()
            while True:
                try:
                    block = bytes(await asyncio.wait_for(anext(loader), 0.02))
                except TimeoutError:
                    continue
                loader.stop()
                assert [bytes(it) async for it in loader] == []
                break
        await slow
        return block

    assert run(main()) == b"at last"
    assert done == ["TLSv1.3"]


def test_a_client_that_is_ready_while_nobody_waits_is_the_next_ones(run: Run, certificates: Certificates) -> None:
    async def main() -> bytes:
        async with ringmain.load("tcps://127.0.0.1:0", certfile=str(certificates.server)) as loader:
            waiting = asyncio.ensure_future(anext(loader))
            connecting = asyncio.ensure_future(asyncio.to_thread(peers.connect_tls, loader.port, certificates.ca))
            await asyncio.sleep(0)
            waiting.cancel()
            await asyncio.wait([waiting])
            while not connecting.done():
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(anext(loader), 0.05)
            with await connecting as sock:
                await asyncio.sleep(0.05)
                sock.sendall(b"ready long since")
                return bytes(await anext(loader))

    assert run(main()) == b"ready long since"


def test_who_still_shakes_hands_when_a_loader_is_left_is_let_go(run: Run, certificates: Certificates) -> None:
    async def main() -> None:
        async with ringmain.load("tcps://127.0.0.1:0", certfile=str(certificates.server)) as loader:
            with peers.connect(loader.port) as sock:
                sock.sendall(b"\x16\x03\x01")
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(anext(loader), 0.1)
                await loader.__aexit__(None, None, None)
                await asyncio.sleep(0)
                with contextlib.suppress(ConnectionResetError):
                    assert await asyncio.to_thread(sock.recv, 1) == b""

    run(main())


def test_a_proxy_header_is_read_on_when_serving_was_cancelled_meanwhile(run: Run) -> None:
    async def main() -> None:
        with server_at() as server:
            url = f"127.0.0.1:{server.getsockname()[1]}"
            relaying = ringmain.relay("127.0.0.1:0", url, accept_proxy=True, send_proxy="v1", listen_once=True)
            async with relaying as relayer:
                with peers.connect(relayer.port) as client:
                    client.sendall(b"PROXY TCP4 192.0.2.1 ")
                    for _ in range(3):
                        with pytest.raises(TimeoutError):
                            await asyncio.wait_for(relayer.serve(), 0.05)
                    client.sendall(b"192.0.2.2 1111 2222\r\n")
                    await asyncio.sleep(0.1)  # it is read while nobody serves
                    serving = asyncio.ensure_future(relayer.serve())
                    client.sendall(b"data")
                    client.shutdown(socket.SHUT_WR)
                    sock, _ = await asyncio.to_thread(server.accept)
                    with sock:
                        got = await asyncio.to_thread(peers.read_all, sock)
                    await serving
        assert got == b"PROXY TCP4 192.0.2.1 192.0.2.2 1111 2222\r\ndata"

    run(main())


def test_who_knocks_on_and_on_does_not_keep_the_client_waiting(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    admit = Arrivals._admit
    knocks = 1000

    async def main() -> int:
        async with ringmain.load("127.0.0.1:0", gate="refuse") as loader:
            with peers.connect(loader.port) as client:
                client.sendall(b"1")
                assert await anext(loader) == b"1"

                def admit_and_knock(arrivals: Arrivals, *stranger: Any) -> None:
                    admit(arrivals, *stranger)
                    if loader.refused < knocks:
                        peers.connect(loader.port).close()  # so that there is always one more

                monkeypatch.setattr(Arrivals, "_admit", admit_and_knock)
                peers.connect(loader.port).close()
                client.sendall(b"2")
                assert await anext(loader) == b"2"
                return loader.refused

    assert run(main()) < knocks


def test_a_client_that_has_outlived_its_partner_and_still_shakes_hands_keeps_nobody_away(
    run: Run, certificates: Certificates
) -> None:
    async def main() -> None:
        tls = ringmain.TlsSettings(certfile=str(certificates.server))
        urls = "tcp://127.0.0.1:0", "tcps://127.0.0.1:0"
        options: dict[str, Any] = {"listen": True, "gate": "queue", "destination_tls": tls, "handshake_timeout": None}
        async with ringmain.relay(*urls, **options) as relayer:
            serving = asyncio.ensure_future(relayer.serve())
            gone = await asyncio.to_thread(peers.connect, relayer.source.port)
            with await asyncio.to_thread(peers.connect, relayer.destination.port) as slow:
                slow.sendall(peers.hello())
                assert await asyncio.to_thread(slow.recv, 1)  # it is not done yet
                peers.close_with_reset(gone)
                await asyncio.sleep(0.1)  # for the relay to hear of it
                with await asyncio.to_thread(peers.connect, relayer.source.port) as source:
                    source.sendall(b"x")
                    connecting = asyncio.to_thread(peers.connect_tls, relayer.destination.port, certificates.ca)
                    with await connecting as destination:
                        assert await asyncio.to_thread(destination.recv, 1) == b"x"
                serving.cancel()
                await asyncio.wait([serving])

    run(main())


def test_a_relay_that_has_no_descriptor_left_tries_again(bench: peers.Bench) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(peers.TIMEOUT)
        url = "tcp://127.0.0.1:{1}".format(*listener.getsockname())
        program, port = bench.relaying(url, "--max-connections", 2, "--retry", 50, "--verbose")
        numbers = {int(path.name) for path in Path(f"/proc/{program.process.pid}/fd").iterdir()}
        free = next(number for number in range(1000) if number not in numbers)
        limits = resource.prlimit(program.process.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(program.process.pid, resource.RLIMIT_NOFILE, (free + 1, limits[1]))  # for the client
        with peers.connect(port) as client:
            program.says("too many open files; let this process open more files: ulimit -n; trying again")
            resource.prlimit(program.process.pid, resource.RLIMIT_NOFILE, limits)
            with listener.accept()[0] as sock:
                client.sendall(b"hello")
                assert sock.recv(5) == b"hello"
