"""What errors are besides ringmain's own, and how they name options: keywords in Python, flags on the command line."""

import errno
import subprocess
import sys
from pathlib import Path
from typing import Any

import peers
import pytest
import streams
from conftest import Certificates

import ringmain
import ringmain.cli.load  # whose options stand for keywords
import ringmain.cli.relay
from ringmain import errors
from ringmain.cli.flags import as_flags


def test_a_refused_connection_is_a_connection_error_with_its_number() -> None:
    with pytest.raises(ConnectionError) as caught, ringmain.load(f"127.0.0.1:{peers.free_port()}", connect=True):
        pass
    assert isinstance(caught.value, errors.ConnectError)
    assert caught.value.errno == errno.ECONNREFUSED
    assert str(caught.value).endswith(": connection refused; is anything listening there?")


def test_a_reset_while_loading_is_a_connection_error_with_its_number() -> None:
    with streams.server_at() as listener:
        url = f"127.0.0.1:{listener.getsockname()[1]}"
        with pytest.raises(ConnectionError) as caught, ringmain.load(url, connect=True) as loader:
            peers.close_with_reset(listener.accept()[0])
            next(loader)
    assert isinstance(caught.value, errors.ReceiveError)
    assert caught.value.errno == errno.ECONNRESET


def test_a_reset_while_saving_is_a_connection_error_with_its_number() -> None:
    with streams.server_at() as listener:
        url = f"127.0.0.1:{listener.getsockname()[1]}"
        with pytest.raises(ConnectionError) as caught, ringmain.save(url) as saver:
            peers.close_with_reset(listener.accept()[0])
            while True:
                saver.write(bytes(1 << 20))
    assert isinstance(caught.value, errors.SendError)
    assert caught.value.errno in (errno.ECONNRESET, errno.EPIPE)


def test_a_time_out_says_which() -> None:
    with peers.full_backlog() as silent:
        with pytest.raises(TimeoutError) as caught, ringmain.save(f"127.0.0.1:{silent}", connect_timeout=0.1):
            pass
        assert str(caught.value).endswith(
            "no answer within 0.1 s; is it up? is a firewall in between? else raise connect_timeout="
        )
    limits = [caught.value.limit]
    with streams.server_at() as listener:
        url = f"127.0.0.1:{listener.getsockname()[1]}"
        with pytest.raises(TimeoutError) as caught, ringmain.save(url, tls=True, insecure=True, handshake_timeout=0.1):
            pass
        assert "does it speak TLS? else raise handshake_timeout=" in str(caught.value)
        limits.append(caught.value.limit)
        with pytest.raises(TimeoutError) as caught, ringmain.load(url, connect=True, idle_timeout=0.1) as loader:
            next(loader)
        assert "is the peer still alive? else raise idle_timeout=" in str(caught.value)
        limits.append(caught.value.limit)
        with pytest.raises(TimeoutError) as caught, ringmain.save(url, idle_timeout=0.1) as saver:
            while True:
                saver.write(bytes(1 << 20))
        assert "is the peer still reading? else raise idle_timeout=" in str(caught.value)
    assert [*limits, caught.value.limit] == ["connect_timeout", "handshake_timeout", "idle_timeout", "idle_timeout"]
    assert caught.value.errno == errno.ETIMEDOUT


def test_allow_takes_one_network_as_it_is_written() -> None:
    with ringmain.load("127.0.0.1:0", allow="127.0.0.0/8") as loader, peers.connect(loader.port) as sock:
        sock.sendall(b"welcome")
        assert bytes(next(loader)) == b"welcome"
    with (
        pytest.raises(errors.UsageError, match=r"allow='10\.0\.0\.0/33'"),
        ringmain.load("127.0.0.1:0", allow="10.0.0.0/33"),
    ):
        pass


@pytest.mark.parametrize(
    ("line", "flags"),
    [
        ("nothing came; raise idle_timeout=", "nothing came; raise --idle-timeout"),
        ("path=kernel: why; leave path= out", "--path kernel: why; leave --path out"),
        ("add listen_once=True, or see allow=;", "add --listen-once, or see --allow;"),
        ("give it with source_tls.client_ca=", "give it with --source-client-ca"),
        ("destination_tls.certfile=/x: why", "--destination-certfile /x: why"),
        ("raise min_block=; nonsense=1 source_tls.path=", "raise min_block=; nonsense=1 source_tls.path="),
    ],
)
def test_the_command_line_names_flags_where_the_library_names_keywords(line: str, flags: str) -> None:
    assert as_flags(line) == flags


