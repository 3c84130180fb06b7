"""UNIX sockets with what else there is: many clients, TLS, PROXY headers, files, processes; and what makes no sense."""

import asyncio
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peers
import pytest
import streams
from conftest import Certificates
from merging import until
from peers import dial_unix as dial
from test_unix import LARGE, accept, listening, reading

import ringmain
from ringmain import errors

Run = Callable[[Any], Any]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "socket"


def test_records_of_many_clients_are_merged_whole(run: Run, path: Path) -> None:
    lines = [[f"{client} {number}\n".encode() for number in range(20_000)] for client in range(4)]

    def send(mine: list[bytes]) -> None:
        with dial(path) as sock:
            sock.sendall(b"".join(mine))

    async def main() -> None:
        got: list[bytes] = []
        async with ringmain.load(f"unix:{path}", max_connections=4) as loader:
            sending = [asyncio.create_task(asyncio.to_thread(send, mine)) for mine in lines]
            async for block in loader:
                got += bytes(block).splitlines(keepends=True)
                if len(got) == 80_000:
                    break
            await asyncio.gather(*sending)
        for client, mine in enumerate(lines):
            assert [line for line in got if line.startswith(b"%d " % client)] == mine

    run(main())


def test_what_is_saved_goes_to_all_who_listen_in(run: Run, path: Path) -> None:
    def listen_in() -> bytes:
        with dial(path) as sock:
            return peers.read_all(sock)

    async def main() -> None:
        async with ringmain.save(f"unix:{path}", listen=True, max_connections=3) as saver:
            listeners = [asyncio.create_task(asyncio.to_thread(listen_in)) for _ in range(3)]
            await saver.wait_for_peer()
            await until(lambda: saver.connections == 3)
            for at in range(0, len(LARGE), 100_000):
                await saver.write(LARGE[at : at + 100_000])
        got = await asyncio.gather(*listeners)
        assert {peers.sha256(it) for it in got} == {peers.sha256(LARGE)}

    run(main())


def test_what_our_kernel_never_took_goes_to_the_next_client(run: Run, path: Path) -> None:
    """What the lost one's queue had is gone with it, as what a TCP peer's kernel has acknowledged is."""
    first, second = bytearray(), bytearray()

    def lose() -> None:
        with dial(path) as sock:
            first.extend(sock.recv(1000))

    def take() -> None:
        with dial(path) as sock:
            second.extend(peers.read_all(sock))

    async def main() -> None:
        async with ringmain.save(f"unix:{path}", listen=True) as saver:
            losing = asyncio.create_task(asyncio.to_thread(lose))
            writing = asyncio.create_task(saver.write(LARGE))
            await losing
            taking = asyncio.create_task(asyncio.to_thread(take))
            await writing
        await taking
        assert LARGE.startswith(first)
        assert LARGE.endswith(second)
        assert len(LARGE) - (1 << 20) < len(second) < len(LARGE)

    run(main())


@pytest.mark.parametrize("name", ["path", "abstract"])
def test_questions_are_answered_both_ways(run: Run, path: Path, name: str) -> None:
    url = f"unix:{path}" if name == "path" else f"unix:@ringmain-test-{path.parent.name}-{path.parent.stat().st_ino}"

    async def echo(connection: ringmain.Connection) -> None:
        async for block in connection:
            await connection.write(block)

    async def main() -> None:
        async with ringmain.serve(url, echo) as server, ringmain.connect(url) as connection:
            assert server.addresses == [url]
            assert connection.peer == url
            sending = asyncio.create_task(connection.write(LARGE))
            got = bytearray()
            while len(got) < len(LARGE):
                block = await connection.read()
                assert block is not None
                got += block
            await sending
        assert peers.sha256(bytes(got)) == peers.sha256(LARGE)

    run(main())


def test_an_exception_is_a_reset_for_a_peer_whose_bytes_were_not_read(run: Run, path: Path) -> None:
    async def main() -> None:
        with pytest.raises(KeyError):
            async with ringmain.load(f"unix:{path}", listen_once=True) as loader:
                client = dial(path)
                client.sendall(b"12345")
                await loader.next_connection()
                raise KeyError
        with client:
            assert await asyncio.to_thread(peers.ends_in_reset, client)

    run(main())


def test_a_file_is_read_and_written(path: Path) -> None:
    got: list[bytes] = []
    with listening(path) as listener:
        thread = reading(listener, got)
        with ringmain.open(f"unix:{path}", "wb") as file:
            file.write(LARGE)
        thread.join(peers.TIMEOUT)
    assert peers.sha256(got[0]) == peers.sha256(LARGE)


def test_tls_goes_over_a_unix_socket(bench: peers.Bench, path: Path, certificates: Certificates) -> None:
    output, source = bench.folder / "output", bench.file(LARGE)
    load = bench.ringmain("load", "-o", "--tls", "--certfile", certificates.server, "-O", output, f"unix:{path}")
    tls = ["--retry", "forever", "--tls", "--cafile", certificates.ca]
    nameless = bench.ringmain("save", *tls, "--input", source, f"unix:{path}")
    assert nameless.wait() == 35
    assert "--server-name" in nameless.stderr
    save = bench.ringmain("save", *tls, "--server-name", "localhost", "--input", source, f"unix:{path}")
    assert save.wait() == 0, save.stderr
    assert load.wait() == 0, load.stderr
    assert peers.sha256(output) == peers.sha256(LARGE)


@pytest.mark.parametrize(
    ("version", "header"),
    [("v1", b"PROXY UNKNOWN\r\n"), ("v2", b"\r\n\r\n\x00\r\nQUIT\n\x21\x00\x00\x00")],
)
def test_a_proxy_header_says_that_the_client_is_unknown(
    bench: peers.Bench, path: Path, version: str, header: bytes
) -> None:
    destination = path.with_name("destination")
    with listening(destination) as listener:
        relay = bench.ringmain("relay", "-o", "--send-proxy", version, f"unix:{path}", f"unix:{destination}")
        with dial(path) as client:
            client.sendall(b"12345")
            client.shutdown(socket.SHUT_WR)
            with accept(listener) as sock:
                assert peers.read_all(sock) == header + b"12345"
        assert relay.wait() == 0, relay.stderr


def test_several_processes_share_the_clients(bench: peers.Bench, path: Path) -> None:
    load = bench.ringmain(
        *("load", "--processes", 2, "--max-connections", 4),
        *("--output", bench.folder / "part-{process}", f"unix:{path}"),
    )
    records = [f"{number}\n".encode() for number in range(8)]
    for record in records:
        with dial(path) as sock:
            sock.sendall(record)

    def parts() -> list[bytes]:
        files = sorted(bench.folder.glob("part-*"))
        return sorted(line for file in files for line in file.read_bytes().splitlines(keepends=True))

    peers.eventually(lambda: parts() == records, load.stderr)
    load.signal(15)
    assert load.wait() == 143


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["save", "unix:{folder}/nobody"], 7, "no such file or directory; is anything listening there?"),
        (["save", "unix:@ringmain-nobody"], 7, "connection refused; is anything listening there?"),
        (["load", "unix:{folder}/no/socket"], 45, "no such file or directory; choose another path"),
        (["load", "--allow", "10.0.0.0/8", "unix:{folder}/s"], 2, "--allow with unix:"),
        (["load", "--reuse-port", "unix:{folder}/s"], 2, "--reuse-port with unix:"),
        (["load", "--receive-buffer", "64K", "unix:{folder}/s"], 2, "--receive-buffer with unix:"),
        (["load", "-c", "--receive-buffer", "64K", "unix:{folder}/s"], 2, "--receive-buffer with unix:"),
        (["load", "--socket-mode", "660", "unix:@ringmain-nobody"], 2, "--socket-mode with unix:@"),
        (["load", "--socket-mode", "660", "tcp://127.0.0.1:0"], 2, "--socket-mode with tcp:"),
        (["load", "--socket-mode", "rw", "unix:{folder}/s"], 2, "three octal digits"),
        (["load", "--socket-owner", "nobody-of-that-name", "unix:{folder}/s"], 2, "no such user or group"),
        (["load", "--socket-owner", ":99999999999", "unix:{folder}/s"], 2, "no such user or group"),
        (["load", "--port-file", "{folder}/port", "unix:{folder}/s"], 2, "a UNIX socket has no port"),
        (["bench", "unix:{folder}/s"], 2, "no UNIX socket"),
        (["bench", "--server", "unix:{folder}/s"], 2, "no UNIX socket"),
        (["bench", "load", "unix:{folder}/s"], 2, "no UNIX socket"),
    ],
)
def test_what_makes_no_sense_is_said_in_one_line(
    bench: peers.Bench, arguments: list[str], code: int, words: str
) -> None:
    program = bench.ringmain(*(it.format(folder=bench.folder) for it in arguments))
    assert program.wait() == code
    assert words in program.stderr
    assert len(program.stderr.splitlines()) == 1
    assert list(bench.folder.iterdir()) == []