def test_a_peer_that_is_gone_is_not_taken_for_a_reader_of_our_output(bench: peers.Bench) -> None:
    with streams.server_at() as listener:
        saver = bench.ringmain("save", "-v", f"127.0.0.1:{listener.getsockname()[1]}", stdin=subprocess.PIPE)
        sock, _ = listener.accept()
        saver.says("connected")
        peers.close_with_reset(sock)
        saver.process.stdin.close()
        assert saver.wait() == 55, saver.stderr


VERBS = """
import sys, threading, ringmain
pem, data = sys.argv[1], bytes(range(256)) * 20000

def send(url, **options):
    with ringmain.save(url, **options) as saver:
        saver.write(data)

for scheme, ours, theirs in (("tcp", {}, {}), ("tcps", {"certfile": pem}, {"insecure": True})):
    with ringmain.load(f"{scheme}://127.0.0.1:0", listen_once=True, **ours) as loader:
        tls = ringmain.TlsSettings(**theirs)
        with ringmain.relay("tcp://127.0.0.1:0", f"{scheme}://127.0.0.1:{loader.port}", listen_once=True,
                            destination_tls=tls) as relayer:
            threads = [threading.Thread(target=send, args=[f"127.0.0.1:{relayer.port}"]),
                       threading.Thread(target=relayer.serve)]
            for thread in threads:
                thread.start()
            got = b"".join(bytes(block) for block in loader)
            for thread in threads:
                thread.join()
    assert got == data

async def inside():
    with ringmain.load("127.0.0.1:0", listen_once=True) as loader:
        thread = threading.Thread(target=send, args=[f"127.0.0.1:{loader.port}"])
        thread.start()
        assert b"".join(bytes(block) for block in loader) == data
        thread.join()

import asyncio
asyncio.run(inside())
try:
    ringmain.open("127.0.0.1:1")
except ringmain.ConnectError:
    pass
try:
    ringmain.open("127.0.0.1:1", "wb")
except ringmain.ConnectError:
    pass
print("done")
"""


def test_pythons_development_mode_is_silent_over_all_verbs(certificates: Certificates) -> None:
    command = [sys.executable, "-X", "dev", "-W", "error", "-c", VERBS, str(certificates.server)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=2 * peers.TIMEOUT)
    lines = [line for line in done.stderr.splitlines() if "insecure=True: the peer's certificate" not in line]
    # Of asyncio's own loop, which is the user's: how long a call that it made has taken.
    assert [line for line in lines if not line.startswith("Executing <Task")] == []
    assert done.stdout == "done\n"


def test_pythons_development_mode_is_silent_on_the_command_line(bench: peers.Bench, tmp_path: Path) -> None:
    data, got = bench.file(peers.payload(3_000_000)), tmp_path / "got"
    python: list[Any] = [sys.executable, "-X", "dev", "-W", "error", "-m", "ringmain"]

    def start(verb: str, *arguments: Any) -> tuple[peers.Program, Path]:
        ports = tmp_path / f"{verb}.port"
        program = bench.start([*map(str, [*python, verb, "-o", *arguments, "--port-file", ports])])
        return program, ports

    def port_in(path: Path) -> int:
        peers.eventually(path.exists, "a port file")
        return int(path.read_text())

    loader, ports = start("load", "tcp://127.0.0.1:0", "-O", got)
    relay, relay_ports = start("relay", "tcp://127.0.0.1:0", f"tcp://127.0.0.1:{port_in(ports)}")
    saver = bench.start([*map(str, [*python, "save", "-I", data, f"tcp://127.0.0.1:{port_in(relay_ports)}"])])
    for program in (saver, relay, loader):
        assert program.wait() == 0, program.stderr
        assert [line for line in program.stderr.splitlines() if not line.startswith("listening on")] == []
    assert peers.sha256(got) == peers.sha256(Path(data))


def test_a_keepalive_that_the_kernel_cannot_count_to_is_refused_before_a_client_comes() -> None:
    with pytest.raises(errors.UsageError, match="keepalive=40000: the kernel counts to 32767"):
        ringmain.save("127.0.0.1:0", listen=True, keepalive=40_000)
    ringmain.save("127.0.0.1:0", listen=True, keepalive=32767)