def test_a_mode_is_for_whichever_end_of_a_relay_is_a_unix_socket(run: Run, path: Path) -> None:
    async def main() -> None:
        async with ringmain.relay("tcp://127.0.0.1:0", f"unix:{path}", listen=True, socket_mode=0o600) as relayer:
            assert relayer.source.port
            assert os.stat(path).st_mode & 0o777 == 0o600  # noqa: PTH116
        with pytest.raises(errors.UsageError, match="socket_mode="):
            async with ringmain.relay("tcp://127.0.0.1:0", f"unix:{path}", socket_mode=0o600):
                pass

    run(main())


def test_a_relay_takes_it_for_an_end_and_not_for_a_file(bench: peers.Bench, path: Path) -> None:
    destination = path.with_name("destination")
    with listening(destination) as listener:
        bench.ringmain("relay", "-o", f"unix:{path}", f"unix:{destination}")
        with dial(path) as client, accept(listener) as server:
            server.sendall(b"12345")
            assert streams.read(client, 5) == b"12345"


@pytest.mark.parametrize(
    ("verb", "how", "many"),
    [(verb, how, many) for verb in ("load", "relay") for how in ("kernel", "block") for many in (1, 4)],
)
def test_a_signal_loses_nothing_that_was_sent_before_it(
    bench: peers.Bench, path: Path, verb: str, how: str, many: int
) -> None:
    """At a UNIX socket our kernel has what a send has returned. What is sent later may be cut off anywhere."""
    lines = peers.payload(3_000).hex().encode() + b"\n"
    got: list[bytes] = []
    if verb == "load" and many > 1:  # whose records are merged in blocks
        how = "auto"
    with listening(path.with_name("destination")) as listener, (bench.folder / "output").open("wb") as output:
        arguments = ["--path", how, "--max-connections", many, f"unix:{path}"]
        if verb == "relay":
            reader = reading(listener, got)
            arguments.append(f"unix:{listener.getsockname()}")
        program = bench.ringmain(verb, *arguments, stdout=output)
        sent = told = 0
        with dial(path) as client:
            client.sendall(lines[:1])
            sent = 1
            try:
                while True:
                    at = sent % len(lines)
                    sent += client.send(lines[at:])
                    if sent > 5_000_000 and not told:
                        told = sent
                        program.signal(15)
            except BrokenPipeError:
                pass
        assert program.wait() == 143, program.stderr
        if verb == "relay":
            reader.join(peers.TIMEOUT)
    data = got[0] if verb == "relay" else (bench.folder / "output").read_bytes()
    if verb == "load" and many > 1:  # a record that was cut off is dropped
        assert data.endswith(b"\n")
        told = told // len(lines) * len(lines)
    assert told <= len(data) <= sent
    assert peers.sha256(data) == peers.sha256((lines * (sent // len(lines) + 1))[: len(data)])
